"""The parent's side of template rendering: bounded in time, and it never lets user text become a command."""

from __future__ import annotations

import contextlib
import functools
import queue
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from edgechat import process
from edgechat.engine.pipe import Channel, spawn_child
from edgechat.engine.protocol import frame
from edgechat.errors import TemplateError
from edgechat.prompt.reasoning import ReasoningFormat, joined

TIMEOUT_S: Final = 5.0

# For models without a template. Named, so that a warning can say what is used instead.
PLAIN_NAME: Final = "plain"
PLAIN_TEMPLATE: Final = "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n\n{% endfor %}Assistant:"
PLAIN_STOP: Final = "\nUser:"

_KNOWS_REASONING: Final = re.compile(r"reasoning_content|[.]thinking\b|[.]reasoning\b|['\"](thinking|reasoning)['\"]")

# Noncharacters of Unicode: valid in a str, never part of a text.
_GUARDS: Final = tuple(chr(c) for c in range(0xFDD0, 0xFDF0))


class PromptMessage(msgspec.Struct, frozen=True):
    """A message as a template sees it."""

    role: str
    content: str
    reasoning: str = ""
    """Reasoning of an earlier answer, for templates that decide themselves what becomes of it."""
    extra: dict[str, Any] = {}
    """What else a template may look at: calls of tools, and whose result this is."""


class RenderedPrompt(msgspec.Struct, frozen=True):
    """A rendered conversation."""

    text: str
    guard: str
    """The character inside every control token's text that came from a message; "" if there was none."""


class Renderer:
    """Renders conversations in a child process, which is started early and again after it was killed."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    def start(self) -> None:
        """Have the child started, so that it is ready when it is needed."""
        with self._lock:
            if self._child is None:
                self._child, self._channel = spawn_child(["_render"], subprocess.DEVNULL)

    def render(
        self, template: str, messages: Sequence[PromptMessage], *, bos: str, eos: str,
        control_tokens: Sequence[str], variables: Mapping[str, Any] = MappingProxyType({}),
        form: ReasoningFormat | None = None, begun: PromptMessage | None = None,
    ) -> RenderedPrompt:  # fmt: skip
        """Render `messages` with a model's template; `variables` are what it can be told besides.

        Earlier reasoning is handed over under the names that templates know. One that knows none takes it out of
        the content itself, so it gets that as the model wrote it, with the marks of `form`. `begun` is an answer to
        go on with. Among `variables` may be `tools`, functions that the model may call, in the shape of the OpenAI API.

        Raises TemplateError if the template fails, is refused by the sandbox, or takes over `TIMEOUT_S`, and
        EngineDiedError if there is no program any more that could render it.
        """
        marks = None if _KNOWS_REASONING.search(template) else form
        last = [] if begun is None else [begun]
        guarded, guard = guard_messages([*messages, *last], control_tokens, marks, variables)
        if begun is not None:
            guarded.pop()
        pattern = _pattern(control_tokens)
        request = {
            "template": template, "messages": guarded, "bos": bos, "eos": eos,
            "variables": _guarded(variables, pattern, guard),
        }  # fmt: skip
        try:
            body = msgspec.msgpack.encode(request)
        except (OverflowError, RecursionError) as too_much:
            raise TemplateError(
                f"what is to be rendered has a number too large, or is nested too deeply: {too_much}"
            ) from too_much
        with self._one_at_a_time:
            reply = self._exchange(body)
        error = reply.get("error")
        if error:
            raise TemplateError(f"the model's chat template cannot be used: {error}")
        text = str(reply["text"])
        if begun is not None:
            hide = functools.partial(guard_text, pattern=pattern, guard=guard)
            text += joined(form, hide(begun.reasoning), hide(begun.content), text)
        return RenderedPrompt(text=text, guard=guard)

    def _exchange(self, body: bytes) -> dict[str, str]:
        self.start()
        channel = self._channel
        if channel is None:
            raise TemplateError("the chat template cannot be rendered: its process does not start")
        replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

        def exchange() -> None:
            sent = channel.write(frame(body))
            replies.put(channel.read() if sent else None)

        threading.Thread(target=exchange, name="render", daemon=True).start()
        try:
            reply = replies.get(timeout=TIMEOUT_S)
        except queue.Empty:
            self.close()
            raise TemplateError(f"the model's chat template took more than {TIMEOUT_S:g} s and was stopped") from None
        if reply is None:
            changed = self._exit_code() == process.CHANGED
            self.close()
            raise TemplateError(
                process.UPGRADED if changed else "the model's chat template brought down the process that renders it"
            )
        return msgspec.msgpack.decode(reply, type=dict[str, str])

    def _exit_code(self) -> int | None:
        child = self._child
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=1) if child is not None else None
        return None

    def close(self) -> None:
        """End the child; a later `render` starts another."""
        with self._lock:
            child, self._child = self._child, None
            channel, self._channel = self._channel, None
        if child is not None and channel is not None:
            child.kill()
            child.wait()
            channel.close()


def guard_messages(
    messages: Sequence[PromptMessage], control_tokens: Sequence[str], marks: ReasoningFormat | None = None,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[list[dict[str, Any]], str]:  # fmt: skip
    """Messages for a template, with a guard character inside every control token's text; and that guard.

    The guard is "" where no message, and no variable, holds such a text, which is nearly always.
    """
    pattern = _pattern(control_tokens)
    guard = ""
    texts = [text for m in messages for text in (m.content, m.reasoning, *_texts(m.extra))]
    texts += _texts(variables)
    if pattern and any(re.search(pattern, text) for text in texts):
        used = "".join(texts)
        guard = next((g for g in _GUARDS if g not in used), "")
        if not guard:
            raise TemplateError("a message holds every noncharacter of Unicode: remove some of them")
    return [_wire(m, pattern, guard, marks) for m in messages], guard


def _texts(value: object) -> Iterator[str]:
    """All texts in a JSON value, names among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield name
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _guarded(value: Any, pattern: str, guard: str) -> Any:
    """A JSON value with the guard inside every match in its texts."""
    if isinstance(value, str):
        return guard_text(value, pattern, guard)
    if isinstance(value, Mapping):
        return {guard_text(name, pattern, guard): _guarded(each, pattern, guard) for name, each in value.items()}
    return [_guarded(each, pattern, guard) for each in value] if isinstance(value, list) else value


def _pattern(control_tokens: Sequence[str]) -> str:
    # Longest first: of two tokens that start alike, the longer one must not be left whole.
    return "|".join(re.escape(t) for t in sorted(control_tokens, key=len, reverse=True) if len(t) > 1)


def _wire(message: PromptMessage, pattern: str, guard: str, marks: ReasoningFormat | None) -> dict[str, Any]:
    content, reasoning = guard_text(message.content, pattern, guard), guard_text(message.reasoning, pattern, guard)
    wire = {"role": message.role, "content": content, **_guarded(message.extra, pattern, guard)}
    if reasoning and marks is not None:
        return wire | {"content": joined(marks, reasoning, content)}
    if reasoning:
        wire |= {"reasoning_content": reasoning, "reasoning": reasoning, "thinking": reasoning}
    return wire


def guard_text(content: str, pattern: str, guard: str) -> str:
    """`content` with the guard inside every match of `pattern`; with no guard, as it is."""
    if not guard:
        return content
    # Breaking one token up may complete another around it: again, until there is none. Every pass puts a
    # guard into each match, and no token holds a guard, so this ends.
    while (again := re.sub(pattern, lambda m: m[0][0] + guard + m[0][1:], content)) != content:
        content = again
    return content
