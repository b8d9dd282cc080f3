"""Model drafters of the runtime: what they draft, and that they follow the text of their target."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from edgechat.draft_request import DraftRequest
from edgechat.errors import DrafterError, PlanError
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.drafter_choice import estimate_drafter
from edgechat.planner.drafter_plan import DrafterKind, DrafterPlan
from edgechat.planner.memory import LoadOptions
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context
from edgechat.runtime.drafter_context import DrafterContext
from edgechat.runtime.memory_report import read_memory_breakdown
from edgechat.runtime.model import Model
from edgechat.runtime.model_drafter import open_model_drafter
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
from tests.draft_runs import N_DRAFT, open_run
from tests.gemma_drafts import copy_truth_to_assistant, make_assistant, make_gemma4
from tests.models import KINDS, Kind, open_context, write_tiny
from tests.nextn_models import FIXED_STATE_ARCHITECTURES, NEXTN_ARCHITECTURES, make_nextn
from tests.tiny_files import make_other_vocabularies

PROMPT = [1, *CYCLE[20:60]]
HEADS: tuple[DrafterKind, ...] = ("mtp", "eagle3", "assistant")
DRAFTERS: tuple[DrafterKind, ...] = ("draft-model", *HEADS)


def write_pair(kind: DrafterKind, folder: Path, *, is_right: bool = True) -> tuple[Path, Path | None]:
    """Write a target that follows the cycle of tokens, and a drafter that is always right, or random."""
    if kind == "mtp":
        target = turn_into_chain(make_qwen35())
        return (copy_truth_to_heads(target) if is_right else target).write(folder / "target.gguf"), None
    target = turn_into_chain(make_gemma4() if kind == "assistant" else make_llama(n_layer=4))
    if kind == "eagle3":
        draft = copy_truth_to_eagle3(make_eagle3()) if is_right else make_eagle3()
    elif kind == "assistant":
        draft = copy_truth_to_assistant(make_assistant()) if is_right else make_assistant()
    else:
        draft = turn_into_chain(make_llama(3)) if is_right else make_llama(3)
    return target.write(folder / "target.gguf"), draft.write(folder / "draft.gguf")


@pytest.fixture(params=DRAFTERS)
def kind(request: pytest.FixtureRequest) -> DrafterKind:
    kind: DrafterKind = request.param
    return kind


@pytest.mark.parametrize("architecture", KINDS)
def test_model_drafts_for_itself_what_it_generates(architecture: Kind, native: Bindings, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", architecture)
    with open_run(native, path, "draft-model", path) as run:
        run.prefill(list(range(40, 70)))
        plain = run.generate_plainly(60)
        run.context.clear()
        run.prefill(list(range(40, 70)))
        if run.context.max_rollback:
            assert run.generate(60) == plain
            assert run.acceptance > 0.9  # rounding differs between batches of different sizes
        else:
            assert run.draft()[0] == plain[1 : 1 + N_DRAFT]


def test_right_drafter_is_right(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    with open_run(native, *order_pair(write_pair(kind, tmp_path), kind)) as run:
        run.prefill(PROMPT)
        assert run.generate(400) == follow_chain(PROMPT[-1], 400)
        assert run.acceptance > 0.95
        assert run.n_steps <= 400 / (1 + N_DRAFT) / 0.95


def test_random_drafter_changes_nothing(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    with open_run(native, *order_pair(write_pair(kind, tmp_path, is_right=False), kind)) as run:
        run.prefill(PROMPT)
        assert run.generate(50) == follow_chain(PROMPT[-1], 50)
        assert run.acceptance < 0.5


@pytest.mark.parametrize("architecture", [a for a in NEXTN_ARCHITECTURES if a not in FIXED_STATE_ARCHITECTURES])
def test_heads_of_each_architecture(architecture: str, native: Bindings, tmp_path: Path) -> None:
    path = copy_truth_to_heads(turn_into_chain(make_nextn(architecture))).write(tmp_path / "chain.gguf")
    with open_run(native, path, "mtp") as run:
        run.prefill(PROMPT)
        assert run.generate(60) == follow_chain(PROMPT[-1], 60)
        assert run.acceptance > 0.95


def order_pair(pair: tuple[Path, Path | None], kind: DrafterKind) -> tuple[Path, DrafterKind, Path | None]:
    return pair[0], kind, pair[1]


def test_probabilities_are_those_of_the_largest_logits(native: Bindings, tmp_path: Path) -> None:
    target, draft = write_pair("draft-model", tmp_path)
    with open_run(native, target, "draft-model", draft) as run:
        run.prefill(PROMPT)
        result = run.drafter.draft({0: DraftRequest(run.next_tokens[0], 3)})[0]
        assert len(result.tokens) == len(result.probabilities) == 3
        assert all(0.9 < p <= 1 for p in result.probabilities)
        assert run.draft(min_probability=1.1) == {0: []}


def test_draft_ends_before_an_end_token_unless_it_is_ignored(native: Bindings, tmp_path: Path) -> None:
    file = turn_into_chain(make_llama())
    # After the third token of the draft, the model ends its reply.
    token = follow_chain(PROMPT[-1], 4)[-1]
    table = file.tensors["token_embd.weight"]
    file.tensors["output.weight"][file.vocabulary.eos] = table[token] * 2.2
    path = file.write(tmp_path / "model.gguf")
    with open_run(native, path, "draft-model", path) as run:
        run.prefill(PROMPT)
        assert run.draft(max_tokens=7) == {0: follow_chain(run.next_tokens[0], 3)}
        assert run.draft(max_tokens=4, ends_at_eog=False) == {
            0: [*follow_chain(run.next_tokens[0], 3), file.vocabulary.eos]
        }


def test_two_sequences_with_drafts_of_different_lengths(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    with open_run(native, *order_pair(write_pair(kind, tmp_path), kind)) as run:
        run.prefill(PROMPT, 0)
        run.prefill(PROMPT[:15], 1)
        for n_tokens in (1, 3, 7):
            drafts = run.draft(0, 1, max_tokens=n_tokens)
            for seq, draft in drafts.items():
                assert draft == follow_chain(run.next_tokens[seq], n_tokens)
                run.verify(draft[:N_DRAFT], seq)


def test_more_sequences_than_the_plan_has(native: Bindings, tmp_path: Path) -> None:
    target, draft = write_pair("draft-model", tmp_path)
    with open_run(native, target, "draft-model", draft, plan={"n_seqs": 1}) as run:
        for seq in (0, 1):
            run.prefill(PROMPT[: 10 + seq], seq)
        for seq in (0, 1, 0, 1):
            assert run.draft(seq)[seq] == follow_chain(run.next_tokens[seq], N_DRAFT)
        assert list(run.draft(0, 1)) == [0]


def test_sleeping_drafter_has_no_memory_and_no_drafts(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    with open_run(native, *order_pair(write_pair(kind, tmp_path), kind)) as run:
        run.prefill(PROMPT)
        run.generate(10)
        run.drafter.sleep()
        assert run.drafter.context is None
        assert run.draft() == {}
        run.generate_plainly(10)
        assert run.drafter.wake()
        run.verify([])
        assert run.draft() == {0: follow_chain(run.next_tokens[0], N_DRAFT)}


def test_drafter_whose_file_has_gone_stays_asleep(native: Bindings, tmp_path: Path) -> None:
    target, draft = write_pair("draft-model", tmp_path)
    assert draft is not None
    with open_run(native, target, "draft-model", draft) as run:
        run.drafter.sleep()
        draft.unlink()
        assert not run.drafter.wake()
        run.prefill(PROMPT)
        assert run.draft() == {}


def test_assistant_waits_for_free_cells(native: Bindings, tmp_path: Path) -> None:
    """It needs a cell of its target for a moment; other sequences may hold all of them."""
    with open_run(native, *order_pair(write_pair("assistant", tmp_path), "assistant"), n_ctx=256) as run:
        run.prefill(PROMPT)
        run.context.decode([1] * (256 - len(PROMPT)), 1)
        assert run.draft() == {}
        run.context.drop(1)
        assert run.draft() == {0: follow_chain(run.next_tokens[0], N_DRAFT)}


def test_failure_becomes_one_error(native: Bindings, tmp_path: Path) -> None:
    target, draft = write_pair("draft-model", tmp_path)
    with open_run(native, target, "draft-model", draft) as run:
        run.prefill(PROMPT)
        run.next_tokens[0] = -1  # no token
        with pytest.raises(DrafterError, match="failed to draft"):
            run.draft()
        run.next_tokens[0] = run.argmax(-1)
        assert run.draft() == {0: follow_chain(run.next_tokens[0], N_DRAFT)}


@pytest.mark.parametrize("name", make_other_vocabularies())
def test_vocabulary_must_match(name: str, native: Bindings, tmp_path: Path) -> None:
    vocabulary, is_allowed = make_other_vocabularies()[name]
    if "first five" in name:
        vocabulary.tokens[4] = (vocabulary.tokens[4][0], gguf.TokenType.NORMAL)  # llama.cpp would reject the byte token
    target = turn_into_chain(make_llama()).write(tmp_path / "target.gguf")
    draft = turn_into_chain(make_llama(vocabulary=vocabulary)).write(tmp_path / "draft.gguf")
    if is_allowed:
        for pair in ((target, draft), (draft, target)):
            with open_run(native, pair[0], "draft-model", pair[1]) as run:
                run.prefill(PROMPT)
                assert run.generate(30) == follow_chain(PROMPT[-1], 30)
        return
    with pytest.raises(PlanError, match="cannot draft for"), open_run(native, target, "draft-model", draft):
        pass


def test_tokens_that_only_one_vocabulary_has(native: Bindings, tmp_path: Path) -> None:
    """The model never gets a draft token that it lacks, and the drafter never one that it lacks."""
    vocabulary, _ = make_other_vocabularies()["100 more tokens"]
    small, large = make_llama(), make_llama(vocabulary=vocabulary)
    n_small = small.n_vocab
    large.tensors["output.weight"][n_small:] *= 100
    small_path, large_path = small.write(tmp_path / "small.gguf"), large.write(tmp_path / "large.gguf")
    with open_run(native, small_path, "draft-model", large_path) as run:
        run.prefill(PROMPT)
        run.generate(50)
        assert run.n_drafted > 10
    with open_run(native, large_path, "draft-model", small_path) as run:
        run.prefill(PROMPT)
        assert max(run.generate(50)) >= n_small


def test_files_that_cannot_draft(native: Bindings, tmp_path: Path) -> None:
    target, head = write_pair("eagle3", tmp_path)
    gemma = make_gemma4().write(tmp_path / "gemma.gguf")
    assistant = make_assistant().write(tmp_path / "assistant.gguf")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(target.read_bytes()[:5000])
    cases: list[tuple[Path, DrafterKind, Path | None, str]] = [
        (target, "draft-model", head, "does not generate text"),
        (target, "draft-model", damaged, "damaged.gguf"),
        (target, "draft-model", tmp_path / "missing.gguf", "missing.gguf"),
        (target, "mtp", None, "has no prediction heads"),
        (target, "eagle3", assistant, "no heads of the kind eagle3"),
        (target, "assistant", assistant, "only for Gemma 4"),
        (gemma, "eagle3", target, "no heads of the kind eagle3"),
    ]
    for path, kind, draft, message in cases:
        with pytest.raises(PlanError, match=message), open_run(native, path, kind, draft):
            pass


def test_heads_that_were_not_loaded(native: Bindings, tmp_path: Path) -> None:
    """llama.cpp would abort the process."""
    path, _ = write_pair("mtp", tmp_path)
    model = Model(native, path)
    context = open_context(model, n_threads=2, n_ctx=512)
    with pytest.raises(PlanError, match="without its prediction heads"):
        open_model_drafter(context, DrafterPlan(kind="mtp"))
    context.close()


def test_context_is_closed_before_its_drafter(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    with open_run(native, *order_pair(write_pair(kind, tmp_path), kind)) as run:
        run.prefill(PROMPT)
        run.generate(10)
        run.context.close()
        assert run.drafter.context is None


@pytest.mark.parametrize("n_seqs", [1, 2, 4])
def test_memory_is_at_most_as_planned(kind: DrafterKind, n_seqs: int, native: Bindings, tmp_path: Path) -> None:
    target, draft = write_pair(kind, tmp_path)
    _check_memory(native, target, kind, draft, n_seqs)


@pytest.mark.parametrize("architecture", ["mamba", "hybrid", "hybrid sliding", "sliding", "moe"])
def test_memory_of_other_draft_models_is_as_planned(architecture: Kind, native: Bindings, tmp_path: Path) -> None:
    target, draft = make_llama().write(tmp_path / "target.gguf"), write_tiny(tmp_path / "draft.gguf", architecture)
    _check_memory(native, target, "draft-model", draft, 2)


def test_memory_of_an_assistant_beside_a_long_context_is_as_planned(native: Bindings, tmp_path: Path) -> None:
    target, draft = write_pair("assistant", tmp_path)
    _check_memory(native, target, "assistant", draft, 2, n_ctx=1 << 17)


def _check_memory(
    native: Bindings, target: Path, kind: DrafterKind, draft: Path | None, n_seqs: int, n_ctx: int = 2048
) -> None:
    """Compare the plan with what llama.cpp allocates for the drafter, and in addition for its target."""
    profile = ModelProfile.from_header(read_header(target))
    own_profile = profile if draft is None else ModelProfile.from_header(read_header(draft))
    options = LoadOptions(n_ctx=n_ctx, n_seqs=n_seqs, n_rs_seq=N_DRAFT if profile.n_state_layers else 0)
    plan = estimate_drafter(kind, own_profile, profile, options)
    with open_run(native, target, kind, draft, plan={"n_seqs": plan.n_seqs}, n_seqs=n_seqs, n_ctx=n_ctx) as run:
        run.prefill(PROMPT)
        assert run.draft()
        assert run.drafter.context is not None
        n_used = _sum_memory(run.drafter.context)
        n_used_by_target = _sum_memory(run.context)
    model = Model(native, target)
    context = open_context(model, n_seqs=n_seqs, n_threads=2, n_ctx=n_ctx, n_batch=512, n_rs_seq=N_DRAFT)
    n_used_alone = _sum_memory(context)
    context.close()
    model.close()
    assert n_used_by_target["context"] == n_used_alone["context"]
    n_used["compute"] += n_used_by_target["compute"] - n_used_alone["compute"]
    if kind == "mtp":
        n_used["model"] = n_used_by_target["model"] - n_used_alone["model"]
    assert n_used["context"] <= plan.kv_cache <= 1.3 * n_used["context"]
    assert n_used["compute"] <= plan.compute <= n_used["compute"] + (3 << 20)  # of which 2 MiB are a reserve
    assert n_used["model"] <= plan.weights


def _sum_memory(context: Context | DrafterContext) -> dict[str, int]:
    """Return the bytes of a context over all types of buffers."""
    sizes = read_memory_breakdown(context).values()
    return {part: sum(s[f"{part}_bytes"] for s in sizes) for part in ("model", "context", "compute")}
