"""Builder of conversation prompts: inserts attachments and passages, and drops old turns if the context is short."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from edgechat.chat import message_passages
from edgechat.chat.attachments import attached_texts, prepend_attachments
from edgechat.chat.messages import Attachment, Message
from edgechat.chat.store import Store
from edgechat.chat.window import choose_window_start
from edgechat.config import Settings
from edgechat.documents import prompt_text
from edgechat.documents.passages import PassageSet
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.generation import ThinkingLimit
from edgechat.errors import ContextOverflowError
from edgechat.planner.turn import is_thinking_default
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prefix.shared_prefix import SharedPrefix, make_pinned_owner
from edgechat.prompt.builder import DISTINCT_TEXTS, BuiltPrompt, PromptBuilder
from edgechat.prompt.output_rules import make_output_grammar
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.roles import merge_consecutive
from edgechat.prompt.thinking import ReplySpace, choose_budget, is_thinking_on, make_thinking_limit


class ConversationPrompt(NamedTuple):
    """Prompt of a conversation, with the index of the first included message and the attached texts."""

    prompt: BuiltPrompt
    start: int
    """Index, in the active path, of the first message in the prompt."""
    start_id: str | None
    """ID of the first message in the prompt; None if the prompt contains all messages."""
    attached_texts: list[str]
    """Text files and passages of documents of the last message. The engine uses them as a source of draft tokens."""
    thinking: ThinkingLimit | None = None
    """Tags and limit of the reasoning; None if the model does not reason."""
    grammar: str = ""
    """Grammar of the reply; "" for free text."""
    n_document_tokens: int = 0
    """Number of tokens at the beginning of the prompt that all conversations about the same whole documents share."""
    collections: tuple[str, ...] = ()
    """Names of the collections of these documents."""

    @property
    def shared_prefix(self) -> SharedPrefix | None:
        """The part of the prompt that is cached for all conversations about the whole documents; None without them."""
        if not self.n_document_tokens:
            return None
        return SharedPrefix(make_pinned_owner(self.collections), self.n_document_tokens)


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

        previous_start = find_previous_start(path)
        reply_start = None
        if path and path[-1].role == "assistant":
            *path, reply = path
            reply_start = PromptMessage("assistant", reply.text, reply.reasoning)
        passage_sets = message_passages.find_readable_passages(path, read)
        whole_set = message_passages.find_last_whole(passage_sets)
        n_ctx = min(self._builder.n_ctx, max_n_ctx or self._builder.n_ctx)
        prompts: dict[int, tuple[list[PromptMessage], BuiltPrompt]] = {}

        def count_tokens(start: int) -> int:
            if start not in prompts:
                documents = prompt_text.format_whole(whole_set.passages) if whole_set is not None else ""
                messages = make_prompt_messages(
                    path, start, self._settings.system_prompt, read, passage_sets, documents
                )  # fmt: skip
                prompts[start] = messages, self._builder.tokenize(messages, reply_start, self._options, cancellation)
            return len(prompts[start][1].tokens)

        def choose_start() -> int:
            return choose_window_start(
                path, n_ctx=n_ctx, max_tokens=self._settings.max_tokens, previous_start=previous_start,
                count_tokens=count_tokens, n_ctx_train=self._builder.n_ctx_train,
            )  # fmt: skip

        try:
            start = choose_start()
        except ContextOverflowError:
            # Documents that only earlier messages are about give way to the last message.
            if whole_set is None or passage_sets[-1] == whole_set:
                raise
            whole_set = None
            prompts.clear()
            start = choose_start()
        count_tokens(start)  # ensures that `prompts` contains the prompt from `start`
        messages, prompt = prompts[start]
        turn_starts = self._builder.turn_starts(messages, prompt.tokens, self._options, cancellation)
        documents = prompt_text.format_whole(whole_set.passages) if whole_set is not None else ""
        n_document_tokens = self._count_document_tokens(documents, prompt.tokens, cancellation) if documents else 0
        if turn_starts and n_document_tokens:
            turn_starts = sorted({*turn_starts, n_document_tokens})
        texts = attached_texts(path[-1].attachments, read) if path else []
        if path and passage_sets[-1] not in passage_sets[:-1]:  # the engine has the texts of earlier messages already
            texts += message_passages.list_texts(passage_sets[-1])
        return ConversationPrompt(
            prompt._replace(turn_starts=turn_starts), start, path[start].id if start else None, texts,
            self._make_thinking_limit(prompt, max_n_ctx),
            make_output_grammar(self._builder, prompt, self._options, output_rule) if output_rule else "",
            n_document_tokens, whole_set.collections if whole_set is not None else (),
        )  # fmt: skip

    def _count_document_tokens(self, documents: str, tokens: Sequence[int], cancellation: Cancellation | None) -> int:
        """Return the number of leading tokens that the prompts of other conversations about the documents share.

        Other prompts have another system prompt or none, and another message. Both kinds are rendered.
        """
        n_shared = len(tokens)
        for text, system_prompt in zip(DISTINCT_TEXTS, ("", DISTINCT_TEXTS[1]), strict=True):
            messages = [PromptMessage("system", _join(documents, system_prompt)), PromptMessage("user", text)]
            other_prompt = self._builder.tokenize(messages, None, self._options, cancellation)
            n_shared = min(n_shared, common_prefix_length(tokens, other_prompt.tokens))
        return n_shared

    def _make_thinking_limit(self, prompt: BuiltPrompt, max_n_ctx: int | None) -> ThinkingLimit | None:
        settings, n_ctx = self._settings, min(self._builder.n_ctx, max_n_ctx or self._builder.n_ctx)
        space = ReplySpace(n_ctx, len(prompt.tokens), settings.max_tokens, self._decode_tps, settings.strict)
        # `reasoning` takes precedence over `off`: without it, a model that cannot turn off reasoning may reason.
        thinking = None if settings.thinking == "off" and settings.reasoning is not None else settings.thinking
        return make_thinking_limit(
            self._builder.reasoning_format, prompt.reply_format, prompt.phase, choose_budget(thinking, space),
            settings.thinking_end,
        )  # fmt: skip

    def next_turn_prefix(
        self, path: Sequence[Message], attachments: tuple[Attachment, ...] = (),
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> tuple[list[int], SharedPrefix | None]:  # fmt: skip
        """Return the token prefix that all possible prompts of the next turn share, and its part of whole documents.

        The next message has `attachments`; `files` has the bytes of those that are not in the store yet. Raises the
        errors of `build`.
        """
        first, second = (
            self.build([*path, Message(id="", role="user", text=text, attachments=attachments)], files)
            for text in DISTINCT_TEXTS
        )
        n_tokens = common_prefix_length(first.prompt.tokens, second.prompt.tokens)
        shared_prefix = first.shared_prefix
        is_included = shared_prefix is not None and shared_prefix.n_tokens <= n_tokens
        return first.prompt.tokens[:n_tokens], shared_prefix if is_included else None


def create_prompt_builder(
    builder: PromptBuilder, store: Store, settings: Settings, model_file: str, *, think: bool | None
) -> ConversationPromptBuilder:
    """Create a prompt builder for the loaded model with the file name `model_file`.

    If `think` is None, the settings `reasoning` and `thinking` apply; if both are None too, reasoning is on for models
    that decode fast enough.
    """
    decode_tps = store.decode_tps(model_file)
    if think is None:
        think = is_thinking_on(reasoning=settings.reasoning, thinking=settings.thinking, decode_tps=decode_tps)
    if builder.reasoning_format is None:
        think = False
    elif think is None:
        think = is_thinking_default(decode_tps)
    return ConversationPromptBuilder(builder, store.read_attachment, settings, think=think, decode_tps=decode_tps)


def find_previous_start(path: Sequence[Message]) -> int:
    """Return the index of the first message in the prompt of the last generated reply; 0 without such a reply."""
    reply = next((m for m in reversed(path) if m.role == "assistant" and m.stats), None)
    start_id = reply.context_start_id if reply is not None else None
    return next((i for i, m in enumerate(path) if m.id == start_id), 0)


def make_prompt_messages(
    path: Sequence[Message], start: int, system_prompt: str, read_attachment: Callable[[str], bytes],
    passage_sets: Sequence[PassageSet | None], documents: str,
) -> list[PromptMessage]:  # fmt: skip
    """Return the system prompt and the messages of `path` from index `start`, with attachments and passages inserted.

    If the first message of `path` is a system message, it replaces `system_prompt`. `documents` is the text of whole
    documents, with which the prompt begins; `passage_sets` are the passages of all messages of `path`.
    """
    if path and path[0].role == "system":
        system_prompt, start = path[0].text, max(start, 1)
    system_text = _join(documents, system_prompt)
    messages = [PromptMessage("system", system_text)] if system_text else []
    for message, passages in zip(path[start:], passage_sets[start:], strict=True):
        # Imported tool results are skipped, because the prompt does not contain their tool calls. Empty replies, which
        # were stopped before the first token, are skipped, because the model would imitate them.
        if message.role == "tool" or (message.role == "assistant" and not message.text):
            continue
        content = _join(
            message_passages.format_for_message(message, passages),
            prepend_attachments(message.text, message.attachments, read_attachment),
        )
        messages.append(PromptMessage(message.role, content, message.reasoning))
    return merge_consecutive(messages)


def _join(*texts: str) -> str:
    """Join the texts that are not empty as paragraphs."""
    return "\n\n".join(filter(None, texts))
