"""Loaded llama.cpp model: weights, vocabulary and metadata."""

from __future__ import annotations

import ctypes
import hashlib
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from edgechat.errors import ModelFileError, PlanError
from edgechat.modelfile.content_hash import FileStamp, read_stamp
from edgechat.modelfile.split import list_model_files
from edgechat.planner.mapped_file import FileRange
from edgechat.planner.memory import LoadOptions
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.mapped_pages import MappedPages
from edgechat.runtime.tokenizer import Tokenizer

# Parts of the error messages that llama.cpp and the C++ library write when memory runs out.
_OUT_OF_MEMORY_ERRORS = ("unable to allocate", "failed to allocate", "Cannot allocate memory", "std::bad_alloc")


OnLoadProgress = Callable[[float], bool]
"""Callback that receives the loaded fraction, from 0 to 1, and returns False to stop loading."""


class Model:
    """Owner of a llama_model, which `close` or garbage collection frees. A context holds a reference to its model."""

    def __init__(
        self,
        bindings: Bindings,
        path: Path,
        options: LoadOptions | None = None,
        *,
        is_probe: bool = False,
        is_drafter: bool = False,
        load_mtp: bool = False,
        unused_ranges: Sequence[FileRange] = (),
        on_progress: OnLoadProgress = lambda fraction: True,
    ) -> None:
        """Load the model file at `path`. `options` defaults to memory-mapped weights and no GPU.

        With `is_probe`, the model and its contexts report the sizes of their buffers, but do not allocate the buffers.
        With `is_drafter`, the model drafts for another one, which may have computed already.
        With `load_mtp`, the prediction layers of the model are loaded, too.
        The pages of `unused_ranges` are removed from the memory of this process when they have been copied.
        Raises ModelFileError with llama.cpp's reason if the file cannot be loaded or loading was stopped, and PlanError
        if memory ran out.
        """
        options = options or LoadOptions(n_ctx=0, n_seqs=0)
        self.bindings = bindings
        self.path = path
        self.file_stamps: dict[Path, FileStamp] = {}
        """Stamps of all existing files of the model before the load, in order, to detect later changes of the files."""
        for file in list_model_files(path):
            stamp = read_stamp(file)
            if stamp is not None:
                self.file_stamps[file] = stamp
        llama = bindings.llama
        params = llama.llama_model_default_params()
        params.load_mode = (
            llama.LLAMA_LOAD_MODE_MMAP if options.use_mmap and not is_probe else llama.LLAMA_LOAD_MODE_NONE
        )
        params.use_extra_bufts = options.use_extra_bufts
        # Embeddings of tokens for each layer are read row by row. Their table can be more than half of the file.
        params.lazy_mode = llama.LLAMA_LAZY_MODE_AUTO if options.n_gpu_layers else llama.LLAMA_LAZY_MODE_ON
        n_placed = options.n_gpu_layers or int(options.prefill_on_gpu)  # with 0, llama.cpp gets no GPU
        bindings.edgechat.edgechat_place(ctypes.byref(params), n_placed, options.experts_on_cpu)
        params.n_gpu_layers = options.n_gpu_layers
        params.no_alloc = is_probe
        params.load_mtp = self.has_mtp = load_mtp
        pages = MappedPages(list_model_files(path), unused_ranges if options.use_mmap else ())

        def record_progress(fraction: float, _user_data: object) -> bool:
            pages.remove_loaded(fraction)
            return on_progress(fraction)

        callback = llama.llama_progress_callback(record_progress)
        params.progress_callback = callback
        bindings.log.take_errors()
        if not is_probe and not is_drafter:
            activity.set_has_computed(False)
        with activity.during(Activity.LOADING):
            pointer = llama.llama_model_load_from_file(os.fsencode(path), params)
        pages.remove()
        if not pointer:
            errors = bindings.log.take_errors()
            reason = f"Cannot load {path}: {_find_failure_reason(errors)}"
            is_out_of_memory = any(message in line for line in errors for message in _OUT_OF_MEMORY_ERRORS)
            raise PlanError(f"{reason} (out of memory)") if is_out_of_memory else ModelFileError(reason)
        self.pointer = pointer
        self.vocab = llama.llama_model_get_vocab(pointer)
        self.n_ctx_train = int(llama.llama_model_n_ctx_train(pointer))
        """Context length that the model was trained with, in tokens; a context with YaRN changes llama.cpp's value."""
        self._is_eog: dict[int, bool] = {}
        self._finalizer = weakref.finalize(self, llama.llama_model_free, pointer)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokeniser of the model's vocabulary. Raises ModelFileError if llama.cpp would crash with this vocabulary."""
        keys = ("tokenizer.ggml.pre", "tokenizer.ggml.model")
        return Tokenizer(self.bindings, self.vocab, self.path, *(self._read_metadata(key) for key in keys))

    def close(self) -> None:
        """Free the model now; its contexts must be closed first. A second call does nothing."""
        self._finalizer()

    @cached_property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.tokenizer.n_vocab

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
        """True for a model that generates no text, by the rule of `modelfile.header.ModelHeader.is_embedding`."""
        return self._pooling_type in {"1", "2", "3", "4"}

    @cached_property
    def is_reranker(self) -> bool:
        """True for a reranker, by the same rule as `edgechat.modelfile.header.ModelHeader.is_reranker`."""
        return self._pooling_type == "4"

    @cached_property
    def has_softmax(self) -> bool:
        """True if llama.cpp applies the softmax function to the outputs of a reranker (`llm_graph_context`)."""
        return self._architecture in {"qwen3", "qwen3vl"}

    @property
    def n_labels(self) -> int:
        """Number of outputs of the classifier of a reranker."""
        return int(self.bindings.llama.llama_model_n_cls_out(self.pointer))

    @cached_property
    def _architecture(self) -> str:
        return self._read_metadata("general.architecture")

    @cached_property
    def _pooling_type(self) -> str:
        return self._read_metadata(f"{self._architecture}.pooling_type")

    def _read_metadata(self, key: str) -> str:
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
    def bos_token(self) -> int:
        """The beginning-of-sequence token; -1 if the model has none."""
        return int(self.bindings.llama.llama_vocab_bos(self.vocab))

    @property
    def fim_tokens(self) -> dict[str, int]:
        """Tokens for infilling (fill-in-the-middle) by their role, without those that the vocabulary lacks."""
        llama = self.bindings.llama
        functions = {
            "prefix": llama.llama_vocab_fim_pre, "suffix": llama.llama_vocab_fim_suf,
            "middle": llama.llama_vocab_fim_mid, "repository": llama.llama_vocab_fim_rep,
            "separator": llama.llama_vocab_fim_sep,
        }  # fmt: skip
        tokens = {role: int(function(self.vocab)) for role, function in functions.items()}
        return {role: token for role, token in tokens.items() if token >= 0}

    @property
    def bos(self) -> str:
        """Text of the beginning-of-sequence token; "" if the model has none."""
        return self._get_token_text(self.bos_token)

    @property
    def eos(self) -> str:
        """Text of the end-of-sequence token; "" if the model has none."""
        return self._get_token_text(self.bindings.llama.llama_vocab_eos(self.vocab))

    def _get_token_text(self, token: int) -> str:
        return self.token_to_piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    @property
    def chat_template(self) -> str | None:
        """Chat template in the model file; None if the file has no template."""
        text = self.bindings.llama.llama_model_chat_template(self.pointer, None)
        return text.decode("utf-8", "replace") if text else None

    @property
    def rerank_template(self) -> str | None:
        """Template of a reranker with the placeholders {query} and {document}; None if the file has none."""
        text = self.bindings.llama.llama_model_chat_template(self.pointer, b"rerank")
        return text.decode("utf-8", "replace") if text else None

    def metadata_keys(self) -> list[str]:
        """Return the metadata keys of the model file."""
        llama, buffer = self.bindings.llama, ctypes.create_string_buffer(256)
        return [
            buffer.value.decode("utf-8", "replace")
            for i in range(int(llama.llama_model_meta_count(self.pointer)))
            if llama.llama_model_meta_key_by_index(self.pointer, i, buffer, len(buffer)) >= 0
        ]

    @property
    def control_tokens(self) -> dict[str, int]:
        """Special tokens (control and unknown) by text, longest first. User text must never produce a special token."""
        return self.tokenizer.control_tokens

    def is_eog(self, token: int) -> bool:
        """Return whether `token` is an end-of-generation token."""
        is_eog = self._is_eog.get(token)
        if is_eog is None:
            is_eog = self._is_eog[token] = bool(self.bindings.llama.llama_vocab_is_eog(self.vocab, token))
        return is_eog

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of a text of any length; `Tokenizer.iterate_tokens` describes the arguments.

        Raises EngineError.
        """
        return self.tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def tokenize_continuation(self, text: str) -> list[int]:
        """Return the tokens of a text that continues an output; see `Tokenizer.tokenize_continuation`."""
        return self.tokenizer.tokenize_continuation(text)

    def iterate_tokens(
        self, text: str, *, add_special: bool, parse_special: bool, guard: str = "", is_prompt: bool = False
    ) -> Iterator[list[int]]:
        """Yield the tokens of a text in parts; see `Tokenizer.iterate_tokens`. Raises EngineError."""
        return self.tokenizer.iterate_tokens(
            text, add_special=add_special, parse_special=parse_special, guard=guard, is_prompt=is_prompt
        )

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the UTF-8 bytes of `token`, which can be a part of a character.

        Without `special`, the bytes of a control token are b"".
        """
        return self.tokenizer.token_to_piece(token, special=special)

    def vocabulary_hash(self) -> str:
        """Return a hash that identifies the vocabulary, computed from its size and about 256 of its tokens."""
        stride = max(1, self.n_vocab // 256)
        digest = hashlib.blake2b(str(self.n_vocab).encode(), digest_size=8)
        for token in range(0, self.n_vocab, stride):
            digest.update(self.token_to_piece(token, special=True) + b"\n")
        return digest.hexdigest()


def _find_failure_reason(errors: list[str]) -> str:
    """Return the reason for a failed load from llama.cpp's error lines, without the function names before it."""
    for line in errors:
        for separator in ("error loading model: ", "error loading model "):
            if separator in line:
                return line.split(separator, 1)[1].strip()
    if errors:
        return errors[0].split(": ", 1)[-1]
    return "llama.cpp reported no reason. `edgechat doctor` shows the path of the log."
