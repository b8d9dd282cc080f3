"""Builds the tokens of prompts from messages, with the chat template of the loaded model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.errors import ContextOverflowError, TemplateError
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prompt import reasoning, renderer
from edgechat.prompt.reasoning import ReasoningFormat, ReplyPhase
from edgechat.prompt.renderer import PromptMessage, RenderedPrompt, Renderer
from edgechat.prompt.roles import fold_system_prompt

# The longest tokens of common vocabularies are runs of spaces.
_MAX_TOKEN_BYTES: Final = 128
# Two texts whose first tokens differ in every vocabulary.
DISTINCT_TEXTS: Final = ("0", "x")


class PromptOptions(NamedTuple):
    """Template options of one prompt."""

    think: bool
    """Ask for reasoning before the content, where the template can switch it."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions that the model may call, in the shape of the OpenAI API."""


class BuiltPrompt(NamedTuple):
    """The tokens of a prompt, and how output after it is to be read."""

    tokens: list[int]
    phase: ReplyPhase
    """Phase in which the model's output begins."""
    turn_starts: list[int]
    """Token positions at which later prompts will diverge from this one. Empty if the model's KV cache can rewind."""


class PromptBuilder:
    """Builds prompts for one loaded model. Thread-safe."""

    def __init__(self, engine: EngineClient, render: Renderer, loaded: Loaded) -> None:
        self._engine = engine
        self._renderer = render
        self._loaded = loaded
        self._template = loaded.chat_template or renderer.PLAIN_TEMPLATE
        self.reasoning_format: ReasoningFormat | None = reasoning.detect_reasoning_format(self._template)
        self.can_switch_reasoning = reasoning.can_switch_reasoning(self._template)
        self.stop_strings = [renderer.PLAIN_STOP] if loaded.chat_template is None else []

    @property
    def n_ctx(self) -> int:
        """Context length of the model as loaded, in tokens."""
        return self._loaded.n_ctx

    @property
    def visible_control_tokens(self) -> list[str]:
        """Control tokens that the engine must keep in its output, because they mark the reasoning."""
        return self.reasoning_format.control_tokens if self.reasoning_format is not None else []

    def build(self, messages: Sequence[PromptMessage], options: PromptOptions) -> BuiltPrompt:
        """Build the prompt of `messages`. If the last one is a reply without tool calls, the model continues it.

        Raises TemplateError, EngineError, and ContextOverflowError for text too long to tokenize.
        """
        check_prompt_bytes("".join(m.content for m in messages), self.n_ctx)
        reply_start = None
        if messages and messages[-1].role == "assistant" and not messages[-1].extra:
            *messages, reply_start = messages
        tokens, phase = self.tokenize(messages, reply_start, options)
        return BuiltPrompt(tokens, phase, self.turn_starts(messages, tokens, options))

    def tokenize(
        self, messages: Sequence[PromptMessage], reply_start: PromptMessage | None, options: PromptOptions
    ) -> tuple[list[int], ReplyPhase]:
        """Return the tokens of a prompt up to and including `reply_start`, and the phase after them.

        Raises TemplateError, EngineError.
        """
        if reply_start is not None and not (reply_start.content or reply_start.reasoning):
            reply_start = None
        try:
            prompt = self._render(messages, reply_start, options)
        except TemplateError:
            folded = fold_system_prompt(messages)  # templates of some families refuse a system prompt
            if folded is None:
                raise
            prompt = self._render(folded, reply_start, options)
        phase = reasoning.phase_after_prompt(self.reasoning_format, prompt.text)
        if reply_start is not None and self.reasoning_format is not None:
            phase = "content" if reply_start.content else "reasoning"
        return self._engine.tokenize(prompt.text, prompt.guard), phase

    def turn_starts(self, messages: Sequence[PromptMessage], tokens: list[int], options: PromptOptions) -> list[int]:
        """Return where a different last message, and the next turn, would diverge from `tokens`.

        Found by rendering such prompts. Empty if the model's KV cache can be truncated anywhere.
        """
        if self._loaded.can_truncate or not messages:
            return []
        last = messages[-1]
        text = next(text for text in DISTINCT_TEXTS if not last.content.startswith(text))
        positions = set()
        for prompt in (
            [*messages[:-1], PromptMessage(last.role, text)],
            [*messages, PromptMessage("assistant", text), PromptMessage("user", text)],
        ):
            with contextlib.suppress(TemplateError):
                positions.add(common_prefix_length(tokens, self.tokenize(prompt, None, options)[0]))
        return sorted(positions - {0})

    def _render(
        self, messages: Sequence[PromptMessage], reply_start: PromptMessage | None, options: PromptOptions
    ) -> RenderedPrompt:
        loaded = self._loaded
        variables: dict[str, Any] = dict(reasoning.reasoning_variables(self._template, on=options.think))
        if options.tools:
            variables["tools"] = list(options.tools)
        return self._renderer.render(
            self._template, messages,
            bos=loaded.bos, eos=loaded.eos, control_tokens=loaded.control_tokens,
            variables=variables, reasoning_format=self.reasoning_format, reply_start=reply_start,
        )  # fmt: skip


def check_prompt_bytes(text: str, n_ctx: int) -> None:
    """Raise ContextOverflowError for text that cannot fit in `n_ctx` tokens, without tokenizing it for seconds."""
    n_bytes = len(text.encode("utf-8", "replace"))
    if n_bytes > n_ctx * _MAX_TOKEN_BYTES:
        raise ContextOverflowError(
            f"The prompt has {n_bytes} bytes, far more than fit in the {n_ctx} tokens of the context: shorten it"
        )
