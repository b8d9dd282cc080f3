"""From a path of messages to the tokens of a prompt, through the model's own template."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from edgechat.chat.attachments import texts, with_attachments
from edgechat.chat.messages import Message
from edgechat.chat.window import fit
from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.errors import ContextOverflowError, TemplateError
from edgechat.prompt import reasoning, renderer
from edgechat.prompt.reasoning import Place, ReasoningFormat
from edgechat.prompt.renderer import PromptMessage, RenderedPrompt, Renderer

# Of a token: runs of spaces are the longest ones.
_MOST_BYTES: Final = 128
# Two texts that no token begins both of.
_UNLIKE: Final = ("0", "x")


class PromptOptions(NamedTuple):
    """How the prompts of a conversation are built."""

    system_prompt: str
    think: bool
    max_tokens: int | None
    """Room that is kept for the answer."""
    previous_start: int
    """Index of the first message that the last prompt began with."""


class BuiltPrompt(NamedTuple):
    """Tokens, which messages are in them, and where the model's own words begin."""

    tokens: list[int]
    start: int
    """Index of the first message of the path that is in it."""
    place: Place
    turn_starts: list[int]
    """Positions that later prompts share with this one, whatever is said next; for memory that cannot rewind."""
    quoted: list[str]
    """Files that came with the last message, which other conversations may repeat."""


class PromptBuilder:
    """Builds prompts for one loaded model."""

    def __init__(self, engine: EngineClient, render: Renderer, loaded: Loaded, read: Callable[[str], bytes]) -> None:
        """`read` returns the bytes of an attachment by their hash."""
        self._engine = engine
        self._renderer = render
        self._loaded = loaded
        self._read = read
        self._template = loaded.chat_template or renderer.PLAIN_TEMPLATE
        self.form: ReasoningFormat | None = reasoning.detect(self._template)
        self.can_switch_reasoning = reasoning.switchable(self._template)
        self.stop = [renderer.PLAIN_STOP] if loaded.chat_template is None else []

    @property
    def shown_tokens(self) -> list[str]:
        """Control tokens that the engine must leave in the text."""
        return self.form.control_tokens if self.form is not None else []

    def build(
        self, path: Sequence[Message], manner: PromptOptions, files: Mapping[str, bytes] = MappingProxyType({})
    ) -> BuiltPrompt:
        """The prompt after which the model answers `path`, or goes on with the answer at its end.

        `files` are attachments that are not kept yet, by hash.

        Raises ContextOverflowError, TemplateError, EngineError.
        """

        def read(sha256: str) -> bytes:
            return files[sha256] if sha256 in files else self._read(sha256)

        said = path[:-1] if path and path[-1].role == "assistant" else path
        begun = path[-1] if len(said) < len(path) and (path[-1].text or path[-1].reasoning) else None
        built: dict[int, tuple[list[PromptMessage], list[int], Place]] = {}

        variables = self._variables(think=manner.think)
        answer = PromptMessage("assistant", begun.text, begun.reasoning) if begun is not None else None

        def count(start: int) -> int:
            if start not in built:
                messages = _messages(said, start, manner.system_prompt, read)
                built[start] = messages, *self._tokens(messages, answer, variables)
            return len(built[start][1])

        start = fit(
            said, n_ctx=self._loaded.n_ctx, max_tokens=manner.max_tokens, previous_start=manner.previous_start,
            count=count,
        )  # fmt: skip
        count(start)
        messages, tokens, place = built[start]
        quoted = texts(said[-1].attachments, read) if said else []
        return BuiltPrompt(tokens, start, place, self._turn_starts(messages, tokens, variables), quoted)

    def whole(
        self, messages: list[PromptMessage], tools: Sequence[Mapping[str, Any]] = (), *, think: bool
    ) -> BuiltPrompt:
        """The prompt of messages as they are, of which an answer at the end is gone on with.

        `tools` are what the model may call. Raises TemplateError, EngineError, ContextOverflowError for far too much.
        """
        check_length("".join(m.content for m in messages), self._loaded.n_ctx)
        last = messages[-1] if messages else None
        is_answer = last is not None and last.role == "assistant" and not last.extra
        said = messages[:-1] if is_answer else messages
        begun = last if is_answer and last is not None and (last.content or last.reasoning) else None
        variables = self._variables(think=think) | ({"tools": list(tools)} if tools else {})
        tokens, place = self._tokens(said, begun, variables)
        return BuiltPrompt(tokens, 0, place, self._turn_starts(said, tokens, variables), [])

    def _variables(self, *, think: bool) -> dict[str, Any]:
        return dict(reasoning.switches(self._template, on=think))

    def opening(self, path: Sequence[Message], manner: PromptOptions) -> list[int]:
        """What the prompt of every next message after `path` begins with. Raises as `build` does."""
        prompts = [self.build([*path, Message(id="", role="user", text=text)], manner).tokens for text in _UNLIKE]
        return prompts[0][: _n_common(*prompts)]

    def _turn_starts(self, messages: list[PromptMessage], tokens: list[int], variables: Mapping[str, Any]) -> list[int]:
        """Where another last message, and where a next turn, would begin: found by rendering such prompts."""
        if self._loaded.can_truncate or not messages:
            return []
        last = messages[-1]
        other = next(text for text in _UNLIKE if not last.content.startswith(text))
        positions = set()
        for prompt in (
            [*messages[:-1], PromptMessage(last.role, other)],
            [*messages, PromptMessage("assistant", other), PromptMessage("user", other)],
        ):
            with contextlib.suppress(TemplateError):
                positions.add(_n_common(tokens, self._tokens(prompt, None, variables)[0]))
        return sorted(positions - {0})

    def _tokens(
        self, messages: Sequence[PromptMessage], begun: PromptMessage | None, variables: Mapping[str, Any]
    ) -> tuple[list[int], Place]:
        try:
            prompt = self._render(messages, begun, variables)
        except TemplateError:
            folded = _without_system(messages)
            if folded is None:
                raise
            prompt = self._render(folded, begun, variables)  # some families know no system prompt
        place = reasoning.place_after(self.form, prompt.text)
        if begun is not None and self.form is not None:
            place = "answer" if begun.content else "reasoning"
        return self._engine.tokenize(prompt.text, prompt.guard), place

    def _render(
        self, messages: Sequence[PromptMessage], begun: PromptMessage | None, variables: Mapping[str, Any]
    ) -> RenderedPrompt:
        loaded = self._loaded
        return self._renderer.render(
            self._template, messages,
            bos=loaded.bos, eos=loaded.eos, control_tokens=loaded.control_tokens,
            variables=variables, form=self.form, begun=begun,
        )  # fmt: skip


def check_length(text: str, n_ctx: int) -> None:
    """Refuse what can be no prompt, before seconds are spent on counting its tokens. Raises ContextOverflowError."""
    n_bytes = len(text.encode("utf-8", "replace"))
    if n_bytes > n_ctx * _MOST_BYTES:
        raise ContextOverflowError(
            f"the prompt has {n_bytes} bytes, far more than fit in the {n_ctx} tokens of the context: shorten it"
        )


def _without_system(messages: Sequence[PromptMessage]) -> list[PromptMessage] | None:
    """The same with the system prompt before what the user says first; None if there are not both."""
    if len(messages) < 2 or (messages[0].role, messages[1].role) != ("system", "user"):  # noqa: PLR2004
        return None
    system, first, *rest = messages
    return [PromptMessage("user", f"{system.content}\n\n{first.content}"), *rest]


def _messages(
    said: Sequence[Message], start: int, system_prompt: str, read: Callable[[str], bytes]
) -> list[PromptMessage]:
    """What the template is given: the system prompt, then turns that alternate."""
    shown = list(said[start:])
    if said and said[0].role == "system":
        system_prompt, shown = said[0].text, list(said[max(start, 1) :])
    messages = [PromptMessage("system", system_prompt)] if system_prompt else []
    for message in shown:
        if message.role == "tool":  # what another program's tools said is not the model's to answer
            continue
        if message.role == "assistant" and not message.text:  # cut off before its first word: no example to follow
            continue
        content = with_attachments(message.text, message.attachments, read)
        last = messages[-1] if messages else None
        if last is not None and last.role == message.role:  # many templates refuse two in a row
            content = f"{last.content}\n\n{content}".strip()
            messages.pop()
        messages.append(PromptMessage(message.role, content, message.reasoning))
    return messages


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts share from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))  # noqa: B905
