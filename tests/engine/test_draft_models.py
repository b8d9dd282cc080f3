"""The tiny models with prediction heads are what llama.cpp expects, and heads that copy the truth are always right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgechat.prefix.common_prefix import common_prefix_length
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
from tests.engine.reference_drafters import N_DRAFT, Kind, ReferenceRun, measure_gap
from tests.gemma_drafts import copy_truth_to_assistant, make_assistant, make_gemma4
from tests.nextn_models import CHAINED_ARCHITECTURES, FIXED_STATE_ARCHITECTURES, NEXTN_ARCHITECTURES, make_nextn

PROMPT = [1, *CYCLE[20:30]]
N_TOKENS = 100
DRAFTED = [name for name in NEXTN_ARCHITECTURES if name not in FIXED_STATE_ARCHITECTURES]


def run(native: Bindings, target: Path, kind: Kind | None, draft: Path | None = None) -> tuple[list[int], ReferenceRun]:
    with ReferenceRun(native, target, kind, draft) as reference:
        return reference.generate(PROMPT, N_TOKENS), reference


def _check_drafts(reference: ReferenceRun, *, is_right: bool) -> None:
    """Check the acceptance, and that right drafts save the steps that they can."""
    assert reference.n_drafted > 0
    assert (reference.acceptance > 0.95) == is_right
    if is_right:
        assert reference.n_steps == -(-(N_TOKENS - 1) // (N_DRAFT + 1))


@pytest.mark.parametrize("architecture", DRAFTED)
def test_model_with_a_random_head_generates_the_same(architecture: str, native: Bindings, tmp_path: Path) -> None:
    path = make_nextn(architecture, seed=3).write(tmp_path / "heads.gguf")
    without = make_nextn(architecture, seed=3, n_heads=0).write(tmp_path / "none.gguf")
    plain, _ = run(native, without, None)
    drafted, reference = run(native, path, "mtp")
    n_same = common_prefix_length(plain, drafted)
    if n_same < N_TOKENS:
        assert measure_gap(native, without, PROMPT + plain[:n_same]) < 0.01
    assert n_same > 20
    assert len(set(plain)) > 10
    assert reference.n_drafted > 0


@pytest.mark.parametrize("architecture", DRAFTED)
def test_head_that_copies_the_truth_is_always_right(architecture: str, native: Bindings, tmp_path: Path) -> None:
    path = copy_truth_to_heads(turn_into_chain(make_nextn(architecture))).write(tmp_path / "chain.gguf")
    output, reference = run(native, path, "mtp")
    assert output == follow_chain(PROMPT[-1], N_TOKENS)
    _check_drafts(reference, is_right=True)


@pytest.mark.parametrize("architecture", CHAINED_ARCHITECTURES)
def test_chain_of_three_heads(architecture: str, native: Bindings, tmp_path: Path) -> None:
    path = copy_truth_to_heads(turn_into_chain(make_nextn(architecture, n_heads=3))).write(tmp_path / "chain.gguf")
    output, reference = run(native, path, "mtp")
    assert output == follow_chain(PROMPT[-1], N_TOKENS)
    assert reference.n_heads == 3
    assert reference.acceptance > 0.95


@pytest.mark.parametrize("architecture", FIXED_STATE_ARCHITECTURES)
def test_head_of_a_model_whose_state_cannot_be_rolled_back(architecture: str, native: Bindings, tmp_path: Path) -> None:
    """llama.cpp has the prediction head, but the model cannot verify more than one token."""
    path = copy_truth_to_heads(turn_into_chain(make_nextn(architecture))).write(tmp_path / "chain.gguf")
    with ReferenceRun(native, path, "mtp") as reference:
        reference.target.compute(PROMPT, 0)
        assert not reference.target.can_truncate(len(PROMPT) - 1)
    output, reference = run(native, path, "mtp")  # all drafts are right, so none is removed
    assert output == follow_chain(PROMPT[-1], N_TOKENS)
    assert reference.acceptance > 0.95


def test_wrong_hidden_rows_make_wrong_drafts(native: Bindings, tmp_path: Path) -> None:
    """Otherwise the acceptance of a head that copies the truth would not show that it got the right rows."""
    path = copy_truth_to_heads(turn_into_chain(make_qwen35())).write(tmp_path / "chain.gguf")
    with ReferenceRun(native, path, "mtp") as reference:
        reference.target.compute(PROMPT, 0, all_outputs=True)
        rows = np.concatenate([reference.read_target_row(i) for i in range(len(PROMPT))])
        token = reference.target.argmax()
        assert reference.draft(PROMPT, token, rows) == follow_chain(token, N_DRAFT)
        assert reference.draft(PROMPT, token, rows[:-1]) == follow_chain(PROMPT[-1], N_DRAFT)


@pytest.mark.parametrize("is_right", [False, True])
def test_eagle3_head(native: Bindings, tmp_path: Path, is_right: bool) -> None:
    target, head = turn_into_chain(make_llama(n_layer=4)), make_eagle3()
    head = copy_truth_to_eagle3(head) if is_right else head
    output, reference = run(
        native, target.write(tmp_path / "target.gguf"), "eagle3", head.write(tmp_path / "head.gguf")
    )
    assert output == follow_chain(PROMPT[-1], N_TOKENS)
    _check_drafts(reference, is_right=is_right)


@pytest.mark.parametrize("is_right", [False, True])
def test_draft_model(native: Bindings, tmp_path: Path, is_right: bool) -> None:
    target, draft = turn_into_chain(make_llama()), make_llama(seed=1, n_layer=1)
    draft = turn_into_chain(draft) if is_right else draft
    output, reference = run(
        native, target.write(tmp_path / "target.gguf"), "draft-model", draft.write(tmp_path / "draft.gguf")
    )
    assert output == follow_chain(PROMPT[-1], N_TOKENS)
    _check_drafts(reference, is_right=is_right)


@pytest.mark.parametrize("is_right", [False, True])
def test_gemma4_assistant(native: Bindings, tmp_path: Path, is_right: bool) -> None:
    target, assistant = turn_into_chain(make_gemma4()), make_assistant()
    assistant = copy_truth_to_assistant(assistant) if is_right else assistant
    output, reference = run(
        native, target.write(tmp_path / "target.gguf"), "assistant", assistant.write(tmp_path / "assistant.gguf")
    )
    assert output == follow_chain(PROMPT[-1], N_TOKENS)
    _check_drafts(reference, is_right=is_right)
