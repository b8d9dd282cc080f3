"""The tiny models with prediction heads are what llama.cpp expects, and heads that copy the truth are always right."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.runtime.bindings import Bindings
from tests.draft_models import (
    CYCLE,
    copy_truth_to_eagle3,
    copy_truth_to_heads,
    follow_chain,
    make_eagle3,
    make_llama,
    make_qwen35,
    turn_into_chain,
)
from tests.engine.reference_drafters import N_DRAFT, Kind, ReferenceRun

PROMPT = [1, *CYCLE[20:30]]
N_TOKENS = 100


def run(native: Bindings, target: Path, kind: Kind | None, draft: Path | None = None) -> tuple[list[int], ReferenceRun]:
    with ReferenceRun(native, target, kind, draft) as reference:
        return reference.generate(PROMPT, N_TOKENS), reference


def test_hybrid_with_a_random_head_generates_the_same(native: Bindings, tmp_path: Path) -> None:
    path = make_qwen35(seed=3).write(tmp_path / "heads.gguf")
    without = make_qwen35(seed=3, n_heads=0).write(tmp_path / "none.gguf")
    plain, _ = run(native, without, None)
    drafted, reference = run(native, path, "mtp")
    assert drafted == plain
    assert reference.n_drafted > 0


def test_head_that_copies_the_truth_is_always_right(native: Bindings, tmp_path: Path) -> None:
    path = copy_truth_to_heads(turn_into_chain(make_qwen35())).write(tmp_path / "chain.gguf")
    output, reference = run(native, path, "mtp")
    assert output == follow_chain(PROMPT[-1], N_TOKENS)
    assert reference.acceptance > 0.95
    assert reference.n_steps == -(-(N_TOKENS - 1) // (N_DRAFT + 1))


@pytest.mark.parametrize("is_right", [False, True])
def test_eagle3_head(native: Bindings, tmp_path: Path, is_right: bool) -> None:
    target, head = turn_into_chain(make_llama(n_layer=4)), make_eagle3()
    head = copy_truth_to_eagle3(head) if is_right else head
    output, reference = run(
        native, target.write(tmp_path / "target.gguf"), "eagle3", head.write(tmp_path / "head.gguf")
    )
    assert output == follow_chain(PROMPT[-1], N_TOKENS)
    assert (reference.acceptance > 0.95) == is_right
    assert reference.n_drafted > 0


@pytest.mark.parametrize("is_right", [False, True])
def test_draft_model(native: Bindings, tmp_path: Path, is_right: bool) -> None:
    target, draft = turn_into_chain(make_llama()), make_llama(seed=1, n_layer=1)
    draft = turn_into_chain(draft) if is_right else draft
    output, reference = run(
        native, target.write(tmp_path / "target.gguf"), "draft-model", draft.write(tmp_path / "draft.gguf")
    )
    assert output == follow_chain(PROMPT[-1], N_TOKENS)
    assert (reference.acceptance > 0.95) == is_right
    assert reference.n_drafted > 0
