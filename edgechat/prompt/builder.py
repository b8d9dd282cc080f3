"""Prompt builder: converts messages to tokens with the chat template of the loaded model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.errors import ContextOverflowError, TemplateError
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prompt import reasoning, renderer
from edgechat.prompt.reasoning import ReasoningFormat, ReplyPhase
from edgechat.prompt.renderer import PromptMessage, RenderedPrompt, Renderer
from edgechat.prompt.roles import fold_system_prompt

# Maximum length of a token in bytes. The longest tokens of common vocabularies are runs of spaces (1,024 in Aquila).
_MAX_TOKEN_BYTES: Final = 1024
# The tokens of longer prompts are not counted, but refused after this multiple of the context length.
_MAX_COUNTED_CONTEXTS: Final = 4
# Two texts whose first tokens differ in every vocabulary, used to find where prompts diverge.
DISTINCT_TEXTS: Final = ("0", "x")


class PromptOptions(NamedTuple):
    """Template options of one prompt."""

    think: bool
    """True to enable reasoning before the content; ignored if the template cannot turn reasoning on or off."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions that the model may call, in the format of the OpenAI API."""


class BuiltPrompt(NamedTuple):
    """Tokens of a prompt, and the initial phase for parsing the reply to it."""

    tokens: list[int]
    phase: ReplyPhase
    """Initial phase of the reply's `ReasoningSplitter`: "reasoning" if the prompt ends with the start tag."""
    turn_starts: list[int]
    """Token positions at which later prompts will diverge; empty if the KV cache can be truncated at any token."""


class PromptBuilder:
    """Builder of prompts for one loaded model. Thread-safe."""

    def __init__(self, engine: EngineClient, template_renderer: Renderer, model_properties: Loaded) -> None:
        self._engine = engine
        self._renderer = template_renderer
        self._model_properties = model_properties
        self._template = model_properties.chat_template or renderer.PLAIN_TEMPLATE
        self.reasoning_format: ReasoningFormat | None = reasoning.detect_reasoning_format(self._template)
        self.can_switch_reasoning = reasoning.can_switch_reasoning(self._template)
        self.stop_strings = [renderer.PLAIN_STOP_STRING] if model_properties.chat_template is None else []

    @property
    def n_ctx(self) -> int:
        """Context length of the loaded model, in tokens."""
        return self._model_properties.n_ctx

    @property
    def visible_control_tokens(self) -> list[str]:
        """Control tokens that mark reasoning, which the engine must not remove from its output."""
        return self.reasoning_format.control_tokens if self.reasoning_format is not None else []

    def build(
        self, messages: Sequence[PromptMessage], options: PromptOptions, cancellation: Cancellation | None = None
    ) -> BuiltPrompt:
        """Build the prompt of `messages`. The model continues the last message if it is a reply without tool calls.

        Raises TemplateError, EngineError, RequestCancelledError after `cancellation`, and ContextOverflowError if the
        prompt is several times longer than the context.
        """
        check_prompt_bytes("".join(m.content for m in messages), self.n_ctx)
        reply_start = None
        if messages and messages[-1].role == "assistant" and not messages[-1].extra_fields:
            *messages, reply_start = messages
        tokens, phase = self.tokenize(messages, reply_start, options, cancellation)
        return BuiltPrompt(tokens, phase, self.turn_starts(messages, tokens, options, cancellation))

    def tokenize(
        self, messages: Sequence[PromptMessage], reply_start: PromptMessage | None, options: PromptOptions,
        cancellation: Cancellation | None = None,
    ) -> tuple[list[int], ReplyPhase]:  # fmt: skip
        """Return the tokens of a prompt, including `reply_start` at its end, and the phase of the next token.

        Raises the errors of `build`.
        """
        if reply_start is not None and not (reply_start.content or reply_start.reasoning):
            reply_start = None
        try:
            prompt = self._render(messages, reply_start, options, cancellation)
        except TemplateError:
            # The templates of some model families reject a system prompt.
            folded_messages = fold_system_prompt(messages)
            if folded_messages is None:
                raise
            prompt = self._render(folded_messages, reply_start, options, cancellation)
        phase = reasoning.find_phase_after_prompt(self.reasoning_format, prompt.text)
        if reply_start is not None and self.reasoning_format is not None:
            phase = "content" if reply_start.content else "reasoning"
        return self.tokenize_text(prompt.text, prompt.guard, cancellation), phase

    def tokenize_text(self, text: str, guard: str = "", cancellation: Cancellation | None = None) -> list[int]:
        """Return the tokens of a rendered prompt; `guard` is described in `protocol.Generate`.

        Raises EngineError, RequestCancelledError, and ContextOverflowError if the text is several times longer than the
        context.
        """
        check_prompt_bytes(text, self.n_ctx)
        max_tokens = _MAX_COUNTED_CONTEXTS * self.n_ctx
        return self._engine.tokenize(text, guard, max_tokens=max_tokens, cancellation=cancellation)

    def turn_starts(
        self, messages: Sequence[PromptMessage], tokens: list[int], options: PromptOptions,
        cancellation: Cancellation | None = None,
    ) -> list[int]:  # fmt: skip
        """Return the token positions at which later prompts will diverge from `tokens`.

        A later prompt has a different last message or one more turn. Both kinds are rendered to find the positions. The
        list is empty if the model's KV cache can be truncated at any token.
        """
        if self._model_properties.can_truncate or not messages:
            return []
        last_message = messages[-1]
        text = next(text for text in DISTINCT_TEXTS if not last_message.content.startswith(text))
        positions = set()
        for prompt in (
            [*messages[:-1], PromptMessage(last_message.role, text)],
            [*messages, PromptMessage("assistant", text), PromptMessage("user", text)],
        ):
            with contextlib.suppress(TemplateError, ContextOverflowError):
                other_tokens, _ = self.tokenize(prompt, None, options, cancellation)
                positions.add(common_prefix_length(tokens, other_tokens))
        return sorted(positions - {0})

    def _render(
        self, messages: Sequence[PromptMessage], reply_start: PromptMessage | None, options: PromptOptions,
        cancellation: Cancellation | None,
    ) -> RenderedPrompt:  # fmt: skip
        model_properties = self._model_properties
        variables: dict[str, Any] = dict(reasoning.make_reasoning_variables(self._template, on=options.think))
        if options.tools:
            variables["tools"] = list(options.tools)
        return self._renderer.render(
            self._template, messages,
            bos=model_properties.bos, eos=model_properties.eos, control_tokens=model_properties.control_tokens,
            variables=variables, reasoning_format=self.reasoning_format, reply_start=reply_start,
            cancellation=cancellation,
        )  # fmt: skip


def check_prompt_bytes(text: str, n_ctx: int) -> None:
    """Raise ContextOverflowError if `text` has more bytes than `n_ctx` tokens can have; avoids a slow tokenisation."""
    n_bytes = len(text.encode("utf-8", "replace"))
    if n_bytes > n_ctx * _MAX_TOKEN_BYTES:
        raise ContextOverflowError(
            f"The prompt has {n_bytes} bytes, which cannot fit in the context of {n_ctx} tokens. Shorten the prompt."
        )
