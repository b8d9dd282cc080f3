"""Prompt builder: converts messages to tokens with the chat template of the loaded model."""

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

# Maximum length of a token in bytes. The longest tokens of common vocabularies are runs of spaces.
_MAX_TOKEN_BYTES: Final = 128
# Two texts whose first tokens differ in every vocabulary, to find where prompts diverge.
DISTINCT_TEXTS: Final = ("0", "x")


class PromptOptions(NamedTuple):
    """Template options of one prompt."""

    think: bool
    """True to enable reasoning before the content; ignored if the template cannot switch reasoning."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions that the model may call, in the format of the OpenAI API."""


class BuiltPrompt(NamedTuple):
    """Tokens of a prompt, and the phase in which the reply begins."""

    tokens: list[int]
    phase: ReplyPhase
    """Phase of the reply's first token, for `ReasoningSplitter`."""
    turn_starts: list[int]
    """Token positions at which later prompts will diverge from this prompt. Empty if the KV cache can be truncated."""


class PromptBuilder:
    """Builder of prompts for one loaded model. Thread-safe."""

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
        """Control tokens that mark reasoning, which the engine must not remove from its output."""
        return self.reasoning_format.control_tokens if self.reasoning_format is not None else []

    def build(self, messages: Sequence[PromptMessage], options: PromptOptions) -> BuiltPrompt:
        """Build the prompt of `messages`. The model continues the last message if it is a reply without tool calls.

        Raises TemplateError, EngineError, and ContextOverflowError for text that is too long to tokenise.
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
        """Return the tokens of a prompt, including `reply_start` at its end, and the phase of the next token.

        Raises TemplateError, EngineError.
        """
        if reply_start is not None and not (reply_start.content or reply_start.reasoning):
            reply_start = None
        try:
            prompt = self._render(messages, reply_start, options)
        except TemplateError:
            # The templates of some model families reject a system prompt.
            folded_messages = fold_system_prompt(messages)
            if folded_messages is None:
                raise
            prompt = self._render(folded_messages, reply_start, options)
        phase = reasoning.phase_after_prompt(self.reasoning_format, prompt.text)
        if reply_start is not None and self.reasoning_format is not None:
            phase = "content" if reply_start.content else "reasoning"
        return self._engine.tokenize(prompt.text, prompt.guard), phase

    def turn_starts(self, messages: Sequence[PromptMessage], tokens: list[int], options: PromptOptions) -> list[int]:
        """Return the token positions at which later prompts will diverge from `tokens`.

        Later prompts have another last message, or one more turn; both are rendered to find the positions. Empty if the
        model's KV cache can be truncated at any position.
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
    """Raise ContextOverflowError if the length of `text` shows, before tokenisation, that it exceeds `n_ctx` tokens."""
    n_bytes = len(text.encode("utf-8", "replace"))
    if n_bytes > n_ctx * _MAX_TOKEN_BYTES:
        raise ContextOverflowError(
            f"The prompt has {n_bytes} bytes, which cannot fit in the context of {n_ctx} tokens. Shorten the prompt."
        )
