"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from edgechat.engine import protocol
from edgechat.prompt.builder import PromptOptions
from edgechat.prompt.tool_formats import ToolFormat, template_tools
from edgechat.serve import grammars
from edgechat.serve.chat_prompt import template_messages, tool_call_objects, tool_definitions
from edgechat.serve.choices import Choice, ChoiceDelta, chat_logprobs
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.responses import ResponseBuilder
from edgechat.serve.schemas import AssistantMessage, ChatRequest, NamedTool, Tool


class ChatResponseBuilder(ResponseBuilder):
    """An answer to a conversation, in the shape of the API."""

    ID_PREFIX, OBJECT, CHUNK_OBJECT = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, served: ModelQueue, wanted: ChatRequest) -> None:
        super().__init__(served, wanted)
        self._wanted = wanted
        self._has_logprobs = bool(wanted.logprobs)
        self._said: set[int] = set()

    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        """What the engine is asked. Raises ApiError, EdgechatError."""
        wanted, served = self._wanted, self.served
        tools, must = select_tools(wanted)
        form = served.tool_format
        think = reasoning_enabled(wanted, default=served.settings.reasoning)
        messages = template_messages(wanted.messages, tools, form)
        declared = template_tools(tool_definitions(tools)) if form.template_supports_tools else ()
        built = await served.build_prompt(messages, PromptOptions(think, declared))
        builder = served.builder
        grammar = self._grammar(tools, form, must=must)
        if grammar and isinstance(wanted.messages[-1], AssistantMessage):
            words = "messages: an answer that is begun cannot be gone on with in a format, or with a call"
            raise ApiError(400, words, param="messages")
        if grammar:
            grammar = grammars.with_reasoning(grammar, builder.reasoning_format, built.phase, think=think)
        shown = builder.visible_control_tokens + (form.control_tokens if tools else [])
        n_logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None
        max_tokens = wanted.max_completion_tokens or wanted.max_tokens or served.settings.max_tokens
        request = served.generate_request(
            built.tokens, wanted, grammar=grammar, visible_control_tokens=shown, turn_starts=built.turn_starts,
            n_logprobs=n_logprobs, max_tokens=max_tokens, stops=builder.stop_strings,
        )  # fmt: skip
        choices = [
            Choice(
                i,
                builder.reasoning_format,
                built.phase,
                tools=form if tools else None,
                must_call=must and not form.trigger,
            )
            for i in range(request.n_sequences)
        ]
        return [request], choices

    def _grammar(self, tools: list[Tool], form: ToolFormat, *, must: bool) -> str:
        wanted = self._wanted
        rule = grammars.response_format_rule(wanted.response_format)
        if not tools:
            return rule
        if rule:
            raise ApiError(400, "response_format: with tools it cannot be had too", param="response_format")
        several = wanted.parallel_tool_calls is not False and not isinstance(wanted.tool_choice, NamedTool)
        return grammars.tool_call_rules(tools, form, required=must, parallel=several)

    def choice_objects(self, choices: list[Choice]) -> list[dict[str, Any]]:
        """The answers, whole, in the shape of the API."""
        found = []
        for i, choice in enumerate(choices):
            content = choice.content if choice.content or not choice.calls else None
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if choice.reasoning:
                message["reasoning_content"] = choice.reasoning
            if choice.calls:
                message["tool_calls"] = tool_call_objects(choice.calls)
            found.append({
                "index": i, "message": message, "finish_reason": choice.finish_reason,
                "logprobs": self._logprobs(choice.logprobs),
            })  # fmt: skip
        return found

    def _logprobs(self, found: Any) -> dict[str, Any] | None:
        return {"content": chat_logprobs(found), "refusal": None} if self._has_logprobs else None

    def chunk_choices(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """What is new, in the shape that it has in a stream."""
        new: dict[str, Any] = {}
        if delta.choice_index not in self._said:
            self._said.add(delta.choice_index)
            new = {"role": "assistant", "content": ""}
        if delta.content:
            new["content"] = delta.content
        if delta.reasoning:
            new["reasoning_content"] = delta.reasoning
        if delta.calls:
            new["tool_calls"] = tool_call_objects(delta.calls, delta.n_calls_before)
        found = []
        if new or delta.logprobs:
            found.append(self._part(delta, new, None))
        if delta.finish_reason is not None:
            found.append(self._part(delta._replace(logprobs=()), {}, delta.finish_reason))
        return found

    def _part(self, delta: ChoiceDelta, new: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(delta.logprobs) if delta.logprobs else None
        return {"index": delta.choice_index, "delta": new, "logprobs": logprobs, "finish_reason": finish_reason}


def select_tools(wanted: ChatRequest) -> tuple[list[Tool], bool]:
    """The tools that may be called, and whether one must be. Raises ApiError."""
    tools, choice = wanted.tools or [], wanted.tool_choice
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ApiError(400, f"tools: there are two functions {twice!r}", param="tools")
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in names:
            raise ApiError(400, f"tool_choice: there is no function {name!r}", param="tool_choice")
        return [tool for tool in tools if tool.function.name == name], True
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice: there are no tools to choose from", param="tool_choice")
    return ([] if choice == "none" else tools), choice == "required"


def reasoning_enabled(wanted: ChatRequest, *, default: bool | None) -> bool:
    """Whether the model is to think before it answers: as the request says, or as set, or else yes."""
    given = (wanted.chat_template_kwargs or {}).get("enable_thinking")
    if isinstance(given, bool):
        return given
    if wanted.reasoning_effort is not None:
        return wanted.reasoning_effort not in {"none", "minimal"}
    return True if default is None else default
