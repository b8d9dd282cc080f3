"""Chat completions (POST /v1/chat/completions): engine requests and response objects for conversations."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from edgechat.engine import protocol
from edgechat.engine.generation import ThinkingLimit, TokenLogprobs
from edgechat.engine.overflow import make_overflow_error
from edgechat.humanize import format_count
from edgechat.prompt.builder import BuiltPrompt, PromptBuilder
from edgechat.prompt.content_marks import NO_MARKS
from edgechat.prompt.output_rules import add_reasoning_rules
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.thinking import ReplySpace, choose_budget, choose_reasoning_format, make_thinking_limit
from edgechat.serve.chat_prompt import make_template_messages, make_tool_call_chunks, make_tool_call_objects
from edgechat.serve.choices import Choice, ChoiceDelta, make_chat_logprobs, make_stop_fields
from edgechat.serve.errors import ApiError
from edgechat.serve.message_schemas import AssistantMessage
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.output_format import check_supported, make_output_format
from edgechat.serve.reasoning import choose_thinking, find_server_default, is_reasoning_enabled
from edgechat.serve.response_builder import ResponseBuilder
from edgechat.serve.schemas import ChatRequest
from edgechat.serve.tool_choice import select_tools
from edgechat.serve.tool_support import PreparedTools, check_tools, prepare_tools


class ChatResponseBuilder(ResponseBuilder):
    """Builds the engine request and the response objects of one chat completion."""

    ID_PREFIX, OBJECT, CHUNK_OBJECT = "chatcmpl-", "chat.completion", "chat.completion.chunk"
    ALLOWS_PREFILL: ClassVar[bool] = False
    """Whether the last message may be from the assistant although a grammar restricts the reply."""

    def __init__(self, queue: ModelQueue, body: ChatRequest) -> None:
        super().__init__(queue, body)
        self._body = body
        self._grammar_param = "tools" if body.tools else "response_format" if body.response_format else None
        self._started_choices: set[int] = set()
        """Indexes of the choices whose first chunk was sent. Only the first chunk of a choice contains the role."""

    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        body, queue = self._body, self.queue
        check_supported(body)
        self._check_length()
        tools, must_call = select_tools(body)
        if tools and self.pick_options is not None:
            raise ApiError(
                400, "best_of: replies with tools cannot be picked from. Leave best_of out.", param="best_of"
            )
        think = is_reasoning_enabled(body, default=find_server_default(queue.settings))
        await asyncio.to_thread(check_tools, body.tools or ())
        output_format = await asyncio.to_thread(make_output_format, body)
        builder = await queue.get_prompt_builder()
        if not tools:
            has_native_tools = await asyncio.to_thread(lambda: builder.formats.has_native_tools)
            prepared_tools = PreparedTools(PromptOptions(think), has_native_tools)
        else:
            prepared_tools = await asyncio.to_thread(
                prepare_tools, builder, body, tools, must_call=must_call, think=think, output_format=output_format
            )
        messages = make_template_messages(body.messages, tools, has_native_tools=prepared_tools.has_native_format)
        self.question = next((m.content for m in reversed(messages) if m.role == "user"), "")
        prompt = await self.build_prompt(messages, prepared_tools.options)
        output_grammars = prepared_tools.grammars if tools else [output_format.rule] if output_format.rule else []
        if output_grammars and not self.ALLOWS_PREFILL and isinstance(body.messages[-1], AssistantMessage):
            message = "messages: with tools or response_format, the last message must not be from the assistant."
            raise ApiError(400, message, param="messages")
        reasoning_format = choose_reasoning_format(builder.reasoning_format, prompt.reply_format)
        marks = NO_MARKS
        if output_grammars:
            marks = await asyncio.to_thread(builder.formats.find_content_marks, prepared_tools.options)
        add_reasoning = functools.partial(
            add_reasoning_rules, reasoning_format=reasoning_format, phase=prompt.phase, think=think,
            marks=marks,
        )  # fmt: skip
        request = queue.build_generate_request(
            prompt.tokens, body, turn_starts=prompt.turn_starts,
            grammars=[add_reasoning(g) if isinstance(g, str) else g for g in output_grammars],
            stops=builder.stop_strings(prompt.reply_format),
            visible_control_tokens=builder.visible_control_tokens(prompt.reply_format),
            n_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            max_tokens=self._find_max_tokens(), thinking=self._make_thinking_limit(builder, prompt),
            stop_repetition=self._stops_repetition(),
        )  # fmt: skip
        tool_names = [tool.function.name for tool in tools]
        use_generic_calls = bool(tools) and not prepared_tools.has_native_format
        choices = [
            Choice(i, builder.create_reply_parser(prompt, tool_names, use_generic_calls=use_generic_calls))
            for i in range(self.count_replies(body))
        ]
        return [request], choices

    async def build_prompt(self, messages: Sequence[PromptMessage], options: PromptOptions) -> BuiltPrompt:
        """Render and tokenise the messages. Raises EdgechatError."""
        return await self.queue.build_prompt(messages, options)

    def _make_thinking_limit(self, builder: PromptBuilder, prompt: BuiltPrompt) -> ThinkingLimit | None:
        settings = self.queue.settings
        space = ReplySpace(builder.n_ctx, len(prompt.tokens), self._find_max_tokens(), is_strict=settings.strict)
        return make_thinking_limit(
            builder.reasoning_format, prompt.reply_format, prompt.phase,
            choose_budget(choose_thinking(self._body, settings), space), settings.thinking_end,
        )  # fmt: skip

    def _check_length(self) -> None:
        """Raise ContextOverflowError if the request has more messages and tools than the context has tokens."""
        n_messages, n_tools = len(self._body.messages), len(self._body.tools or ())
        properties = self.queue.model_properties
        if n_messages + n_tools > properties.n_ctx:
            subject = f"The request has {format_count(n_messages, 'message')} and {format_count(n_tools, 'tool')}"
            raise make_overflow_error(subject, properties.n_ctx, properties.n_ctx_train, "Send fewer of them")

    @property
    def grammar_param(self) -> str | None:
        return self._grammar_param

    def discard_prompt(self) -> None:
        self._body = ChatRequest(messages=[], logprobs=self._body.logprobs)

    def _find_max_tokens(self) -> int | None:
        body = self._body
        param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        if max_tokens == 0:
            raise ApiError(400, f"{param}: must be at least 1, or -1 for no limit, got 0.", param=param)
        return self.queue.choose_max_tokens(max_tokens)

    def _stops_repetition(self) -> bool:
        if self._body.stop_repetition is not None:
            return bool(self._body.stop_repetition)
        return self.queue.settings.stop_repetition and not self._body.ignore_eos

    def make_choice_objects(self, choices: list[Choice]) -> list[dict[str, Any]]:
        choice_objects = []
        for index, choice in enumerate(choices):
            content = choice.content if choice.content or not choice.calls else None
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if choice.reasoning:
                message |= _make_reasoning_fields(choice.reasoning)
            if choice.calls:
                message["tool_calls"] = make_tool_call_objects(choice.calls)
            choice_objects.append({
                "index": index, "message": message, "finish_reason": choice.finish_reason,
                "logprobs": self._make_logprobs_object(choice.logprobs), **make_stop_fields(choice.stop_reason),
            })  # fmt: skip
        return choice_objects

    def _make_logprobs_object(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        return {"content": make_chat_logprobs(logprobs), "refusal": None} if self._body.logprobs else None

    def make_progress_choice(self, choice_index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": None}
        return {"index": choice_index, "delta": delta, "logprobs": None, "finish_reason": None}

    def make_chunk_choices(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        delta_fields: dict[str, Any] = {}
        if delta.choice_index not in self._started_choices:
            self._started_choices.add(delta.choice_index)
            delta_fields = {"role": "assistant", "content": ""}
        if delta.content:
            delta_fields["content"] = delta.content
        if delta.reasoning:
            delta_fields |= _make_reasoning_fields(delta.reasoning)
        if delta.calls:
            delta_fields["tool_calls"] = make_tool_call_chunks(delta.calls)
        choice_objects = []
        if delta_fields or delta.logprobs:
            logprobs = self._make_logprobs_object(delta.logprobs) if delta.logprobs else None
            choice_objects.append({
                "index": delta.choice_index, "delta": delta_fields, "logprobs": logprobs, "finish_reason": None
            })  # fmt: skip
        if delta.finish_reason is not None:
            choice_objects.append({
                "index": delta.choice_index, "delta": {}, "logprobs": None, "finish_reason": delta.finish_reason,
                **make_stop_fields(delta.stop_reason),
            })  # fmt: skip
        return choice_objects


def _make_reasoning_fields(text: str) -> dict[str, str]:
    """Return the reasoning under the names of DeepSeek and llama-server, and of OpenRouter and newer vLLM."""
    return {"reasoning_content": text, "reasoning": text}
