"""Builder of conversation prompts: inserts attachments, and drops the oldest turns if the context is too short."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from edgechat.chat.attachments import attached_texts, prepend_attachments
from edgechat.chat.messages import Message
from edgechat.chat.window import choose_window_start
from edgechat.config import Settings
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.generation import ThinkingLimit
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prompt.builder import DISTINCT_TEXTS, BuiltPrompt, PromptBuilder
from edgechat.prompt.output_rules import make_output_grammar
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.roles import merge_consecutive
from edgechat.prompt.thinking import ReplySpace, choose_budget, make_thinking_limit


class ConversationPrompt(NamedTuple):
    """Prompt of a conversation, with the index of the first included message and the attached texts."""

    prompt: BuiltPrompt
    start: int
    """Index, in the active path, of the first message in the prompt."""
    start_id: str | None
    """ID of the first message in the prompt; None if the prompt contains all messages."""
    attached_texts: list[str]
    """Text files attached to the last message. The engine uses their contents as a source of draft tokens."""
    thinking: ThinkingLimit | None = None
    """Tags and limit of the reasoning; None if the model does not reason."""
    grammar: str = ""
    """Grammar of the reply; "" for free text."""


class ConversationPromptBuilder:
    """Builds prompts from the messages of a conversation, for one loaded model."""

    def __init__(
        self, builder: PromptBuilder, read_attachment: Callable[[str], bytes], settings: Settings, *, think: bool,
        decode_tps: float | None = None,
    ) -> None:  # fmt: skip
        """`read_attachment` returns the bytes of an attachment by SHA-256 hash, or raises StoreError.

        `decode_tps` is the measured decode speed of the model; None if it is unknown.
        """
        self._builder = builder
        self._read_attachment = read_attachment
        self._settings = settings
        self._options = PromptOptions(think)
        self._decode_tps = decode_tps

    def build(
        self, path: Sequence[Message], files: Mapping[str, bytes] = MappingProxyType({}),
        cancellation: Cancellation | None = None, max_n_ctx: int | None = None, output_rule: str = "",
    ) -> ConversationPrompt:  # fmt: skip
        """Build the prompt for a reply to the last message of `path`, or for continuing that message if it is a reply.

        `max_n_ctx` is the length of the context if it cannot grow to the length that it has at most. `output_rule` is
        the grammar rule of the reply's content; "" for free text.
        `files` has the bytes of attachments that are not in the store yet, by SHA-256 hash.
        Raises ContextOverflowError, TemplateError, EngineError, and RequestCancelledError after `cancellation`.
        """

        def read(sha256: str) -> bytes:
            return files[sha256] if sha256 in files else self._read_attachment(sha256)

        previous_start = _find_previous_start(path)
        reply_start = None
        if path and path[-1].role == "assistant":
            *path, reply = path
            reply_start = PromptMessage("assistant", reply.text, reply.reasoning)
        prompts: dict[int, tuple[list[PromptMessage], BuiltPrompt]] = {}

        def count_tokens(start: int) -> int:
            if start not in prompts:
                messages = _make_prompt_messages(path, start, self._settings.system_prompt, read)
                prompts[start] = messages, self._builder.tokenize(messages, reply_start, self._options, cancellation)
            return len(prompts[start][1].tokens)

        start = choose_window_start(
            path, n_ctx=min(self._builder.n_ctx, max_n_ctx or self._builder.n_ctx),
            max_tokens=self._settings.max_tokens, previous_start=previous_start,
            count_tokens=count_tokens, n_ctx_train=self._builder.n_ctx_train,
        )  # fmt: skip
        count_tokens(start)  # ensures that `prompts` contains the prompt from `start`
        messages, prompt = prompts[start]
        turn_starts = self._builder.turn_starts(messages, prompt.tokens, self._options, cancellation)
        texts = attached_texts(path[-1].attachments, read) if path else []
        start_id = path[start].id if start else None
        thinking = self._make_thinking_limit(prompt, max_n_ctx)
        grammar = make_output_grammar(self._builder, prompt, self._options, output_rule) if output_rule else ""
        return ConversationPrompt(prompt._replace(turn_starts=turn_starts), start, start_id, texts, thinking, grammar)

    def _make_thinking_limit(self, prompt: BuiltPrompt, max_n_ctx: int | None) -> ThinkingLimit | None:
        settings, n_ctx = self._settings, min(self._builder.n_ctx, max_n_ctx or self._builder.n_ctx)
        space = ReplySpace(n_ctx, len(prompt.tokens), settings.max_tokens, self._decode_tps, settings.strict)
        # `reasoning` takes precedence over `off`: without it, a model that cannot turn off reasoning may reason.
        thinking = None if settings.thinking == "off" and settings.reasoning is not None else settings.thinking
        return make_thinking_limit(
            self._builder.reasoning_format, prompt.reply_format, prompt.phase, choose_budget(thinking, space),
            settings.thinking_end,
        )  # fmt: skip

    def next_turn_prefix(self, path: Sequence[Message]) -> list[int]:
        """Return the token prefix that all possible prompts of the next turn share. Raises the errors of `build`."""
        first, second = (
            self.build([*path, Message(id="", role="user", text=text)]).prompt.tokens for text in DISTINCT_TEXTS
        )
        return first[: common_prefix_length(first, second)]


def _find_previous_start(path: Sequence[Message]) -> int:
    """Return the index of the first message in the prompt of the last generated reply; 0 without such a reply."""
    reply = next((m for m in reversed(path) if m.role == "assistant" and m.stats), None)
    start_id = reply.context_start_id if reply is not None else None
    return next((i for i, m in enumerate(path) if m.id == start_id), 0)


def _make_prompt_messages(
    path: Sequence[Message], start: int, system_prompt: str, read_attachment: Callable[[str], bytes]
) -> list[PromptMessage]:
    """Return the system prompt and the messages of `path` from index `start`, with attachments inserted.

    If the first message of `path` is a system message, it replaces `system_prompt`.
    """
    included_messages = path[start:]
    if path and path[0].role == "system":
        system_prompt, included_messages = path[0].text, path[max(start, 1) :]
    messages = [PromptMessage("system", system_prompt)] if system_prompt else []
    for message in included_messages:
        # Imported tool results are skipped, because the prompt does not contain their tool calls. Empty replies, which
        # were stopped before the first token, are skipped, because the model would imitate them.
        if message.role == "tool" or (message.role == "assistant" and not message.text):
            continue
        content = prepend_attachments(message.text, message.attachments, read_attachment)
        messages.append(PromptMessage(message.role, content, message.reasoning))
    return merge_consecutive(messages)
