"""Model drafters with grammars, stops, several replies, restored prefixes, elastic contexts, cancels and undo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgechat.config import Sampling
from edgechat.engine.drafting import DraftManager
from edgechat.hardware.free_memory import FreeMemory
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.model_drafter import open_model_drafter
from tests.draft_models import CYCLE
from tests.engine.drafted_models import PAIR_KINDS, PERFECT_KINDS, Comparison, DraftedPair, PairKind
from tests.engine.test_lossless_model_drafts import make_prompt
from tests.engine.text_models import SteppedModel
from tests.models import growth

pytestmark = pytest.mark.usefixtures("eager_model")
MIB = 1 << 20
SAMPLED = Sampling(temperature=0.8, seed=7)
# One of each way in which a drafter gets its input: hidden rows, layers, tokens, tokens with a state, and KV cells.
KINDS: tuple[PairKind, ...] = ("hybrid with head", "EAGLE-3", "draft model", "hybrid pair", "assistant")


def open_pair(native: Bindings, kind: PairKind, directory: Path, **options: Any) -> Comparison:
    return Comparison(native, DraftedPair(kind, directory), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), SAMPLED], ids=["greedy", "sampled"])
def test_grammar(kind: PairKind, sampling: Sampling, native: Bindings, tmp_path: Path) -> None:
    with open_pair(native, kind, tmp_path) as comparison:
        for grammar in ("start: /[a-m]{5,30}/", "start: /([0-9A-Z]|the)+/", 'start: "x" /[^x]{10,20}/ "x"'):
            comparison.ask(make_prompt(1), grammars=[grammar], sampling=sampling, ignore_eog=False)
        assert comparison.n_rounded <= 1
        assert comparison.n_drafted > 0


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_and_lengths(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    with open_pair(native, kind, tmp_path) as comparison:
        prompt = make_prompt(2)
        tokens = comparison.ask(prompt)
        for n_tokens in range(1, 12):
            assert comparison.ask(prompt, max_tokens=n_tokens) == tokens[:n_tokens]
        text = [comparison.plain.context.model.token_to_piece(token).decode("latin-1") for token in tokens]
        stops = [piece for piece in text[10:40] if piece.strip() and piece.isascii()][::5]
        assert stops
        for stop in stops:
            comparison.ask(prompt, stop=[stop])
        assert comparison.n_accepted > 0


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_several_replies_and_requests(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    """Up to four sequences have drafts of different lengths in the same batch; five have none."""
    prompts = [make_prompt(seed, n_tokens=5 + 9 * seed) for seed in range(5)]
    with open_pair(native, kind, tmp_path, n_seqs=5, n_ctx=1024) as comparison:
        comparison.ask_all(prompts[:4])
        comparison.ask_all(prompts[1:3])
        n_drafted = comparison.n_drafted
        assert n_drafted > 50
        comparison.ask_all(prompts)
        comparison.ask_all([prompts[0]], n_sequences=3)


@pytest.mark.parametrize("kind", PERFECT_KINDS)
def test_several_sampled_replies(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    """Without noise, the logits do not depend on the batch, so that rounding differences can choose no other token."""
    hot = Sampling(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    with Comparison(native, DraftedPair(kind, tmp_path, noise=0.0), n_seqs=5, n_ctx=1024) as comparison:
        comparison.ask_all([make_prompt(3)], n_sequences=4, sampling=hot)
        comparison.ask_all([make_prompt(seed) for seed in range(3)], sampling=hot)
        assert comparison.n_rounded == 0
        assert 5 < comparison.n_accepted < comparison.n_drafted - 20


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_restored_from_ram(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    """The drafter has computed nothing of the restored text, and its rows are gone."""
    with open_pair(native, kind, tmp_path, n_seqs=1, prefix_ram_bytes=16 * MIB, n_ctx=1024) as comparison:
        for model in (comparison.drafted, comparison.plain):
            model.model._cache.throughput.prefill.per_s = 1.0  # restoring is faster than computing
        prompt, other = make_prompt(4, 100), make_prompt(5, 100)
        reply = comparison.ask(prompt, turn_starts=[len(prompt)])
        comparison.ask(other, turn_starts=[len(other)])
        comparison.ask([*prompt, *reply, CYCLE[3]], turn_starts=[len(prompt)])
        finals = [e for e in comparison.drafted.events if hasattr(e, "stats")]
        assert finals[-1].stats.cached_tokens >= 90
        assert comparison.n_drafted > 0


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_restored_from_disk(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    pair = DraftedPair(kind, tmp_path)
    n_restored = 0
    options: dict[str, Any] = {
        "prefix_disk_bytes": 50 * MIB,
        "prefix_ram_bytes": MIB,
        "n_ctx": 1024,
        "n_rs_seq": 7,
        "n_threads": 1,
    }
    prompt, replies = make_prompt(6, 200), []
    for has_drafter in (False, True, True):
        plan = pair.plan if has_drafter else None
        model = SteppedModel(
            native,
            pair.target,
            prefix_dir=tmp_path / "prefix",
            drafter=plan,
            open_drafter=open_model_drafter,
            **options,
        )
        model.model._cache.throughput.prefill.per_s = 1.0  # restoring is faster than computing
        reply, event = model.ask([*prompt, CYCLE[5]], conversation="talk", turn_starts=[len(prompt)], max_tokens=60)
        n_restored += event.stats.cached_disk_tokens
        replies.append(reply)
        if has_drafter:
            assert event.stats.n_drafted > 0
        while model.model.idle_step(lambda _allow: None) is not None and model.model._disk is not None:
            if not model.model._disk.is_busy and not model.model._cache.idle_step():
                break
        if reply != replies[0]:
            assert model.find_difference([*prompt, CYCLE[5]], replies[0], speculate=False) is None
        model.model.close()
    assert n_restored >= 2 * 190


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_growing_and_shrinking_context(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    """Heads read the target's context, so theirs must be replaced with it, also in the middle of a reply."""
    with open_pair(native, kind, tmp_path, n_ctx=1024, growth=growth(256, 1024)) as comparison:
        text = make_prompt(7, 100)
        for turn in range(3):
            text += comparison.ask(text, max_tokens=150)
            text += make_prompt(8 + turn, 20)[1:]
        assert len(comparison.drafted.lengths) > 1
        for model in (comparison.drafted, comparison.plain):
            model.memory = FreeMemory(1 << 40, 1)
            model.now += 400.0
            model.sizer.idle_step(301.0)
            model.memory = FreeMemory(1 << 40, 1 << 39)
        _wake_drafter(comparison.drafted)
        comparison.ask(make_prompt(11))
        assert comparison.n_drafted > 100


def _wake_drafter(model: SteppedModel) -> None:
    """Let the model wake its drafter in idle time, as before a trial."""
    manager = model.model._draft_manager
    assert manager is not None
    source = manager._model
    assert source is not None
    assert source.is_asleep
    source.profile.schedule.n_waited = source.profile.schedule.interval
    manager.idle_step(lambda _allow: None)
    assert not source.is_asleep


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_cancelled_and_repeated_replies(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    """After a cancel, an edit or a regeneration, the drafter holds tokens that the target no longer has."""
    with open_pair(native, kind, tmp_path, n_seqs=2, n_ctx=1024, prefix_ram_bytes=MIB) as comparison:
        prompt = make_prompt(12, 40)
        for step in (2, 3, 5, 9):
            for model in (comparison.drafted, comparison.plain):
                request_id = model.start(prompt, max_tokens=200)
                model.finish(lambda number, step=step, i=request_id: {i} if number == step else None)  # type: ignore[misc]
            comparison.ask(prompt, max_tokens=20)
            comparison.ask([*prompt[:20], CYCLE[step], *prompt[25:]], max_tokens=20)
        assert comparison.n_drafted > 50


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_text_longer_than_the_window_of_the_drafter(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    pair = DraftedPair(kind, tmp_path)
    pair.plan = msgspec.structs.replace(pair.plan, n_cells=64)
    with Comparison(native, pair, n_ctx=2048) as comparison:
        comparison.ask(make_prompt(13, 700), max_tokens=300)
        assert comparison.n_drafted > 20
        if kind not in ("recurrent draft model", "assistant"):
            assert comparison.n_accepted > 10


def wake_drafter(manager: DraftManager) -> None:
    """Do idle work until it has woken the drafter, as if its next trial were due."""
    assert manager._model is not None
    schedule = manager._model.profile.schedule
    schedule.n_waited = schedule.interval
    while manager.is_drafter_asleep:
        assert manager.idle_step(lambda _allow: None)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_drafter_that_sleeps_and_wakes(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    with open_pair(native, kind, tmp_path) as comparison:
        manager = comparison.drafted.model._draft_manager
        assert manager is not None
        text = make_prompt(14)
        for is_between_steps in (False, True, False):
            if is_between_steps:
                request_id = comparison.drafted.start(text, max_tokens=30)

                def free(step: int) -> None:
                    if step % 4 == 0:
                        manager.free_drafter_memory()

                comparison.drafted.finish(free)
                assert len(comparison.drafted.tokens(request_id)) == 30
            manager.free_drafter_memory()
            assert manager.is_drafter_asleep
            text += comparison.ask(text)
            wake_drafter(manager)
        comparison.ask(make_prompt(15))
        assert comparison.n_drafted > 0


@pytest.mark.parametrize("kind", ["hybrid with head", "EAGLE-3", "draft model"])
def test_no_drafter_without_speculation(kind: PairKind, native: Bindings, tmp_path: Path) -> None:
    """The plan of `--strict` and of `--no-speculation`, and requests that turn drafts off."""
    pair = DraftedPair(kind, tmp_path, noise=0.0)
    model = pair.open(native, speculation=False)
    assert model.model.drafter is None
    assert model.ask(make_prompt(15))[1].stats.n_drafts == 0
    model.model.close()
    model = pair.open(native)
    assert model.ask(make_prompt(15), speculate=False)[1].stats.n_drafts == 0
    assert model.ask(make_prompt(15))[1].stats.n_drafts > 0
    model.model.close()
