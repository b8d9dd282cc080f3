"""Fake model and context with exactly reproducible logits: they depend only on the earlier tokens of a sequence."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Mapping, Sequence

import numpy as np

from edgechat.config import Sampling
from edgechat.hardware.contention import Stopwatch
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import DecodeAborted, NoKvSlotError
from edgechat.runtime.grammar import Grammar
from edgechat.runtime.sampler import Sampler

END = 0


class FakeModel:
    """Fake model whose tokens are letters; token 0 ends a text."""

    def __init__(self, bindings: Bindings, n_vocab: int, flatness: float = 3.0, end_logit: float = -4.0) -> None:
        self.bindings = bindings
        self.n_vocab = n_vocab
        self.flatness = flatness
        self.end_logit = end_logit
        self.control_tokens: dict[str, int] = {}
        self.n_ctx_train = 0
        self._logits: dict[object, list[float]] = {}

    def is_eog(self, token: int) -> bool:
        return token == END

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([97 + token % 26])

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [ord(letter) - 97 for letter in text]

    def logits(self, tokens: Sequence[int]) -> list[float]:
        """Compute logits from the last three tokens and `depth // 40`, so that texts often repeat themselves."""
        seed = f"{tokens[-3:]} {len(tokens) // 40}"
        key = seed, self.flatness, self.end_logit
        if key not in self._logits:
            rng = random.Random(seed)
            self._logits[key] = [
                rng.gauss(0, self.flatness) + (self.end_logit if token == END else 0.0) for token in range(self.n_vocab)
            ]
        return self._logits[key]


class FakeContext:
    """Fake of the part of a Context that the scheduler uses.

    `failures` maps the number of a decode (from 1) to the exception that this decode raises before any change.
    """

    can_truncate = True
    is_open = True

    def __init__(self, model: FakeModel, n_ctx: int = 400, n_cells: int | None = None) -> None:
        self.model = model
        self.n_ctx = self.max_n_ctx = n_ctx
        self.n_batch = 64
        self.max_outputs = 5
        self.n_seqs = 4
        self.max_rollback = 63
        self.needs_equal_drafts = False
        self.seq_tokens: dict[int, list[int]] = {seq: [] for seq in range(self.n_seqs)}
        self.rows: list[list[float]] = []
        self.widths: list[int] = []
        self.failures: dict[int, type[DecodeAborted | NoKvSlotError]] = {}
        self.n_cells = n_cells

    def tokens(self, seq: int = 0) -> list[int]:
        return self.seq_tokens[seq]

    def decode(self, tokens: Sequence[int], seq: int = 0, *, all_logits: bool = False) -> None:
        assert not all_logits or len(tokens) <= self.max_outputs
        self._decode([(seq, t) for t in tokens])

    def decode_chains(self, chains: Mapping[int, Sequence[int]]) -> None:
        self._decode([(seq, t) for seq, tokens in chains.items() for t in tokens])

    def decode_each(self, tokens: Mapping[int, int]) -> None:
        self._decode(list(tokens.items()))

    def _decode(self, entries: list[tuple[int, int]]) -> None:
        self.widths.append(len(entries))
        failure = self.failures.pop(len(self.widths), None)
        if failure is not None:
            raise failure
        if self.n_cells is not None and sum(map(len, self.seq_tokens.values())) + len(entries) > self.n_cells:
            raise NoKvSlotError
        self.rows = []
        for seq, token in entries:
            self.seq_tokens[seq].append(token)
            self.rows.append(self.model.logits(self.seq_tokens[seq]))
        assert all(len(tokens) <= self.n_ctx for tokens in self.seq_tokens.values())

    def logprobs(self, token: int, index: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        return self.rows[index][token], []

    def logprob(self, token: int, index: int) -> float:
        return self.rows[index][token]

    def rollback(self, seq: int, n_tokens: int) -> None:
        assert n_tokens <= self.max_rollback
        if n_tokens:
            del self.seq_tokens[seq][-n_tokens:]

    def commit_rollback(self, seq: int) -> None:
        pass

    def synchronize(self) -> None:
        pass

    uses_all_threads = True

    def start_stopwatch(self) -> Stopwatch:
        return Stopwatch(1)

    # Methods of `KvMemory`, which the prefix cache uses

    saves_full_state = False

    def can_rewind(self, seq: int, n_tokens: int) -> bool:
        return True

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        self.seq_tokens[target] = self.seq_tokens[source][:n_tokens]

    def separate_windows(self) -> bool:
        return False

    def clear(self) -> None:
        for seq in self.seq_tokens:
            self.seq_tokens[seq] = []

    def drop(self, seq: int) -> None:
        self.seq_tokens[seq] = []


class FakeSampler(Sampler):
    """llama.cpp's sampler chain applied to a fake context's logits, as `llama_sampler_sample` does."""

    def __init__(
        self, model: FakeModel, params: Sampling, _bias: object = None, grammar: Grammar | None = None
    ) -> None:
        super().__init__(model, params, grammar=grammar)  # type: ignore[arg-type]
        self._only_greedy = False

    def sample(self, context: FakeContext, index: int = -1) -> int:  # type: ignore[override]
        if self._grammar is None:
            return self._sample_logits(context.rows[index])
        row = np.array(context.rows[index], dtype=np.float32)
        with self._grammar.mask_disallowed(row):
            token = self._sample_logits([float(x) for x in row])
        self._grammar.accept(token)
        return token

    def _sample_logits(self, row: list[float]) -> int:  # type: ignore[override]
        llama = self._llama
        candidates = np.zeros(len(row), dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        candidates["id"], candidates["logit"] = np.arange(len(row)), row
        data = candidates.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        array = llama.llama_token_data_array(data, len(row), -1, False)
        llama.llama_sampler_apply(self.pointer, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama.llama_sampler_accept(self.pointer, token)
        return token
