"""Client of the render process: renders chat templates with a time limit, and guards control tokens in messages."""

from __future__ import annotations

import contextlib
import functools
import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from edgechat import process
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.pipe import MAX_FRAME_BYTES, Channel, kill_child, spawn_child, start_exchange
from edgechat.errors import EngineDiedError, TemplateError
from edgechat.prompt.early_process import RenderProcess
from edgechat.prompt.reasoning import ReasoningFormat, format_reply
from edgechat.prompt.render_protocol import ChatLibraryRequest, RenderReply, RenderRequest, encode
from edgechat.runtime.special_tokens import choose_guard, compile_pattern, guard_text

TIMEOUT_S: Final = 5.0
# Interval, in seconds, at which a waiting request checks whether it was cancelled.
_CANCEL_INTERVAL_S: Final = 0.1
# Maximum number of render processes that a request is sent to. The cause of a death may not be the template, but for
# example a shortage of memory.
_MAX_ATTEMPTS: Final = 2

# Chat template for model files without a chat template. The name appears in warnings.
PLAIN_TEMPLATE_NAME: Final = "plain"
PLAIN_TEMPLATE: Final = "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n\n{% endfor %}Assistant:"
PLAIN_STOP_STRING: Final = "\nUser:"

_REASONING_FIELD: Final = re.compile(
    r"reasoning_content|[.]thinking\b|[.]reasoning\b|['\"](thinking|reasoning|thought)['\"]"
)


class PromptMessage(msgspec.Struct, frozen=True):
    """Message of a prompt, which a chat template renders."""

    role: str
    content: str
    reasoning: str = ""
    """Reasoning of an earlier reply; the template decides whether to include it."""
    extra_fields: dict[str, Any] = {}
    """Additional fields for the template: `tool_calls` of a reply, `tool_call_id` of a tool result."""
    has_text_parts: bool = False
    """True to pass the content to the template as a list with one text part, as some multimodal models require."""


class RenderedPrompt(msgspec.Struct, frozen=True):
    """Text of a prompt before tokenisation."""

    text: str
    guard: str
    """Character that was inserted into control tokens in messages; "" if the messages have no control tokens."""
    reply_prefix: str | None = None
    """End of `text` that belongs to the reply, if the reply has begun; None for a new reply."""

    @property
    def unguarded_text(self) -> str:
        """Text of the prompt without the guard."""
        return self.text.replace(self.guard, "") if self.guard else self.text


class Renderer:
    """Renders chat templates in a child process, which is restarted after a crash or timeout. Thread-safe."""

    def __init__(self, started_process: RenderProcess | None = None) -> None:
        """Use `started_process`, or start a process later."""
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        if started_process is not None:
            self._child, self._channel = started_process
        self._is_closed = False
        self._lock = threading.Lock()
        self._render_lock = threading.Lock()

    def start(self) -> None:
        """Start the child process unless it is already running. Raises EngineDiedError after `close`."""
        with self._lock:
            if self._is_closed:
                raise EngineDiedError("The render process was closed. Restart edgechat.")
            if self._child is None:
                self._child, self._channel = spawn_child(["_render"], subprocess.DEVNULL)

    def prepare(self, template: str | None) -> None:
        """Start the child process, and compile a template in the background. Raises the same errors as `start`.

        Compiling takes 10 to 40 ms. If it happens while the model loads, it does not delay the first prompt.
        """
        self.start()
        if template is not None:
            threading.Thread(target=self._compile, args=(template,), name="compile template", daemon=True).start()

    def _compile(self, template: str) -> None:
        with contextlib.suppress(TemplateError, EngineDiedError):  # the first prompt reports the error
            self.render(template, [PromptMessage("user", "Hello")], bos="", eos="", control_tokens=[])

    def render(  # noqa: PLR0913  (one argument for each part of a prompt)
        self, template: str, messages: Sequence[PromptMessage], *, bos: str, eos: str,
        control_tokens: Sequence[str], variables: Mapping[str, Any] = MappingProxyType({}),
        reasoning_format: ReasoningFormat | None = None, reply_start: PromptMessage | None = None,
        cancellation: Cancellation | None = None,
    ) -> RenderedPrompt:  # fmt: skip
        """Render `messages` with a chat template, up to the position at which the reply begins.

        `variables` are additional template variables, such as `tools` (functions in the format of the OpenAI API). The
        text of `reply_start` is appended to the rendered prompt. Reasoning of earlier replies is passed in separate
        message fields. If the template reads none of these fields, reasoning is passed as part of the content, between
        the tags of `reasoning_format`, and the template decides whether to remove it.

        Raises TemplateError if the template fails, is rejected by the sandbox, or takes longer than `TIMEOUT_S`,
        RequestCancelledError after `cancellation`, and EngineDiedError if the render process cannot start.
        """
        inline_format = _find_inline_format(template, reasoning_format)
        reply = [] if reply_start is None else [reply_start]
        pattern = _compile_control_pattern(tuple(control_tokens))
        with _wrap_value_errors():
            guarded_messages, guard = guard_messages([*messages, *reply], control_tokens, inline_format, variables)
            request = RenderRequest(
                template=template, messages=guarded_messages[: len(messages)], bos=bos, eos=eos,
                variables=_guard_json(variables, pattern, guard),
            )  # fmt: skip
        text = self._send(request, cancellation)
        if reply_start is not None:
            guard_reply = functools.partial(guard_text, pattern=pattern, guard=guard)
            reasoning, content = guard_reply(reply_start.reasoning), guard_reply(reply_start.content)
            text += format_reply(reasoning_format, reasoning, content, text)
        return RenderedPrompt(text=text, guard=guard)

    def render_with_library(
        self, template: str, bos: str, eos: str, messages: Sequence[PromptMessage], control_tokens: Sequence[str],
        options: Mapping[str, Any], cancellation: Cancellation | None = None,
    ) -> RenderedPrompt:  # fmt: skip
        """Render `messages` with the chat library.

        `options` are additional fields of an `apply` request; with `continues_reply`, the last message is the beginning
        of the reply. Raises the same errors as `render`.
        """
        pattern = _compile_control_pattern(tuple(control_tokens))
        with _wrap_value_errors():
            guarded_messages, guard = guard_messages(messages, control_tokens, variables=options)
            request = {
                "op": "apply", "template": template, "bos": bos, "eos": eos,
                "messages": list(map(_make_openai_message, guarded_messages)), "now_s": int(time.time()),
                **_guard_json(options, pattern, guard),
            }  # fmt: skip
        library_reply = self._call_chat_library(request, cancellation)
        reply_prefix = library_reply["generation_prompt"] if options.get("continues_reply") else None
        return RenderedPrompt(library_reply["prompt"], guard, reply_prefix)

    def call_chat_library(self, **request: Any) -> Any:
        """Send a request to the chat library and return its reply; `native/src/chat/edgechat_chat.h` describes both.

        Raises TemplateError if the request fails or takes longer than `TIMEOUT_S`.
        """
        return self._call_chat_library(request, None)

    def _call_chat_library(self, request: Mapping[str, Any], cancellation: Cancellation | None) -> Any:
        with _wrap_value_errors():
            request_json = msgspec.json.encode(request)
        reply = msgspec.json.decode(self._send(ChatLibraryRequest(request_json), cancellation))
        if error_text := reply.get("error"):
            raise TemplateError(f"The model's chat template cannot be used: {' '.join(error_text.split())}")
        return reply

    def _send(self, request: RenderRequest | ChatLibraryRequest, cancellation: Cancellation | None) -> str:
        """Send a request to the render process and return the text of its reply. Raises the same errors as `render`."""
        cancellation = cancellation or Cancellation()
        with _wrap_value_errors():
            body = encode(request)
        if len(body) > MAX_FRAME_BYTES:
            raise TemplateError(
                f"Cannot render the prompt: it has {len(body)} bytes, and at most {MAX_FRAME_BYTES} are allowed. "
                "Shorten the prompt."
            )
        while not self._render_lock.acquire(timeout=_CANCEL_INTERVAL_S):
            cancellation.check()
        try:
            result = self._exchange(body, cancellation)
        finally:
            self._render_lock.release()
        if result.error:
            raise TemplateError(f"The model's chat template cannot be used: {result.error}")
        return result.text

    def _exchange(self, request_frame: bytes, cancellation: Cancellation) -> RenderReply:
        """Send a request to the render process and return its reply.

        If the process dies, the request is sent to a second process. Only if that process also dies, the template is
        considered the cause.
        """
        for _ in range(_MAX_ATTEMPTS):
            with cancellation.call_on_cancel(self.end_process):
                reply = self._exchange_once(request_frame)
            cancellation.check()
            if reply is not None:
                return msgspec.msgpack.decode(reply, type=RenderReply)
        raise TemplateError(f"The model's chat template crashed {_MAX_ATTEMPTS} render processes, one after the other")

    def _exchange_once(self, request_frame: bytes) -> bytes | None:
        """Send a request and return the body of the reply; return None if the render process died."""
        self.start()
        channel = self._channel
        if channel is None:  # `close` was called in another thread; the next attempt reports it
            return None
        try:
            reply = start_exchange(channel, request_frame).get(timeout=TIMEOUT_S)
        except queue.Empty:
            self.end_process()
            raise TemplateError(f"The model's chat template took more than {TIMEOUT_S:g} s and was stopped") from None
        if reply is None:
            is_upgraded = self._exit_code() == process.EXIT_VERSION_CHANGED
            self.end_process()
            if is_upgraded:
                raise TemplateError(process.UPGRADED_MESSAGE)
        return reply

    def _exit_code(self) -> int | None:
        child = self._child
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=1) if child is not None else None
        return None

    def close(self) -> None:
        """Kill the child process; `start` and `render` then raise EngineDiedError."""
        with self._lock:
            self._is_closed = True  # prevents a load in progress from starting another process
        self.end_process()

    def end_process(self) -> None:
        """Kill the child process, if there is one. The next `start` or `render` starts a new one."""
        with self._lock:
            child, self._child = self._child, None
            channel, self._channel = self._channel, None
        if child is not None and channel is not None:
            kill_child(child, channel)


@functools.lru_cache(4)
def _find_inline_format(template: str, reasoning_format: ReasoningFormat | None) -> ReasoningFormat | None:
    """Return the format of reasoning in the content; None if the template reads reasoning from a field."""
    if reasoning_format is None or _REASONING_FIELD.search(template):
        return None
    # Some templates remove the reasoning, but not the blank lines after it: `content.split('</think>')[-1] -%}`.
    end_tag = re.escape(reasoning_format.end_tag)
    separator_match = re.search(rf"[.]split\(['\"]{end_tag}['\"](, *1)?\)\[-?1\]\s*[-+]?%}}", template)
    return msgspec.structs.replace(reasoning_format, separator="") if separator_match else reasoning_format


def guard_messages(
    messages: Sequence[PromptMessage], control_tokens: Sequence[str], inline_format: ReasoningFormat | None = None,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[list[dict[str, Any]], str]:  # fmt: skip
    """Convert messages to dicts for a template, with a guard character inside every control token.

    Returns the dicts and the guard. The guard prevents the tokeniser from parsing user text as a control token. It is
    "" if neither the messages nor `variables` contain a control token. With `inline_format`, reasoning is put into the
    content, between the tags of that format. Raises TemplateError if the text already contains every possible guard.
    """
    pattern = _compile_control_pattern(tuple(control_tokens))
    guard = ""
    texts = [text for m in messages for text in (m.content, m.reasoning, *_find_strings(m.extra_fields))]
    texts += _find_strings(variables)
    if any(pattern.search(text) for text in texts):
        guard = choose_guard("".join(texts))
        if not guard:
            raise TemplateError(
                "The messages contain every noncharacter from U+FDD0 to U+FDEF. Remove at least one of these."
            )
    return [_make_template_message(m, pattern, guard, inline_format) for m in messages], guard


def _find_strings(value: object) -> Iterator[str]:
    """Yield all strings in a JSON value, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _find_strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _find_strings(item)


def _guard_json(value: Any, pattern: re.Pattern[str], guard: str) -> Any:
    """Return a copy of a JSON value with `guard` inside every control token of its strings."""
    if isinstance(value, str):
        return guard_text(value, pattern, guard)
    if isinstance(value, Mapping):
        return {guard_text(key, pattern, guard): _guard_json(item, pattern, guard) for key, item in value.items()}
    return [_guard_json(item, pattern, guard) for item in value] if isinstance(value, list) else value


@functools.lru_cache(4)
def _compile_control_pattern(control_tokens: tuple[str, ...]) -> re.Pattern[str]:
    return compile_pattern([token for token in control_tokens if len(token) > 1])


def _make_template_message(
    message: PromptMessage, pattern: re.Pattern[str], guard: str, inline_format: ReasoningFormat | None
) -> dict[str, Any]:
    content, reasoning = guard_text(message.content, pattern, guard), guard_text(message.reasoning, pattern, guard)
    fields = {"role": message.role, "content": content, **_guard_json(message.extra_fields, pattern, guard)}
    if reasoning and inline_format is not None:
        fields["content"] = format_reply(inline_format, reasoning, content, is_finished=True)
    elif reasoning:
        fields |= {"reasoning_content": reasoning, "reasoning": reasoning, "thinking": reasoning, "thought": reasoning}
    if message.has_text_parts:
        fields["content"] = [{"type": "text", "text": fields["content"]}]
    return fields


@contextlib.contextmanager
def _wrap_value_errors() -> Iterator[None]:
    """Raise TemplateError in place of the exceptions for values that cannot be sent to the render process."""
    try:
        yield
    except (OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise TemplateError(
            "Cannot render the prompt: a number is too large, a value is nested too deeply, or a text is not valid "
            "Unicode."
        ) from error


def _make_openai_message(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the fields of a message for a template to a message of the OpenAI API, as the chat library reads it."""
    names = ("role", "content", "reasoning_content", "tool_call_id", "name")
    message = {name: fields[name] for name in names if name in fields}
    if calls := fields.get("tool_calls"):
        message["tool_calls"] = [
            call
            | {
                "function": call["function"]
                | {"arguments": msgspec.json.encode(call["function"]["arguments"]).decode()}
            }
            for call in calls
        ]
    return message
