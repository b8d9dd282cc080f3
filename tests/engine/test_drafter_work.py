"""Idle work of model drafters in an engine: sleep and wake, measurements, and reading the texts of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgechat.errors import PlanError
from edgechat.hardware.free_memory import FreeMemory
from edgechat.planner.drafter_plan import DRAFTER_CELLS, DrafterKind
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context
from edgechat.runtime.model_drafter import NativeDrafter
from edgechat.speculation.model_source import ModelSource
from edgechat.speculation.trial_schedule import TrialSchedule
from tests.draft_models import CYCLE, follow_chain
from tests.engine.scripted_drafters import EagerSource
from tests.engine.test_engine_drafters import PROMPT, DraftingModel, arrange
from tests.engine.test_model_drafter import DRAFTERS, write_pair


def test_drafter_reads_the_texts_in_idle_time(native: Bindings, tmp_path: Path) -> None:
    """The next reply of each conversation starts with a drafter that knows the text before."""
    model = DraftingModel(native, *arrange(write_pair("draft-model", tmp_path), "draft-model"))
    for start in (0, 40):
        model.ask([1, *CYCLE[start:], *CYCLE], speculate=False, max_tokens=10)
    texts = [seq for seq in range(model.context.n_seqs) if len(model.context.tokens(seq)) > 50]
    assert len(texts) == 2
    assert all(model.drafter.find_window(seq).n_computed == 0 for seq in texts)
    is_aborted = False

    def abort_once(can_abort: bool) -> None:
        nonlocal is_aborted
        if can_abort and not is_aborted and not model.work._batches_to_measure:
            is_aborted = True
            model.model.abort()

    while model.manager.idle_step(abort_once):
        pass
    assert is_aborted  # by a request, say
    model.model.clear_abort()
    while model.manager.idle_step(abort_once):
        pass
    for seq in texts:
        window = model.drafter.find_window(seq)
        assert window.n_pending == 1
        assert window.size >= min(DRAFTER_CELLS // 2, len(model.context.tokens(seq)))
    model.model.close()


@pytest.mark.parametrize("kind", DRAFTERS)
def test_costs_of_drafts_are_measured_in_idle_time(native: Bindings, tmp_path: Path, kind: DrafterKind) -> None:
    """Those for one to four sequences; a draft model needs no text for that, heads need the rows of replies."""
    model = DraftingModel(native, *arrange(write_pair(kind, tmp_path), kind))
    costs = model.source.profile.costs
    while model.manager.idle_step(lambda _allow: None):
        pass
    assert list(costs.step_s) == ([1, 2, 3, 4] if kind == "draft-model" else [])
    ids = [model.start([1, *CYCLE[start : start + 30]], max_tokens=20, speculate=False) for start in (5, 15, 25, 35)]
    model.finish()
    assert all(model.tokens(i) for i in ids)
    model.manager._measured_at = float("-inf")
    while model.manager.idle_step(lambda _allow: None):
        pass
    assert list(costs.step_s) == [1, 2, 3, 4]
    assert all(len(times.undisturbed) >= 3 for times in costs.step_s.values())
    assert model.ask(PROMPT, max_tokens=30)[0] == follow_chain(PROMPT[-1], 30)
    model.model.close()


def test_drafter_frees_its_memory_when_memory_is_short(native: Bindings, tmp_path: Path) -> None:
    model = DraftingModel(native, *arrange(write_pair("draft-model", tmp_path), "draft-model"))
    model.ask(PROMPT, max_tokens=20)
    assert model.drafter.context is not None
    model.source.__class__ = ModelSource  # which does not wake the drafter at once
    model.memory = FreeMemory(total_bytes=8 << 30, available_bytes=50 << 20)
    model.now += 2
    output, _ = model.ask(PROMPT, max_tokens=80)
    assert model.source.is_asleep
    assert model.drafter.context is None
    assert output == follow_chain(PROMPT[-1], 80)
    schedule = model.source.profile.schedule
    schedule.n_waited = interval = schedule.interval
    model.model.idle_step(lambda _allow: None)
    assert model.source.is_asleep  # memory is still short
    assert schedule.interval > interval
    model.memory = FreeMemory(total_bytes=8 << 30, available_bytes=4 << 30)
    schedule.n_waited = schedule.interval
    model.model.idle_step(lambda _allow: None)
    assert not model.source.is_asleep
    assert model.drafter.context is not None
    model.model.close()


def test_request_ends_the_load_of_a_waking_drafter(native: Bindings, tmp_path: Path) -> None:
    """Its weights are loaded in the next idle time; the trial is not postponed."""
    model = DraftingModel(native, *arrange(write_pair("draft-model", tmp_path), "draft-model"))
    model.source.__class__ = ModelSource
    schedule = model.source.profile.schedule
    model.source.sleep()
    schedule.n_waited = interval = schedule.interval

    def abort(can_abort: bool) -> None:
        if can_abort:
            model.model.abort()

    assert not model.manager.idle_step(abort)
    assert model.source.is_asleep
    assert model.drafter.context is None
    assert (schedule.n_waited, schedule.interval) == (interval, interval)
    model.model.clear_abort()
    assert model.manager.idle_step(lambda _allow: None)
    assert not model.source.is_asleep
    assert model.ask(PROMPT, max_tokens=20)[0] == follow_chain(PROMPT[-1], 20)
    model.model.close()


def test_drafter_that_did_not_pay_is_not_opened_at_the_next_start(native: Bindings, tmp_path: Path) -> None:
    pair = arrange(write_pair("draft-model", tmp_path), "draft-model")
    options: dict[str, Any] = {"prefix_dir": tmp_path / "caches", "prefix_disk_bytes": 1 << 20}

    def close_with_rare_trials(model: DraftingModel) -> None:
        model.source.profile.schedule = TrialSchedule(interval=2048)
        model.manager._has_unsaved_profile = True
        model.model.close()

    close_with_rare_trials(DraftingModel(native, *pair, **options))
    model = DraftingModel(native, *pair, **options)
    model.source.__class__ = ModelSource
    assert model.ask(PROMPT, max_tokens=40)[0] == follow_chain(PROMPT[-1], 40)
    model.model.idle_step(lambda _allow: None)
    assert model.source.is_asleep
    assert model.drafter.context is None
    model.source.profile.schedule.n_waited = 2048
    model.model.idle_step(lambda _allow: None)
    assert not model.source.is_asleep
    model.source.__class__ = EagerSource
    assert model.ask(PROMPT, max_tokens=40)[1].stats.drafts_by_source["model"].n_accepted > 20
    close_with_rare_trials(model)
    assert pair[2] is not None
    pair[2].write_bytes(pair[2].read_bytes() + b"0")  # another file, about which nothing is known
    model = DraftingModel(native, *pair, **options)
    assert not model.source.is_asleep
    model.model.close()


def test_sequences_that_are_lost_when_an_assistant_wakes(
    native: Bindings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The sequences are saved meanwhile; if they cannot be restored, the next reply computes its text again."""
    model = DraftingModel(native, *arrange(write_pair("assistant", tmp_path), "assistant"))
    model.source.__class__ = ModelSource
    expected = model.ask(PROMPT, max_tokens=20)[0]
    model.source.sleep()
    model.source.profile.schedule.n_waited = model.source.profile.schedule.interval
    with monkeypatch.context() as patch:
        patch.setattr(Context, "_restore_all", lambda *_arguments: False)
        model.model.idle_step(lambda _allow: None)
    assert not model.context.is_open
    model.model.idle_step(lambda _allow: None)
    model.ask([1, 40, 41], max_tokens=1)
    n_tokens = sum(len(model.context.tokens(seq)) for seq in range(model.context.n_seqs))
    assert model.model._cache.idle_tokens == n_tokens  # the cache lists no lost tokens
    assert model.ask(PROMPT, max_tokens=20)[0] == expected
    assert model.ask([*PROMPT, *expected], max_tokens=20)[0] == follow_chain(expected[-1], 20)
    model.model.close()


def test_drafter_without_memory_after_a_resize_sleeps(
    native: Bindings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Memory may be short only for a moment, so the drafter has not failed."""
    model = DraftingModel(native, *arrange(write_pair("eagle3", tmp_path), "eagle3"))
    model.ask(PROMPT, max_tokens=20)
    context = model.drafter.context
    assert context is not None
    context.free()  # as a resize of the target does

    def refuse(_drafter: NativeDrafter) -> None:
        raise PlanError("Cannot create a context for drafts: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(NativeDrafter, "open", refuse)
        assert model.ask(PROMPT, max_tokens=40)[0] == follow_chain(PROMPT[-1], 40)
    assert model.source.is_asleep
    assert model.source.is_usable
    model.source.profile.schedule.n_waited = model.source.profile.schedule.interval
    model.model.idle_step(lambda _allow: None)
    assert model.drafter.is_open
    model.model.close()
