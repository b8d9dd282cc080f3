"""Drafts of models and of prediction heads never change the output, and heads that know the truth save steps."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgechat.config import GREEDY, Sampling
from edgechat.runtime.bindings import Bindings
from tests.draft_models import CYCLE, follow_chain
from tests.engine.drafted_models import (
    NOISE,
    PAIR_KINDS,
    PERFECT_KINDS,
    Comparison,
    DraftedPair,
    PairKind,
    count_model_drafts,
)

pytestmark = pytest.mark.usefixtures("eager_model")
# Share of sampled replies in which a rounding difference may choose another token.
MAX_ROUNDED_SHARE = 0.1
# Number of seeds for which one model is written and loaded, which takes longer than the replies.
SEEDS_PER_MODEL = 10


def make_prompt(seed: int, n_tokens: int = 20) -> list[int]:
    return [1, *random.Random(seed).choices(CYCLE, k=n_tokens)]


def make_sampling(seed: int) -> Sampling:
    """Return greedy sampling for even seeds, and one of several kinds of random sampling for odd ones."""
    if seed % 2 == 0:
        return GREEDY
    rng = random.Random(seed)
    return Sampling(
        temperature=rng.choice([0.3, 0.8, 1.0]), top_k=rng.choice([0, 3, 40]), top_p=rng.choice([0.5, 0.95, 1.0]),
        min_p=rng.choice([0.0, 0.05]), repeat_penalty=rng.choice([1.0, 1.1]), mirostat=rng.choice([0, 0, 2]), seed=seed,
    )  # fmt: skip


def compare_seeds(native: Bindings, kind: PairKind, directory: Path, seeds: Sequence[int]) -> None:
    """Compare greedy replies of noisy targets, and sampled ones of targets without noise; some seeds share a model.

    Without noise, the logits do not depend on the shape of a batch, so that rounding differences choose no other token;
    the high temperature makes most drafts wrong. Targets whose noise cannot be turned off may differ a few times.
    """
    counts: Counter[str] = Counter()
    groups: dict[tuple[int, bool], list[int]] = {}
    for seed in seeds:
        groups.setdefault((seed // SEEDS_PER_MODEL, seed % 2 == 1 and kind in PERFECT_KINDS), []).append(seed)
    for (model_seed, is_exact), model_seeds in groups.items():
        pair = DraftedPair(kind, directory, model_seed, noise=0.0 if is_exact else NOISE)
        with Comparison(native, pair) as comparison:
            for seed in model_seeds:
                sampling = make_sampling(seed)
                if is_exact:
                    sampling = msgspec.structs.replace(sampling, temperature=3 * sampling.temperature, min_p=0.0)
                comparison.ask(make_prompt(seed), sampling=sampling, ignore_eog=seed % 3 > 0)
                assert not (is_exact and comparison.n_rounded), seed
        counts += Counter(
            drafted=comparison.n_drafted, accepted=comparison.n_accepted, rounded=comparison.n_rounded
        )  # fmt: skip
        for path in (pair.target, pair.draft):
            path.unlink(missing_ok=True)
    assert counts["rounded"] <= max(1, MAX_ROUNDED_SHARE * len(seeds))
    assert counts["drafted"] - counts["accepted"] > 5 * len(seeds), "too few drafts were rejected"
    if kind != "recurrent draft model":
        assert counts["accepted"] > 5 * len(seeds), "too few drafts were accepted"


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_drafts_leave_the_output_unchanged(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    compare_seeds(native, kind, tmp_path, range(6))


@pytest.mark.long
@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_drafts_leave_the_output_of_many_models_unchanged(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    compare_seeds(native, kind, tmp_path, range(6, 60))


@pytest.mark.long
@pytest.mark.exhaustive
@pytest.mark.parametrize("start", range(60, 1000, 94))
@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_drafts_leave_the_output_of_all_models_unchanged(
    kind: PairKind, start: int, native: Bindings, tmp_path: Path
) -> None:
    compare_seeds(native, kind, tmp_path, range(start, start + 94))


@pytest.mark.parametrize("kind", PERFECT_KINDS)
def test_heads_that_know_the_truth_save_steps(
    kind: PairKind, native: Bindings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all drafts are right, and the target decodes as many batches less."""
    pair = DraftedPair(kind, tmp_path, noise=0.0)
    model = pair.open(native)
    prompt = [1, *CYCLE[:10]]
    n_batches, decode = 0, model.context._decode

    def count_and_decode(*arguments: Any, **options: Any) -> Any:
        nonlocal n_batches
        n_batches += 1
        return decode(*arguments, **options)

    monkeypatch.setattr(model.context, "_decode", count_and_decode)
    tokens, final = model.ask(prompt, max_tokens=121)
    assert tokens == follow_chain(prompt[-1], 121)
    max_tokens = 3 if kind == "three heads" else 7
    n_drafted, n_accepted = count_model_drafts(final.stats)
    assert n_accepted > 0.95 * n_drafted
    # The prompt, and steps of `max_tokens` and one more token.
    assert n_batches <= 1 + 120 / (max_tokens + 1) / 0.95
    n_batches = 0
    assert model.ask(prompt, max_tokens=121, speculate=False)[0] == tokens
    assert n_batches >= 120
    model.model.close()
