"""Reference of model drafters: the C functions of llama.cpp called in order, for one sequence at temperature 0.

It shows that a tiny file is what llama.cpp expects, without the product's drafters.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from edgechat.runtime.bindings import Bindings

if TYPE_CHECKING:
    from typing_extensions import Self

Kind = Literal["mtp", "eagle3", "draft-model", "assistant"]
N_CTX: Final = 512
N_DRAFT: Final = 4


class Extensions:
    """Functions of llama-ext.h, which have C++ linkage."""

    def __init__(self, native: Bindings) -> None:
        self.nextn: Any = importlib.import_module("llama_cpp.llama_cpp_ext")
        library = native.llama._lib
        names = {
            "set_layer": ("llama_set_embeddings_layer_inp", "P13llama_contextjb", "XPEAUllama_context@@I_N", None),
            "get_layer": (
                "llama_get_embeddings_layer_inp", "P13llama_contextj", "PEAMPEAUllama_context@@I",
                ctypes.POINTER(ctypes.c_float),
            ),
        }  # fmt: skip
        for attribute, (name, arguments, windows, result) in names.items():
            mangled = (f"_Z{len(name)}{name}{arguments}", f"?{name}@@YA{windows}@Z")
            function = next(getattr(library, symbol) for symbol in mangled if hasattr(library, symbol))
            function.restype = result
            function.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool][: 3 if result is None else 2]
            setattr(self, attribute, function)

    set_layer: Any
    get_layer: Any


class LlamaContext:
    """A context of one sequence, which decodes tokens, embeddings or both."""

    def __init__(self, native: Bindings, model: Any, other: LlamaContext | None = None, **params: Any) -> None:
        self.llama = native.llama
        self.pointer: Any = None
        values = self.llama.llama_context_default_params()
        defaults = {"n_ctx": N_CTX, "n_batch": 128, "n_ubatch": 128, "n_seq_max": 1, "n_threads": 1}
        for name, value in ({**defaults, "n_threads_batch": 1} | params).items():
            setattr(values, name, value)
        if other is not None:
            values.ctx_other = other.pointer
        self.model = model
        self.pointer = self.llama.llama_init_from_model(model, values)
        assert self.pointer, native.log.take_errors()
        self.n_vocab = self.llama.llama_vocab_n_tokens(self.llama.llama_model_get_vocab(model))

    def close(self) -> None:
        self.llama.llama_free(self.pointer)

    def compute(
        self, tokens: Sequence[int] | None, start: int, rows: np.ndarray | None = None, *, all_outputs: bool = False
    ) -> None:  # fmt: skip
        """Decode `tokens` from position `start`, with embeddings `rows`; without tokens, encode the embeddings."""
        n = len(tokens) if tokens is not None else len(rows)  # type: ignore[arg-type]
        batch = self.llama.llama_batch()
        batch.n_tokens = n
        kept: list[Any] = []

        def keep(values: Any) -> Any:
            kept.append(values)
            return values

        if tokens is not None:
            batch.token = keep((self.llama.llama_token * n)(*tokens))
        if rows is not None:
            data = keep(np.ascontiguousarray(rows, dtype=np.float32))
            batch.embd = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = keep((self.llama.llama_pos * n)(*range(start, start + n)))
        batch.n_seq_id = keep((ctypes.c_int32 * n)(*[1] * n))
        seq = keep((self.llama.llama_seq_id * 1)(0))
        pointer = ctypes.POINTER(self.llama.llama_seq_id)
        batch.seq_id = keep((pointer * n)(*[ctypes.cast(seq, pointer)] * n))
        batch.logits = keep((ctypes.c_int8 * n)(*[int(all_outputs or tokens is None or i == n - 1) for i in range(n)]))
        function = self.llama.llama_encode if tokens is None else self.llama.llama_decode
        status = function(self.pointer, batch)
        assert status == 0, status

    def read_logits(self, row: int = -1) -> np.ndarray:
        pointer = self.llama.llama_get_logits_ith(self.pointer, row)
        return np.ctypeslib.as_array(pointer, (self.n_vocab,)).copy()

    def argmax(self, row: int = -1) -> int:
        return int(np.argmax(self.read_logits(row)))

    def can_truncate(self, start: int) -> bool:
        """Remove the tokens from position `start`, and return True if that is possible."""
        memory = self.llama.llama_get_memory(self.pointer)
        return bool(self.llama.llama_memory_seq_rm(memory, 0, start, -1))

    def truncate(self, start: int) -> None:
        assert self.can_truncate(start)


class ReferenceRun:
    """A target with an optional drafter of a `kind`; `generate` counts steps and accepted tokens."""

    def __init__(self, native: Bindings, target: Path, kind: Kind | None = None, draft: Path | None = None) -> None:
        self.native, self.kind = native, kind
        self.ext = Extensions(native)
        self.llama = native.llama
        self.models = [load_model(native, target, load_mtp=kind == "mtp")]
        self.target = LlamaContext(native, self.models[0], n_rs_seq=N_DRAFT)
        self.drafter: LlamaContext | None = None
        if draft is not None:
            self.models.append(load_model(native, draft))
        if kind == "mtp":
            mtp = self.llama.LLAMA_CONTEXT_TYPE_MTP
            self.drafter = LlamaContext(native, self.models[0], self.target, ctx_type=mtp)
        elif kind is not None:
            self.drafter = LlamaContext(native, self.models[1], self.target)
        self.n_embd = self.llama.llama_model_n_embd(self.models[0])
        self.n_heads = self.llama.llama_model_n_layer_nextn(self.models[0])
        self.layers: list[int] = []
        if kind in ("mtp", "assistant"):
            self.ext.nextn.llama_set_embeddings_nextn(self.target.pointer, True, True)
        if kind == "eagle3":
            assert draft is not None
            self.layers = read_target_layers(self.llama, self.models[1])
            for layer in self.layers:
                self.ext.set_layer(self.target.pointer, layer, True)
        if self.drafter is not None and kind != "draft-model":
            self.ext.nextn.llama_set_embeddings_nextn(self.drafter.pointer, True, True)
        self.n_steps = self.n_drafted = self.n_accepted = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for context in (self.drafter, self.target):
            if context is not None:
                context.close()
        for model in self.models:
            self.llama.llama_model_free(model)

    @property
    def acceptance(self) -> float:
        """Share of the draft tokens that were accepted."""
        return self.n_accepted / max(1, self.n_drafted)

    def generate(self, prompt: list[int], n_tokens: int) -> list[int]:
        """Return the `n_tokens` tokens after `prompt`."""
        self.target.compute(prompt, 0)
        rows = self._read_rows(len(prompt))[-1:]
        text, output = list(prompt), [self.target.argmax()]
        while len(output) < n_tokens:
            token = output[-1]
            draft = self.draft(text, token, rows) if self.drafter else []
            self.target.compute([token, *draft], len(text), all_outputs=True)
            choices = [self.target.argmax(i) for i in range(len(draft) + 1)]
            n = next((i for i, (a, b) in enumerate(zip(draft, choices, strict=False)) if a != b), len(draft))
            rows = self._read_rows(1 + len(draft), n + 1)
            text += [token, *draft[:n]]
            output += choices[: n + 1]
            if n < len(draft):
                self.target.truncate(len(text))
            self.n_steps, self.n_drafted, self.n_accepted = (
                self.n_steps + 1, self.n_drafted + len(draft), self.n_accepted + n
            )  # fmt: skip
        return output[:n_tokens]

    def _read_rows(self, n_batch: int, n_kept: int | None = None) -> np.ndarray:
        """Return hidden rows of the last batch of the target: all of its outputs, or the first `n_kept` of them."""
        if self.kind in (None, "draft-model"):
            return np.zeros((1, 1))
        if self.kind == "eagle3":
            get_layer, pointer = self.ext.get_layer, self.target.pointer
            parts = [as_rows(get_layer(pointer, layer), n_batch, self.n_embd) for layer in self.layers]
            rows = np.concatenate(parts, axis=1)
        else:
            indices = range(n_batch) if n_kept is not None else [-1]
            rows = np.concatenate([self.read_target_row(i) for i in indices])
        return rows if n_kept is None else rows[:n_kept]

    def read_target_row(self, i: int) -> np.ndarray:
        """Return the hidden row of the token `i` of the last batch, which must be an output."""
        return as_rows(self.ext.nextn.llama_get_embeddings_nextn_ith(self.target.pointer, i), 1, self.n_embd)

    def draft(self, text: list[int], token: int, rows: np.ndarray) -> list[int]:
        """Return the draft after `token`, which follows `text`. The last of `rows` is that of the end of `text`."""
        assert self.drafter is not None
        if self.kind == "draft-model":
            return self._draft_with_model(text, token)
        if self.kind != "assistant":
            # A cold drafter for each draft: chains need no context, and random drafts are bad in any case.
            self.drafter.truncate(0)
        if self.kind == "eagle3":
            self.drafter.compute(None, 0, rows[-1:])
            row = self._read_drafter_row(0)
            position = len(text) - 1
        else:
            row = rows[-1:]
            position = len(text)
        draft: list[int] = []
        step = 0 if self.kind == "assistant" else 1
        for i in range(N_DRAFT):
            if self.kind == "mtp":
                self.ext.nextn.llama_set_nextn_layer_offset(self.drafter.pointer, min(i, self.n_heads - 1))
            self.drafter.compute([draft[-1] if draft else token], position + i * step, row)
            draft.append(self.drafter.argmax())
            row = self._read_drafter_row(-1)
        return draft

    def _draft_with_model(self, text: list[int], token: int) -> list[int]:
        assert self.drafter is not None
        self.drafter.truncate(0)
        self.drafter.compute([*text[-8:], token], 0)
        draft = [self.drafter.argmax()]
        for i in range(1, N_DRAFT):
            self.drafter.compute(draft[-1:], min(len(text), 8) + i)
            draft.append(self.drafter.argmax())
        return draft

    def _read_drafter_row(self, i: int) -> np.ndarray:
        assert self.drafter is not None
        n_embd = self.llama.llama_model_n_embd_out(self.drafter.model)
        return as_rows(self.ext.nextn.llama_get_embeddings_nextn_ith(self.drafter.pointer, i), 1, n_embd)


def as_rows(pointer: Any, n_rows: int, n_embd: int) -> np.ndarray:
    """Return a copy of rows of floats."""
    return np.ctypeslib.as_array(pointer, (n_rows, n_embd)).copy()


def load_model(native: Bindings, path: Path, *, load_mtp: bool = False) -> Any:
    """Load a model file."""
    params = native.llama.llama_model_default_params()
    params.load_mtp = load_mtp
    pointer = native.llama.llama_model_load_from_file(os.fsencode(path), params)
    assert pointer, native.log.take_errors()
    return pointer


def read_target_layers(llama: Any, model: Any) -> list[int]:
    """Return the layers of the target whose inputs an EAGLE-3 head reads."""
    name = "llama_model_target_layer_ids"
    for symbol in (f"_Z{len(name)}{name}PK11llama_model", f"?{name}@@YAPEBHPEBUllama_model@@@Z"):
        if hasattr(llama._lib, symbol):
            function = getattr(llama._lib, symbol)
            function.restype, function.argtypes = ctypes.POINTER(ctypes.c_int32), [ctypes.c_void_p]
            return list(function(model)[:3])
    raise AssertionError("no symbol of llama_model_target_layer_ids")


def measure_gap(native: Bindings, path: Path, tokens: list[int]) -> float:
    """Return the difference of the two largest logits after `tokens`, as a share of the range of the logits."""
    with ReferenceRun(native, path) as reference:
        reference.target.compute(tokens, 0)
        logits = np.sort(reference.target.read_logits())
    return float((logits[-1] - logits[-2]) / (logits[-1] - logits[0]))
