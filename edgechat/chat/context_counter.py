"""Counts of context tokens: of files, and of the prompt that the next message would have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgechat.chat.attachments import is_document, load_attachments, prepend_attachments
from edgechat.chat.conversation_prompt import ConversationPromptBuilder
from edgechat.chat.document_turns import DocumentTurns
from edgechat.chat.messages import Message
from edgechat.chat.reply_source import ReplySource
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.overflow import make_overflow_error
from edgechat.humanize import format_count

# Maximum number of attachments whose token counts are remembered.
_MAX_COUNTED_FILES: Final = 256


class ContextCounter:
    """Counts context tokens for a session."""

    def __init__(
        self, get_source: Callable[[], ReplySource], documents: DocumentTurns,
        create_prompt_builder: Callable[[], ConversationPromptBuilder],
    ) -> None:  # fmt: skip
        """`create_prompt_builder` returns a builder for the current settings and model, or raises EngineError."""
        self._get_source = get_source
        self._documents = documents
        self._create_prompt_builder = create_prompt_builder
        self._n_tokens_by_file: dict[tuple[Path, int, int, Path], int] = {}
        """Token counts of attachments by path, modification time in nanoseconds, size in bytes, and model."""

    def count_file(self, file: Path, model_path: Path) -> int:
        """Return the length in tokens of a text file as an attachment; 0 for a folder, which is searched.

        A file that has not changed is tokenised only once for each model. Raises AttachmentError and EngineError.
        """
        if file.is_dir():
            return 0
        attachments, contents = load_attachments([file])
        status = file.stat()
        key = (file.absolute(), status.st_mtime_ns, status.st_size, model_path)
        n_tokens = self._n_tokens_by_file.get(key)
        if n_tokens is None:
            n_tokens = self._get_source().count_tokens(prepend_attachments("", attachments, contents.__getitem__))
            if len(self._n_tokens_by_file) >= _MAX_COUNTED_FILES:
                self._n_tokens_by_file.clear()
            self._n_tokens_by_file[key] = n_tokens
        return n_tokens

    def is_long_document(self, file: Path, model_path: Path) -> bool:
        """Return whether a file is a document that does not fit in the context, so that it is searched instead."""
        return is_document(file) and not self._documents.can_attach(self.count_file(file, model_path))

    def find_long_attachment(
        self, files: Sequence[Path], model_path: Path, properties: protocol.Loaded | None
    ) -> str:  # fmt: skip
        """Return a warning that names the longest of `files` if that file alone exceeds the context; otherwise ""."""
        lengths = [
            (self.count_file(file, model_path), file.name)
            for file in files
            if not self.is_long_document(file, model_path)
        ]
        n_tokens, name = max(lengths, default=(0, ""))
        if properties is None or n_tokens <= properties.n_ctx:
            return ""
        subject = f"{name} has {format_count(n_tokens, 'token')}"
        return str(make_overflow_error(subject, properties.n_ctx, properties.n_ctx_train, "Attach a part of it"))

    def measure(
        self, path: Sequence[Message], settings: Settings, model_path: Path, text: str, files: Sequence[Path]
    ) -> tuple[int, int]:
        """Return the prompt length in tokens with `text` as the next message, and the number of omitted messages.

        Whole documents of the conversation are counted; what a search will find is not known yet. Raises
        ContextOverflowError if the message does not fit; also AttachmentError, TemplateError and EngineError.
        """
        files = [file for file in files if not file.is_dir() and not self.is_long_document(file, model_path)]
        attachments, contents = load_attachments(files)
        documents, document_contents = self._documents.predict(path, settings)
        if text or files or (documents and not path):
            path = [*path, Message(id="", role="user", text=text, attachments=(*attachments, *documents))]
        prompt = self._create_prompt_builder().build(path, {**contents, **document_contents})
        return len(prompt.prompt.tokens), prompt.start
