// The C ABI of libedgechat-chat: llama.cpp's chat templates, grammars of tool calls, and parsers of model output.
#pragma once

#ifdef _WIN32
#define EDGECHAT_CHAT_API __declspec(dllexport)
#else
#define EDGECHAT_CHAT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Handles a request, a JSON object, and returns the reply as JSON; free it with edgechat_chat_free. Not thread-safe.
// The calling thread needs a stack of 64 MiB (`stack_bytes` in nesting.h).
// A request has one of these forms; a reply has `error` instead of the listed fields if the request failed.
//
//   {"op": "capabilities", "template", "bos", "eos"}
//       -> the capabilities of a chat template by name
//   {"op": "apply", "template", "bos", "eos", "messages", "tools", "tool_choice", "parallel_tool_calls", "thinking",
//    "splits_reasoning", "json_schema", "continues_reply", "variables", "now_s"}
//       -> {"prompt", "generation_prompt", "grammar", "grammar_is_lazy", "triggers", "delimiters",
//           "preserved_tokens", "stop_strings", "format", "parser", "thinking_start", "thinking_ends"}
//   {"op": "parse", "parser", "format", "generation_prompt", "text", "is_partial"}
//       -> {"content", "reasoning", "tool_calls": [{"name", "arguments", "id"}], "unparsed"}
//
// `unparsed` is the end of a complete output that deviates from the format. `messages`, `tools` and `tool_choice` are
// those of the OpenAI API; `variables` are additional template variables; `now_s` is the time that the template sees,
// in seconds since 1970. `parser` is the serialised parser of an `apply`.
EDGECHAT_CHAT_API char * edgechat_chat_call(const char * request);
EDGECHAT_CHAT_API void edgechat_chat_free(char * reply);

#ifdef __cplusplus
}
#endif
