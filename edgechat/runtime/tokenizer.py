"""Tokeniser of a model: llama.cpp's tokens for texts of any length, in steps and linear time, with little stack."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

from edgechat.errors import EngineError, ModelFileError
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.long_text import MAX_WINDOW_CHARS, WINDOW_CHARS, iterate_windows, iterate_words
from edgechat.runtime.special_tokens import SpecialToken, SpecialTokenSplitter

# Attributes of tokens (enum llama_token_attr). llama.cpp recognises control and unknown tokens in a text only with
# parse_special, but it always recognises user-defined tokens (HTML tags, runs of spaces).
_UNKNOWN: Final = 1 << 0
_CONTROL: Final = 1 << 3
_USER_DEFINED: Final = 1 << 4
_BYTE: Final = 1 << 5
_STRIPS_LEFT: Final = 1 << 7
_STRIPS_RIGHT: Final = 1 << 8
# Types of vocabularies (enum llama_vocab_type).
_SPM: Final = 1
_BPE: Final = 2
_WPM: Final = 3
_UGM: Final = 4
_N_BYTES: Final = 256
_ESCAPED_SPACE: Final = "\u2581"

STACK_BYTES: Final = 1024 * MAX_WINDOW_CHARS
"""Stack size of the thread that tokenises; only the used part takes memory. `std::regex` of libstdc++ needs 320 bytes
for each character that a pattern matches (all pre-tokenizers, x86-64): a third of this size for the longest window."""
# Texts of up to this number of characters are tokenised on the calling thread: they need at most 0.2 MB of its stack.
_MAX_DIRECT_CHARS: Final = 512
# Maximum length and number of cached texts: roles and separators between the control tokens of a chat template.
_MAX_CACHED_CHARS: Final = 64
_N_CACHED_TEXTS: Final = 1024
# Number of recent texts whose tokens are kept, for runs of equal texts.
_N_RECENT_TEXTS: Final = 4
# Pre-tokenizers whose time grows with the square of the length of a window in some texts (digits, spaces).
_QUADRATIC_PRE_TOKENIZERS: Final = ("deepseek-llm", "superbpe")
_SMALL_WINDOW_CHARS: Final = 1024
# Control character before a text that continues another. SentencePiece puts a space before this character, whose byte
# token never merges with the characters after it.
_CONTINUATION: Final = "\x01"


class Tokenizer:
    """Tokenises texts with a vocabulary. Thread-safe, because grammars are compiled during generation."""

    def __init__(self, bindings: Bindings, vocab: Any, path: Path, pre_tokenizer: str, tokenizer_model: str) -> None:
        """`vocab` is llama.cpp's vocabulary of the model at `path`; the other arguments are metadata of that file.

        Raises ModelFileError if spaces would crash llama.cpp with this vocabulary.
        """
        if pre_tokenizer == "whitespace" != tokenizer_model:
            raise ModelFileError(
                f"Cannot load {path}: its pre-tokenizer 'whitespace' does not belong to its tokenizer "
                f"{tokenizer_model!r}. Download another conversion of the model."
            )
        self._llama = bindings.llama
        self._vocab = vocab
        self._path = path
        self._type = int(self._llama.llama_vocab_type(vocab))
        self._thread_data = threading.local()
        self._recent_tokens: dict[str, list[int]] = {}
        self._recent_tokens_lock = threading.Lock()
        self._tokenize_short = lru_cache(_N_CACHED_TEXTS)(self._tokenize_directly)
        self.window_chars: int = _SMALL_WINDOW_CHARS if pre_tokenizer in _QUADRATIC_PRE_TOKENIZERS else WINDOW_CHARS

    # Vocabulary

    @cached_property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return int(self._llama.llama_vocab_n_tokens(self._vocab))

    @cached_property
    def _attributes(self) -> list[int]:
        get_attr, vocab = self._llama.llama_vocab_get_attr, self._vocab
        return [get_attr(vocab, token) for token in range(self.n_vocab)]

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Special tokens (control and unknown) by text, longest first. User text must never produce a special token."""
        tokens = {
            self.token_to_piece(token, special=True).decode("utf-8", "replace"): token
            for token, attributes in enumerate(self._attributes)
            if attributes & (_CONTROL | _UNKNOWN)
        }
        tokens.pop("", None)
        return dict(sorted(tokens.items(), key=lambda item: -len(item[0])))

    def _make_splitter(self, mask: int, excluded: int = 0) -> SpecialTokenSplitter:
        tokens = []
        for token, attributes in enumerate(self._attributes):
            if attributes & mask and not attributes & excluded:
                tokens.append(SpecialToken(
                    self._get_text(token), token, bool(attributes & _STRIPS_LEFT), bool(attributes & _STRIPS_RIGHT)
                ))  # fmt: skip
        return SpecialTokenSplitter(tokens)

    def _get_text(self, token: int) -> str:
        """Return the text of a token in the vocabulary; "" if no text can contain it, because it is not UTF-8."""
        try:
            return str(self._llama.llama_vocab_get_text(self._vocab, token).decode())
        except UnicodeDecodeError:
            return ""

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the UTF-8 bytes of `token`, which can be a part of a character.

        Without `special`, the bytes of a control token are b"".
        """
        buffer = getattr(self._thread_data, "buffer", None)
        if buffer is None:
            buffer = self._thread_data.buffer = ctypes.create_string_buffer(256)
        count = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            self._thread_data.buffer = ctypes.create_string_buffer(-count)
            return self.token_to_piece(token, special=special)
        return bytes(buffer.raw[:count])

    @cached_property
    def _special_splitter(self) -> SpecialTokenSplitter:
        return self._make_splitter(_CONTROL | _UNKNOWN | _USER_DEFINED)

    @cached_property
    def _user_defined_splitter(self) -> SpecialTokenSplitter:
        return self._make_splitter(_USER_DEFINED, excluded=_CONTROL | _UNKNOWN)

    @cached_property
    def _affixes(self) -> tuple[list[int], list[int]]:
        """Tokens that mark the start and the end of a text (`add_special`)."""
        llama, vocab = self._llama, self._vocab
        start: list[tuple[bool, int]] = []
        end: list[tuple[bool, int]] = []
        if self._type in {_SPM, _BPE, _UGM}:
            start.append((llama.llama_vocab_get_add_bos(vocab), llama.llama_vocab_bos(vocab)))
            end.append((llama.llama_vocab_get_add_eos(vocab), llama.llama_vocab_eos(vocab)))
        elif self._type == _WPM:
            start.append((True, llama.llama_vocab_bos(vocab)))
            end.append((True, llama.llama_vocab_sep(vocab)))
        starts, ends = (
            [int(token) for is_added, token in tokens if is_added and token >= 0] for tokens in (start, end)
        )
        return starts, ends

    # Tokens

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of `text`; `iterate_tokens` describes the arguments. Raises EngineError."""
        parts = self.iterate_tokens(text, add_special=add_special, parse_special=parse_special)
        return [token for part in parts for token in part]

    def iterate_tokens(
        self, text: str, *, add_special: bool, parse_special: bool, guard: str = "", is_prompt: bool = False
    ) -> Iterator[list[int]]:
        """Yield the tokens of `text` in parts, each computed in a fraction of a second.

        The tokens are those that llama.cpp returns for the whole text. `add_special` adds the tokens that mark the
        start and the end of a text, if the model uses such tokens; with `is_prompt`, only the start is marked, because
        the model continues the text. With `parse_special`, the text of a control token becomes that token, unless the
        text contains the character `guard`, which is removed. Raises EngineError if llama.cpp fails.
        """
        text = text.encode("utf-8", "replace").decode()
        starts, ends = self._affixes if add_special else ([], [])
        yield list(starts)
        splitter = self._special_splitter if parse_special else self._user_defined_splitter
        for part in splitter.split(text):
            if isinstance(part, int):
                yield [part]
            elif guard and guard in part:
                for subpart in self._user_defined_splitter.split(part.replace(guard, "")):
                    yield from [[subpart]] if isinstance(subpart, int) else self._iterate_text(subpart)
            else:
                yield from self._iterate_text(part)
        if not is_prompt:
            yield list(ends)

    def tokenize_continuation(self, text: str) -> list[int]:
        """Return the tokens of a text that continues an output, and may contain control tokens. Raises EngineError."""
        parts = self._special_splitter.split(text)
        return [
            token
            for part in parts
            for token in ([part] if isinstance(part, int) else self.tokenize_piece(part, is_continuation=True))
        ]

    def _iterate_text(self, text: str) -> Iterator[list[int]]:
        if len(text) <= self.window_chars:
            yield self.tokenize_piece(text, is_continuation=False)
        elif self._type in {_WPM, _UGM} and self._adds_space:
            yield from iterate_words(self, text)
        elif self._type not in {_SPM, _BPE}:
            yield self.tokenize_piece(text, is_continuation=False)
        else:
            yield from iterate_windows(self, text.replace(_ESCAPED_SPACE, " ") if self._escapes_spaces else text)

    def tokenize_piece(self, text: str, *, is_continuation: bool) -> list[int]:
        """Return the tokens of a text without special tokens, from one call of llama.cpp. Raises EngineError.

        With `is_continuation`, the text continues another text, so no space is put before it.
        """
        if is_continuation and self._adds_space:
            return self._run(_CONTINUATION + text)[self._n_continuation_tokens :]
        return list(self._tokenize_short(text)) if len(text) <= _MAX_CACHED_CHARS else self._run(text)

    @cached_property
    def _escapes_spaces(self) -> bool:
        """True if the vocabulary has U+2581 in place of spaces, so that U+2581 and a space yield the same tokens."""
        return self._type == _SPM or b" " in b"".join(map(self.token_to_piece, self._tokenize_directly(_ESCAPED_SPACE)))

    @cached_property
    def _adds_space(self) -> bool:
        """True if a space is put before the beginning of a text."""
        return b"".join(map(self.token_to_piece, self._tokenize_directly("a"))).startswith(b" ")

    @cached_property
    def _n_continuation_tokens(self) -> int:
        return len(self._tokenize_directly(_CONTINUATION))

    def _run(self, text: str) -> list[int]:
        """Tokenise a text on a thread with enough stack. Recent texts, as in a run, are not tokenised again."""
        if len(text) <= _MAX_DIRECT_CHARS:
            return self._tokenize_directly(text)
        with self._recent_tokens_lock:
            tokens = self._recent_tokens.get(text)
            if tokens is None:
                if len(self._recent_tokens) >= _N_RECENT_TEXTS:
                    del self._recent_tokens[next(iter(self._recent_tokens))]
                tokens = self._recent_tokens[text] = _get_executor().submit(self._tokenize_directly, text).result()
        return tokens

    def _tokenize_directly(self, text: str) -> list[int]:
        if self._single_characters is not None:
            self._check_characters(text, self._single_characters)
        data = text.encode()
        size = len(data) + 2
        for _ in range(2):
            tokens = (ctypes.c_int32 * size)()
            with activity.during(Activity.TOKENIZING):
                count = self._llama.llama_tokenize(self._vocab, data, len(data), tokens, size, False, False)
            if count >= 0:
                return tokens[:count]
            size = -count
        raise EngineError(f"Cannot tokenise a text of {len(data)} bytes with the vocabulary of {self._path}.")

    @cached_property
    def _single_characters(self) -> set[str] | None:
        """Characters that the vocabulary has a token for; None if it can represent every character.

        llama.cpp would abort its process at a character without tokens in a SentencePiece vocabulary without byte
        tokens.
        """
        if self._type != _SPM or sum(bool(attributes & _BYTE) for attributes in self._attributes) == _N_BYTES:
            return None
        texts = set(map(self._get_text, range(self.n_vocab)))
        if all(f"<0x{byte:02X}>" in texts for byte in range(_N_BYTES)):
            return None
        return {text for text in texts if len(text) == 1}

    def _check_characters(self, text: str, single_characters: set[str]) -> None:
        character = next((c for c in text.replace(" ", _ESCAPED_SPACE) if c not in single_characters), None)
        if character is not None:
            raise EngineError(
                f"The vocabulary of {self._path.name} has no token for the character {character!r}. "
                "Remove it from the text, or choose another model."
            )


_executor: ThreadPoolExecutor | None = None


def _get_executor() -> ThreadPoolExecutor:
    """Return the executor with one thread of `STACK_BYTES`, started at the first call."""
    global _executor  # noqa: PLW0603  (one thread per process)
    if _executor is None:
        previous_size = threading.stack_size(STACK_BYTES)
        try:
            executor = ThreadPoolExecutor(1, "tokenize")
            executor.submit(int).result()
        except (RuntimeError, MemoryError) as error:
            raise EngineError(f"Cannot start a thread with a stack of {STACK_BYTES >> 20} MiB: {error}") from error
        finally:
            threading.stack_size(previous_size)
        _executor = executor
    return _executor
