#include "edgechat_chat.h"

#include "chat-peg-parser.h"
#include "chat.h"
#include "clock.h"
#include "json.h"
#include "nesting.h"
#include "peg-parser.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <list>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

thread_local std::time_t edgechat::now_s = 0;

namespace {

using json = common_json;

// Limits of the call that runs on this thread, which operator new checks.
struct call_limits {
    uintptr_t lowest_stack_address = 0;
    bool is_stack_exceeded = false;
    bool is_memory_exceeded = false;
};

thread_local call_limits limits;

constexpr int64_t max_now_s = 4102444800;  // the year 2100

// Cache of the most recently used values by key. Compiling a template or loading a parser takes milliseconds.
template <typename Value> class recent_values {
  public:
    explicit recent_values(size_t capacity) : capacity(capacity) {}

    template <typename Create> Value & get(const std::string & key, Create create) {
        for (auto it = entries.begin(); it != entries.end(); ++it) {
            if (it->first == key) {
                entries.splice(entries.begin(), entries, it);
                return entries.front().second;
            }
        }
        entries.emplace_front(key, create());
        if (entries.size() > capacity) {
            entries.pop_back();
        }
        return entries.front().second;
    }

    void clear() { entries.clear(); }

  private:
    size_t capacity;
    std::list<std::pair<std::string, Value>> entries;
};

recent_values<common_chat_templates_ptr> templates_by_source(8);
recent_values<common_peg_arena> parsers_by_source(32);

const common_chat_templates * get_templates(const json & request) {
    const std::string source = request.at("template");
    const std::string bos = request.at("bos");
    const std::string eos = request.at("eos");
    const std::string key = bos + '\0' + eos + '\0' + source;
    const auto create = [&] {
        check_template(source);
        return common_chat_templates_init(nullptr, source, bos, eos);
    };
    return templates_by_source.get(key, create).get();
}

json get_capabilities(const json & request) {
    json reply = json::object();
    for (const auto & [name, value] : common_chat_templates_get_caps(get_templates(request))) {
        reply[name] = value;
    }
    return reply;
}

const char * trigger_type_name(common_grammar_trigger_type type) {
    switch (type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN: return "token";
        case COMMON_GRAMMAR_TRIGGER_TYPE_WORD: return "word";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN: return "pattern";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL: return "pattern_full";
    }
    throw std::invalid_argument("unknown type of grammar trigger");
}

json apply(const json & request) {
    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(request.at("messages"));
    if (request.contains("tools") && !request.at("tools").empty()) {
        inputs.tools = common_chat_tools_parse_oaicompat(request.at("tools"));
    }
    inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(request.value("tool_choice", "auto"));
    inputs.parallel_tool_calls = request.value("parallel_tool_calls", false);
    inputs.enable_thinking = request.value("thinking", true);
    inputs.reasoning_format =
        request.value("splits_reasoning", true) ? COMMON_REASONING_FORMAT_AUTO : COMMON_REASONING_FORMAT_NONE;
    inputs.json_schema = request.value("json_schema", "");
    if (request.value("continues_reply", false)) {
        inputs.continue_final_message = COMMON_CHAT_CONTINUATION_AUTO;
        inputs.add_generation_prompt = false;
    }
    if (request.contains("variables")) {
        for (const auto & [name, value] : request.at("variables").items()) {
            inputs.chat_template_kwargs[name] = value.dump();
        }
    }
    const int64_t now_s = request.at("now_s").get<int64_t>();
    if (now_s < 0 || now_s > max_now_s) {
        throw std::invalid_argument("the time is not in the years 1970 to 2100");
    }
    inputs.now = std::chrono::system_clock::time_point(std::chrono::seconds(now_s));
    edgechat::now_s = static_cast<std::time_t>(now_s);

    const common_chat_params params = common_chat_templates_apply(get_templates(request), inputs);

    json delimiters = json::object();
    if (!params.parser.empty()) {
        const json nodes = json::parse(params.parser).at("parsers");
        for (size_t i = 0; i < nodes.size(); i++) {
            const std::string type = nodes.at(i).at("type");
            if ((type == "until" || type == "ac") && !nodes.at(i).at("delimiters").empty()) {
                delimiters[type + "-" + std::to_string(i)] = nodes.at(i).at("delimiters");
            }
        }
    }
    json triggers = json::array();
    for (const auto & trigger : params.grammar_triggers) {
        triggers.push_back({ { "type", trigger_type_name(trigger.type) }, { "value", trigger.value } });
    }
    return json{
        { "prompt", params.prompt },
        { "generation_prompt", params.generation_prompt },
        { "grammar", params.grammar },
        { "grammar_is_lazy", params.grammar_lazy },
        { "triggers", triggers },
        { "delimiters", delimiters },
        { "preserved_tokens", params.preserved_tokens },
        { "stop_strings", params.additional_stops },
        { "format", (int) params.format },
        { "parser", params.parser },
        { "thinking_start", params.thinking_start_tag },
        { "thinking_ends", params.thinking_end_tags },
    };
}

void map_message(common_chat_format format, const common_peg_ast_arena & ast, const common_peg_parse_result & result,
                 common_chat_msg & message) {
    if (format == COMMON_CHAT_FORMAT_PEG_GEMMA4) {
        common_chat_peg_gemma4_mapper(message).from_ast(ast, result);
    } else if (format == COMMON_CHAT_FORMAT_PEG_MINIMAX_M3) {
        common_chat_peg_minimax_m3_mapper(message).from_ast(ast, result);
    } else {
        common_chat_peg_mapper(message).from_ast(ast, result);
    }
}

// Parses an output, or its beginning, and sets `message`. Returns npos, or the position at which the output deviates
// from the format; `message` is then empty.
size_t parse_text(const common_peg_arena & parser, common_chat_format format, const std::string & text,
                  common_chat_msg & message) {
    common_peg_parse_context context(text, COMMON_PEG_PARSE_FLAG_LENIENT);
    const auto result = parser.parse(context);
    message = {};
    if (result.fail()) {
        return std::min(result.end, text.size());
    }
    map_message(format, context.ast, result, message);
    return std::string::npos;
}

json parse(const json & request) {
    common_chat_parser_params params;
    const int format = request.at("format").get<int>();
    if (format < 0 || format >= COMMON_CHAT_FORMAT_COUNT) {
        throw std::invalid_argument("unknown format of the output");
    }
    params.format = (common_chat_format) format;
    params.generation_prompt = request.value("generation_prompt", "");
    params.reasoning_format = COMMON_REASONING_FORMAT_AUTO;
    const std::string source = request.at("parser");
    const common_peg_arena & parser = parsers_by_source.get(source, [&] {
        common_peg_arena arena;
        if (!source.empty()) {
            arena.load(source);
        }
        return arena;
    });
    // Unlike common_chat_peg_parse, which throws if the output deviates from the format, keep the text before that.
    const std::string text = params.generation_prompt + std::string(request.at("text"));
    common_chat_msg message;
    std::string unparsed;
    size_t end = parse_text(parser, params.format, text, message);
    if (end != std::string::npos) {
        end = std::max(end, params.generation_prompt.size());
        if (parse_text(parser, params.format, text.substr(0, end), message) != std::string::npos) {
            end = params.generation_prompt.size();
        }
        if (!request.value("is_partial", false)) {
            unparsed = text.substr(end);
        }
    }

    json calls = json::array();
    for (const auto & call : message.tool_calls) {
        calls.push_back({ { "name", call.name }, { "arguments", call.arguments }, { "id", call.id } });
    }
    std::string content = message.content;
    for (const auto & part : message.content_parts) {
        content += part.text;
    }
    return json{
        { "content", content },
        { "reasoning", message.reasoning_content },
        { "tool_calls", calls },
        { "unparsed", unparsed },
    };
}

json handle_json(const json & request) {
    const std::string op = request.at("op");
    if (op == "apply") {
        return apply(request);
    }
    if (op == "parse") {
        return parse(request);
    }
    if (op == "capabilities") {
        return get_capabilities(request);
    }
    throw std::invalid_argument("unknown operation " + op);
}

// Handles a request and returns the reply, both in JSON. llama.cpp converts bad_alloc to other exceptions, so `limits`
// tells the reason of a failure.
std::string handle(const char * request) {
    std::string error_text;
    try {
        check_brackets(request);
        return handle_json(json::parse(request)).dump_safe();
    } catch (const std::exception & error) {
        error_text = error.what();
    }
    if (limits.is_stack_exceeded) {
        error_text = "it is nested too deeply or calls itself without end";
    } else if (limits.is_memory_exceeded) {
        templates_by_source.clear();
        parsers_by_source.clear();
        error_text = "it needs too much memory";
    }
    return json{ { "error", error_text } }.dump_safe();
}

// Returns null if memory is short.
char * copy_to_heap(std::string_view text) {
    auto * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (copy != nullptr) {
        std::memcpy(copy, text.data(), text.size());
        copy[text.size()] = '\0';
    }
    return copy;
}

}  // namespace

// Ends each recursion that allocates memory, for example a macro that calls itself, before the stack overflows.
void * operator new(size_t size) {
    const char here = 0;
    if (reinterpret_cast<uintptr_t>(&here) < limits.lowest_stack_address) {
        limits.is_stack_exceeded = true;
        throw std::bad_alloc();
    }
    if (void * memory = std::malloc(size > 0 ? size : 1)) {
        return memory;
    }
    limits.is_memory_exceeded = true;
    throw std::bad_alloc();
}

void operator delete(void * memory) noexcept {
    std::free(memory);
}

void operator delete(void * memory, size_t) noexcept {
    std::free(memory);
}

char * edgechat_chat_call(const char * request) {
    const char here = 0;
    limits = { reinterpret_cast<uintptr_t>(&here) - max_stack_bytes, false, false };
    char * reply = nullptr;
    try {
        reply = copy_to_heap(handle(request));
    } catch (...) {
        reply = copy_to_heap("{\"error\": \"out of memory\"}");
    }
    limits = {};
    return reply;
}

void edgechat_chat_free(char * reply) {
    std::free(reply);
}
