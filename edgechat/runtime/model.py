"""Loaded llama.cpp model: weights, vocabulary and metadata."""

from __future__ import annotations

import ctypes
import hashlib
import os
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from edgechat.errors import ModelFileError, PlanError
from edgechat.planner.memory import LoadOptions
from edgechat.runtime.bindings import Bindings

# LLAMA_TOKEN_ATTR_UNKNOWN and LLAMA_TOKEN_ATTR_CONTROL: tokens that llama.cpp parses in a text only with parse_special.
# User-defined tokens (HTML tags, runs of spaces) are parsed in every text.
_SPECIAL_ATTRIBUTES = 1 << 0 | 1 << 3

# Parts of the messages of llama.cpp and the C++ library when memory runs out.
_OUT_OF_MEMORY_ERRORS = ("unable to allocate", "failed to allocate", "Cannot allocate memory", "std::bad_alloc")


OnLoadProgress = Callable[[float], bool]
"""Receives the loaded fraction from 0 to 1; returns False to stop loading."""


class Model:
    """Owns a llama_model. Freed by `close`, or when it is no longer referenced; contexts hold a reference."""

    def __init__(
        self,
        bindings: Bindings,
        path: Path,
        options: LoadOptions | None = None,
        *,
        is_probe: bool = False,
        on_progress: OnLoadProgress = lambda fraction: True,
    ) -> None:
        """Load the model file at `path`; without `options`, with memory-mapped weights and without a GPU.

        With `is_probe`, the model and its contexts report the sizes of their buffers, but do not allocate them.
        Raises ModelFileError with llama.cpp's reason if the file cannot be loaded or loading was stopped, and PlanError
        if memory ran out.
        """
        options = options or LoadOptions(n_ctx=0, n_seqs=0)
        self.bindings = bindings
        self.path = path
        llama = bindings.llama
        params = llama.llama_model_default_params()
        params.load_mode = (
            llama.LLAMA_LOAD_MODE_MMAP if options.use_mmap and not is_probe else llama.LLAMA_LOAD_MODE_NONE
        )
        params.use_extra_bufts = options.use_extra_bufts
        bindings.edgechat.edgechat_place(ctypes.byref(params), options.n_gpu_layers, options.experts_on_cpu)
        params.no_alloc = is_probe
        callback = llama.llama_progress_callback(lambda fraction, _user_data: on_progress(fraction))
        params.progress_callback = callback
        bindings.log.take_errors()
        pointer = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not pointer:
            errors = bindings.log.take_errors()
            reason = f"Cannot load {path}: {_failure_reason(errors)}"
            is_out_of_memory = any(message in line for line in errors for message in _OUT_OF_MEMORY_ERRORS)
            raise PlanError(f"{reason} (out of memory)") if is_out_of_memory else ModelFileError(reason)
        self.pointer = pointer
        self.vocab = llama.llama_model_get_vocab(pointer)
        self._is_eog: dict[int, bool] = {}
        self._finalizer = weakref.finalize(self, llama.llama_model_free, pointer)

    def close(self) -> None:
        """Free the model now; its contexts must be closed before. A second call does nothing."""
        self._finalizer()

    @property
    def n_ctx_train(self) -> int:
        """Context length that the model was trained with, in tokens."""
        return int(self.bindings.llama.llama_model_n_ctx_train(self.pointer))

    @cached_property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return int(self.bindings.llama.llama_vocab_n_tokens(self.vocab))

    @cached_property
    def n_layer(self) -> int:
        """Number of layers."""
        return int(self.bindings.llama.llama_model_n_layer(self.pointer))

    @cached_property
    def n_embd(self) -> int:
        """Embedding width: number of activations between layers."""
        return int(self.bindings.llama.llama_model_n_embd(self.pointer))

    @property
    def n_params(self) -> int:
        """Number of weights."""
        return int(self.bindings.llama.llama_model_n_params(self.pointer))

    @cached_property
    def is_embedding(self) -> bool:
        """True for an embedding model; the rule is that of `edgechat.modelfile.header.ModelHeader.is_embedding`."""
        architecture = self._metadata("general.architecture")
        return self._metadata(f"{architecture}.pooling_type") in {"1", "2", "3"}

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        count = self.bindings.llama.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if count >= 0 else ""

    @property
    def size_bytes(self) -> int:
        """Size of all tensors, in bytes."""
        return int(self.bindings.llama.llama_model_size(self.pointer))

    @property
    def adds_bos(self) -> bool:
        """True if prompts of this model start with its beginning-of-sequence token."""
        return bool(self.bindings.llama.llama_vocab_get_add_bos(self.vocab))

    @property
    def bos(self) -> str:
        """Text of the beginning-of-sequence token, or ""."""
        return self._special(self.bindings.llama.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> str:
        """Text of the end-of-sequence token, or ""."""
        return self._special(self.bindings.llama.llama_vocab_eos(self.vocab))

    def _special(self, token: int) -> str:
        return self.token_to_piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    @property
    def chat_template(self) -> str | None:
        """Chat template in the model file; None if there is none."""
        text = self.bindings.llama.llama_model_chat_template(self.pointer, None)
        return text.decode("utf-8", "replace") if text else None

    def metadata_keys(self) -> list[str]:
        """Return the metadata keys of the model file."""
        llama, buffer = self.bindings.llama, ctypes.create_string_buffer(256)
        return [
            buffer.value.decode("utf-8", "replace")
            for i in range(int(llama.llama_model_meta_count(self.pointer)))
            if llama.llama_model_meta_key_by_index(self.pointer, i, buffer, len(buffer)) >= 0
        ]

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Special tokens (control and unknown) by text, longest first. Tokenising user text must never yield one."""
        llama, vocab = self.bindings.llama, self.vocab
        get_attr = llama.llama_vocab_get_attr
        tokens = {self._special(t): t for t in range(self.n_vocab) if get_attr(vocab, t) & _SPECIAL_ATTRIBUTES}
        tokens.pop("", None)
        return dict(sorted(tokens.items(), key=lambda item: -len(item[0])))

    def is_eog(self, token: int) -> bool:
        """Return True if `token` ends a generation."""
        is_eog = self._is_eog.get(token)
        if is_eog is None:
            is_eog = self._is_eog[token] = bool(self.bindings.llama.llama_vocab_is_eog(self.vocab, token))
        return is_eog

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokenise `text`; `parse_special` recognises the texts of control tokens. Raises ModelFileError."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 2
        for _ in range(2):
            tokens = (ctypes.c_int32 * size)()
            count = self.bindings.llama.llama_tokenize(
                self.vocab, data, len(data), tokens, size, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            size = -count
        raise ModelFileError(f"Cannot tokenise a text of {len(data)} bytes with the vocabulary of {self.path}")

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of `token`, which may be a part of a character; b"" for control tokens unless `special`."""
        buffer = self._token_buffer
        count = self.bindings.llama.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            self._token_buffer = ctypes.create_string_buffer(-count)
            return self.token_to_piece(token, special=special)
        return buffer.raw[:count]

    @cached_property
    def _token_buffer(self) -> ctypes.Array[ctypes.c_char]:
        return ctypes.create_string_buffer(256)

    def vocabulary_hash(self) -> str:
        """Return a hash that identifies the vocabulary, computed from its size and about 256 of its tokens."""
        step = max(1, self.n_vocab // 256)
        digest = hashlib.blake2b(str(self.n_vocab).encode(), digest_size=8)
        for token in range(0, self.n_vocab, step):
            digest.update(self.token_to_piece(token, special=True) + b"\n")
        return digest.hexdigest()


def _failure_reason(errors: list[str]) -> str:
    """Extract the reason from llama.cpp's error lines, without the preceding function names."""
    for line in errors:
        for separator in ("error loading model: ", "error loading model "):
            if separator in line:
                return line.split(separator, 1)[1].strip()
    return errors[0].split(": ", 1)[-1] if errors else "llama.cpp gives no reason. `edgechat doctor` names the log."
