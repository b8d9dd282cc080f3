"""Chains of several sequences in one batch, and their rollbacks, leave the logits of each sequence unchanged."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context
from edgechat.runtime.model import Model
from tests.fuzzing import shorten
from tests.models import KINDS, open_context, write_tiny
from tests.nextn_models import FIXED_STATE_ARCHITECTURES, NEXTN_ARCHITECTURES, make_nextn

N_SEQS = 4


def draw_lengths(context: Context, rng: random.Random) -> dict[int, int]:
    """Return the number of drafted tokens of some sequences, in an order in which the context accepts them."""
    seqs = rng.sample(range(N_SEQS), rng.randint(1, N_SEQS))
    common = rng.randint(1, min(4, context.max_rollback)) if context.max_rollback else 0
    lengths = {
        seq: (common if context.needs_equal_drafts else rng.randint(0, common)) if rng.random() < 0.7 else 0
        for seq in seqs
    }
    return dict(sorted(lengths.items(), key=lambda item: item[1]))


def run_steps(model: Model, seed: int) -> float:
    """Decode and roll back random chains; return the largest difference to single tokens, as a share of the range."""
    rng = random.Random(seed)
    context, plain = (
        open_context(model, n_ctx=1024, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=N_SEQS, n_rs_seq=n_rs_seq)
        for n_rs_seq in (7, 0)
    )

    def draw_tokens(n_tokens: int) -> list[int]:
        return [rng.randrange(10, 300) for _ in range(n_tokens)]

    for seq in range(N_SEQS):
        prompt = draw_tokens(5 + 3 * seq)
        context.decode(prompt, seq)
        for token in prompt:
            plain.decode([token], seq)
    largest = 0.0
    for _ in range(8):
        lengths = draw_lengths(context, rng)
        chains = {seq: draw_tokens(1 + n) for seq, n in lengths.items()}
        n_rejected = {seq: rng.randint(0, n) for seq, n in lengths.items()}
        context.decode_chains(chains)
        index = 0
        for seq, chain in chains.items():
            for i, token in enumerate(chain[: len(chain) - n_rejected[seq]]):
                plain.decode([token], seq)
                expected = plain.logits(-1)
                difference = np.abs(context.logits(index + i) - expected).max()
                largest = max(largest, float(difference / (expected.max() - expected.min())))
            index += len(chain)
        for seq, n in n_rejected.items():
            context.rollback(seq, n)
    context.close()
    plain.close()
    return largest


ARCHITECTURES = [name for name in NEXTN_ARCHITECTURES if name not in FIXED_STATE_ARCHITECTURES]


@pytest.mark.parametrize("kind", [*KINDS, *ARCHITECTURES])
def test_chains_and_rollbacks_of_several_sequences(kind: str, native: Bindings, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    if kind in KINDS:
        write_tiny(path, kind)
    else:
        make_nextn(kind, n_heads=0).write(path)
    model = Model(native, path)
    differences = {seed: run_steps(model, seed) for seed in range(shorten(100, 25))}
    assert max(differences.values()) < 0.02, {seed: d for seed, d in differences.items() if d >= 0.02}
