"""Prompt builder: converts messages to tokens with the chat template of the loaded model."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.engine.overflow import make_overflow_error
from edgechat.engine.protocol import Loaded
from edgechat.errors import ContextOverflowError, EngineDiedError, TemplateError
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prompt import reasoning, renderer
from edgechat.prompt.inline_thoughts import find_searched_tags, split_reasoning, split_reply_start
from edgechat.prompt.omissions import OmissionFinder
from edgechat.prompt.reasoning import ReasoningFormat, ReplyPhase
from edgechat.prompt.renderer import PromptMessage, RenderedPrompt, Renderer
from edgechat.prompt.reply_format import ReplyFormat, TemplateInfo
from edgechat.prompt.reply_formats import PromptOptions, ReplyFormats
from edgechat.prompt.reply_parser import ReplyParser
from edgechat.prompt.thinking import choose_reasoning_format
from edgechat.prompt.thoughts import KNOWN_TAGS, ThoughtFinder
from edgechat.prompt.variants import iterate_orders, iterate_variants

# Maximum length of a token in bytes. The longest tokens of common vocabularies are runs of spaces (1,024 in Aquila).
_MAX_TOKEN_BYTES: Final = 1024
# Longer prompts, in multiples of the context length, are refused without counting all their tokens.
_MAX_COUNTED_CONTEXTS: Final = 4
# Two texts whose first tokens differ in every vocabulary, used to find where prompts diverge.
DISTINCT_TEXTS: Final = ("0", "x")


class BuiltPrompt(NamedTuple):
    """Tokens of a prompt, and the information needed to parse the reply."""

    tokens: list[int]
    phase: ReplyPhase
    """Where the reply begins: "reasoning" if the prompt ends with the start tag of the reasoning."""
    reply_format: ReplyFormat
    generation_prompt: str | None
    """End of the prompt that belongs to the reply; None if it is `reply_format.generation_prompt`."""
    turn_starts: list[int]
    """Token positions at which later prompts will diverge; empty if the KV cache can be truncated at any token."""
    text: str = ""
    """The rendered prompt."""


class PromptBuilder:
    """Builds prompts for one loaded model. Thread-safe."""

    def __init__(self, engine: EngineClient, template_renderer: Renderer, model_properties: Loaded) -> None:
        self._engine = engine
        self._renderer = template_renderer
        self._model_properties = model_properties
        self._template = model_properties.chat_template or renderer.PLAIN_TEMPLATE
        self.reasoning_format: ReasoningFormat | None = reasoning.detect_reasoning_format(self._template)
        self.can_switch_reasoning = reasoning.can_switch_reasoning(self._template)
        # Texts that have a meaning for the tokeniser or the template, and must be guarded in messages.
        self._guarded_texts = [*model_properties.control_tokens, *find_searched_tags(self._template)]
        self._template_info = TemplateInfo(self._template, model_properties.bos, model_properties.eos)
        self._omissions = OmissionFinder()
        self.formats = ReplyFormats(template_renderer, self._template_info)

    @property
    def can_reason(self) -> bool:
        """False if the template is known to have no format of reasoning, so that no limit of reasoning applies."""
        if self.reasoning_format is not None:
            return True
        with contextlib.suppress(TemplateError, EngineDiedError):  # the next prompt reports the error
            return choose_reasoning_format(None, self.formats.find(PromptOptions(think=False))) is not None
        return True

    @property
    def n_ctx_train(self) -> int:
        """Context length in tokens that the model was trained with; 0 if it is unknown."""
        return self._model_properties.n_ctx_train

    @property
    def n_ctx(self) -> int:
        """Context length of the loaded model, in tokens."""
        return self._model_properties.n_ctx

    @property
    def max_text_tokens(self) -> int:
        """Maximum number of tokens of a text that `tokenize_text` converts."""
        return _MAX_COUNTED_CONTEXTS * self.n_ctx

    def visible_control_tokens(self, reply_format: ReplyFormat) -> list[str]:
        """Return the control tokens that mark parts of a reply, which the engine must not remove from its output."""
        known_tags = {tag for pair in KNOWN_TAGS for tag in pair} & set(self._model_properties.control_tokens)
        format_tokens = [token for text in reply_format.control_tokens for token in self._find_control_tokens(text)]
        return sorted({*known_tags, *format_tokens})

    def _find_control_tokens(self, text: str) -> list[str]:
        return [token for token in self._model_properties.control_tokens if token and token in text]

    def stop_strings(self, reply_format: ReplyFormat) -> list[str]:
        """Return the strings that end a reply."""
        is_plain = self._model_properties.chat_template is None
        return [*reply_format.stop_strings, *([renderer.PLAIN_STOP_STRING] if is_plain else [])]

    def create_reply_parser(
        self, prompt: BuiltPrompt | None, tool_names: Collection[str] = (), *, use_generic_calls: bool = False
    ) -> ReplyParser:
        """Create the parser of one reply to a prompt, or of an empty reply if `prompt` is None.

        `tool_names` are the tools that the model can call. With `use_generic_calls`, the calls have the generic format.
        """
        reply_format = prompt.reply_format if prompt is not None else ReplyFormat()
        tags = [
            (reply_format.thinking_start, end) for end in reply_format.thinking_ends[:1] if reply_format.thinking_start
        ]
        thoughts = ThoughtFinder(self._template, self._model_properties.control_tokens, tags)
        generation_prompt = prompt.generation_prompt if prompt is not None else None
        return ReplyParser(
            self._renderer.call_chat_library, reply_format, thoughts, generation_prompt=generation_prompt,
            tool_names=tool_names, use_generic_calls=use_generic_calls,
        )  # fmt: skip

    def build(
        self, messages: Sequence[PromptMessage], options: PromptOptions, cancellation: Cancellation | None = None
    ) -> BuiltPrompt:
        """Build the prompt of `messages`. The model continues the last message if it is a reply without tool calls.

        Raises TemplateError, EngineError, RequestCancelledError after `cancellation`, and ContextOverflowError if the
        prompt is several times longer than the context.
        """
        check_prompt_bytes("".join(m.content for m in messages), self._model_properties)
        reply_start = None
        if messages and messages[-1].role == "assistant" and not messages[-1].extra_fields:
            *messages, reply_start = messages
        prompt = self.tokenize(messages, reply_start, options, cancellation)
        return prompt._replace(turn_starts=self.turn_starts(messages, prompt.tokens, options, cancellation))

    def tokenize(
        self, messages: Sequence[PromptMessage], reply_start: PromptMessage | None, options: PromptOptions,
        cancellation: Cancellation | None = None,
    ) -> BuiltPrompt:  # fmt: skip
        """Render and tokenise `messages`, followed by `reply_start`, the beginning of the reply to continue.

        The result has no turn starts. Raises the same errors as `build`.
        """
        if reply_start is not None and not (reply_start.content or reply_start.reasoning):
            reply_start = None
        messages, placeholder = split_reasoning(messages, self.reasoning_format), ""
        if reply_start is not None:
            reply_start, placeholder = split_reply_start(reply_start, self.reasoning_format)
        try:
            prompt = self._render_any_order(messages, reply_start, options, cancellation)
        except TemplateError:
            if options.enforced_tools is None:
                raise
            # A few templates fail on schemas that the grammar does not enforce either. Describe the tools with the
            # enforced schemas instead.
            described_options = options._replace(tools=options.enforced_tools)
            prompt = self._render_any_order(messages, reply_start, described_options, cancellation)
        phase = reasoning.find_phase_after_prompt(self.reasoning_format, prompt.text)
        reply_format = self.formats.find(options)
        if reply_start is None and reply_format.is_reasoning_open(prompt.text):
            phase = "reasoning"
        if reply_start is not None and self.reasoning_format is not None:
            phase = "content" if reply_start.content else "reasoning"
        tokens = self.tokenize_text(prompt.text.removesuffix(placeholder), prompt.guard, cancellation)
        text = prompt.unguarded_text.removesuffix(placeholder)
        reply_prefix = prompt.reply_prefix and prompt.reply_prefix.removesuffix(placeholder)
        return BuiltPrompt(tokens, phase, reply_format, reply_prefix, [], text)

    def tokenize_text(
        self, text: str, guard: str = "", cancellation: Cancellation | None = None, *,
        add_special: bool | None = None, parse_special: bool | None = None,
    ) -> list[int]:  # fmt: skip
        """Return the tokens of a rendered prompt; `protocol.Tokenize` describes the arguments.

        Raises EngineError, RequestCancelledError, and ContextOverflowError if the text is several times longer than the
        context.
        """
        check_prompt_bytes(text, self._model_properties)
        return self._engine.tokenize(
            text, guard, max_tokens=self.max_text_tokens, cancellation=cancellation, add_special=add_special,
            parse_special=parse_special,
        )  # fmt: skip

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
                other_prompt = self.tokenize(prompt, None, options, cancellation)
                positions.add(common_prefix_length(tokens, other_prompt.tokens))
        return sorted(positions - {0})

    def _render_any_order(
        self, messages: Sequence[PromptMessage], reply_start: PromptMessage | None, options: PromptOptions,
        cancellation: Cancellation | None,
    ) -> RenderedPrompt:  # fmt: skip
        """Render `messages`; try other orders of roles if the template rejects them or omits a message.

        Raises TemplateError if the template rejects every variant, or omits a message of it.
        """
        error: TemplateError | None = None
        renderings = itertools.chain(
            ((self._render, variant) for variant in iterate_variants(messages)),
            # A few templates fail in Jinja (and in transformers), but not in llama.cpp, which is more lenient.
            ((self._render_with_library, variant) for variant in iterate_orders(messages) if variant),
        )
        deadline = time.monotonic() + renderer.TIMEOUT_S
        for render, variant in renderings:
            if error is not None and time.monotonic() > deadline:
                break  # a template that never ends uses up this time in one attempt
            try:
                prompt = render(variant, reply_start, options, cancellation)
            except TemplateError as template_error:
                error = error or template_error
                continue
            omitted_message = self._find_omitted(render, variant, prompt, options, cancellation)
            if omitted_message is None:
                return prompt
            error = error or TemplateError(
                f"The model's chat template leaves out a message of the role {omitted_message.role}: "
                f"{omitted_message.content.strip()[:60]!r}. Choose another model or template."
            )
        raise error or TemplateError("The conversation has no messages.")

    def _find_omitted(
        self, render: Callable[..., RenderedPrompt], messages: Sequence[PromptMessage], prompt: RenderedPrompt,
        options: PromptOptions, cancellation: Cancellation | None,
    ) -> PromptMessage | None:  # fmt: skip
        """Return the first message that is missing from a rendered prompt; `render` is the method that rendered it."""
        key = render.__name__, options.think, bool(options.tools)
        return self._omissions.find(
            messages, prompt.unguarded_text, lambda probes: render(probes, None, options, cancellation).text, key
        )

    def _render_with_library(
        self, messages: Sequence[PromptMessage], reply_start: PromptMessage | None, options: PromptOptions,
        cancellation: Cancellation | None,
    ) -> RenderedPrompt:  # fmt: skip
        request, template = self.formats.make_request(options), self._template_info
        return self._renderer.render_with_library(
            template.source, template.bos, template.eos, [*messages, *([reply_start] if reply_start else [])],
            self._guarded_texts,
            {
                "continues_reply": reply_start is not None, "thinking": request.think, "variables": request.variables,
                "tools": list(options.tools),
            },
            cancellation,
        )  # fmt: skip

    def _render(
        self, messages: Sequence[PromptMessage], reply_start: PromptMessage | None, options: PromptOptions,
        cancellation: Cancellation | None,
    ) -> RenderedPrompt:  # fmt: skip
        request = self.formats.make_request(options)
        variables = request.variables | ({"tools": list(options.tools)} if options.tools else {})
        template = self._template_info
        render = functools.partial(
            self._renderer.render, template.source, messages, bos=template.bos, eos=template.eos,
            control_tokens=self._guarded_texts, variables=variables, reasoning_format=self.reasoning_format,
            cancellation=cancellation,
        )  # fmt: skip
        prompt = render()
        if reply_start is None:
            return prompt
        # llama.cpp knows the end of the prompt that its parser needs for a continued reply. Its prompt is used if it
        # contains the reply (llama.cpp leaves out the reasoning for Apriel 1.5), and if Jinja renders the same text
        # before the reply. The texts differ if the token that ends a conversation is not the one that begins a reply.
        generation_prompt = self.formats.find(options).generation_prompt
        with contextlib.suppress(TemplateError):
            continued_prompt = self._render_with_library(messages, reply_start, options, cancellation)
            text_before_reply = continued_prompt.text.removesuffix(continued_prompt.reply_prefix or "")
            reply_end = (reply_start.content or reply_start.reasoning).rstrip()
            has_reply = continued_prompt.unguarded_text.rstrip().endswith(reply_end)
            if has_reply and text_before_reply == prompt.text.removesuffix(generation_prompt):
                return continued_prompt
        return render(reply_start=reply_start)


def check_prompt_bytes(text: str, model_properties: Loaded) -> None:
    """Raise ContextOverflowError, without tokenising `text`, if its tokens certainly do not fit in the context."""
    n_ctx = model_properties.n_ctx
    n_bytes = len(text.encode("utf-8", "replace"))
    if n_bytes > n_ctx * _MAX_TOKEN_BYTES:
        subject = f"The prompt has {n_bytes:,} bytes, more than {n_bytes // _MAX_TOKEN_BYTES:,} tokens"
        raise make_overflow_error(subject, n_ctx, model_properties.n_ctx_train)
