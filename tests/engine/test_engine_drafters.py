"""Model drafters of llama.cpp in an engine: lossless, useful where they are right, and without harm if they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgechat.config import GREEDY, Sampling
from edgechat.engine import protocol, server
from edgechat.engine.client import EngineClient
from edgechat.engine.drafter_work import DrafterWork
from edgechat.engine.drafting import DraftManager
from edgechat.engine.server import EngineServer
from edgechat.errors import DrafterError, ModelFileError, PlanError
from edgechat.planner.drafter_plan import DRAFTER_CELLS, DrafterKind, DrafterPlan
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.model_drafter import NativeDrafter, open_model_drafter
from edgechat.speculation.model_source import ModelSource
from tests.draft_models import CYCLE, follow_chain
from tests.engine.fake_engine import free_steps
from tests.engine.scripted_drafters import EagerSource
from tests.engine.test_model_drafter import DRAFTERS, write_pair
from tests.engine.text_models import SteppedModel

PROMPT = [1, *CYCLE[20:60]]


class DraftingModel(SteppedModel):
    """A model whose drafter is asked in every step, and whose texts are not searched for drafts."""

    def __init__(
        self, native: Bindings, target: Path, kind: DrafterKind, draft: Path | None, *,
        n_cells: int = DRAFTER_CELLS, **options: Any,
    ) -> None:  # fmt: skip
        plan = DrafterPlan(kind=kind, model_path=str(draft or ""), n_seqs=4, n_cells=n_cells)
        defaults: dict[str, Any] = {"n_ctx": 1024, "n_rs_seq": 7, "n_batch": 128, "draft_tokens": 0}
        super().__init__(native, target, open_drafter=open_model_drafter, drafter=plan, **(defaults | options))
        manager = self.manager
        assert not manager.drafter_error
        assert self.model.drafter == kind
        source = manager._model
        assert source is not None
        source.__class__ = EagerSource
        source._start_timer = lambda: lambda: (1e-9, False)  # as fast as it has to be
        self.source: ModelSource = source
        for n in (1, 2, 3, 4):
            free_steps(manager._profile.find_batch_costs(n))

    @property
    def manager(self) -> DraftManager:
        manager = self.model._draft_manager
        assert manager is not None
        return manager

    @property
    def work(self) -> DrafterWork:
        work = self.manager._drafter_work
        assert work is not None
        return work

    @property
    def drafter(self) -> NativeDrafter:
        drafter = self.manager._drafter
        assert isinstance(drafter, NativeDrafter)
        return drafter


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_drafts_of_one_and_of_four_replies(
    native: Bindings, tmp_path: Path, kind: DrafterKind, *, is_right: bool
) -> None:
    model = DraftingModel(native, *arrange(write_pair(kind, tmp_path, is_right=is_right), kind))
    output, final = model.ask(PROMPT, max_tokens=100)
    assert output == follow_chain(PROMPT[-1], 100)
    if is_right:
        counts = final.stats.drafts_by_source["model"]
        assert counts.n_accepted >= 0.95 * counts.n_drafted
        assert counts.n_accepted > 50
    prompts = [[1, *CYCLE[start : start + 30]] for start in (5, 15, 25, 35)]
    ids = [model.start(prompt, max_tokens=60) for prompt in prompts]
    model.finish()
    assert not model.model._scheduler._drafts._started  # finished sequences are freed
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert model.tokens(request_id) == follow_chain(prompt[-1], 60)
    if is_right:
        assert sum(model.final(i).stats.n_accepted for i in ids) > 100
    # Sampled replies choose their tokens from the same logits.
    sampled = {"max_tokens": 40, "sampling": Sampling(seed=7, temperature=1.5), "bypass_cache": True}
    plain, _ = model.ask(PROMPT, speculate=False, **sampled)
    assert model.ask(PROMPT, **sampled)[0] == plain
    model.model.close()


def test_starter_drafts_for_itself(native: Bindings, starter: Path) -> None:
    """Greedy replies differ only where rounding decides, and nearly all drafts are accepted."""
    model = DraftingModel(native, starter, "draft-model", starter)
    texts = ["The capital of France is", "One, two, three, four,", "A story about a fox and a crow:", "def add(a, b):"]
    prompts = [
        list(model.context.model.tokenize(text, add_special=True, parse_special=False)) * 2 for text in texts
    ]  # fmt: skip
    options: dict[str, Any] = {"max_tokens": 48, "sampling": GREEDY}
    output, final = model.ask(prompts[0], **options)
    counts = final.stats.drafts_by_source["model"]
    assert counts.n_accepted > 0.8 * counts.n_drafted
    assert counts.n_accepted > 10
    ids = [model.start(prompt, **options) for prompt in prompts]
    model.finish()
    assert len(output) == 48
    for request_id in ids:
        assert len(model.tokens(request_id)) == 48
        assert model.final(request_id).stats.n_accepted > 0
    assert model.find_difference(prompts[0], output, bypass_cache=True) is None
    model.model.close()


def test_drafter_that_fails_in_a_reply(native: Bindings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DraftingModel(native, *arrange(write_pair("draft-model", tmp_path), "draft-model"))
    n_calls, draft = 0, NativeDrafter.draft

    def fail(drafter: NativeDrafter, requests: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 3:
            raise DrafterError("The drafter failed: out of memory")
        return draft(drafter, requests)

    monkeypatch.setattr(NativeDrafter, "draft", fail)
    output, final = model.ask(PROMPT, max_tokens=80)
    assert output == follow_chain(PROMPT[-1], 80)
    assert final.finish_reason == "length"
    assert n_calls == 4
    assert model.manager.drafter_error == "The drafter failed: out of memory"
    assert model.drafter.context is None  # its memory is free
    assert model.ask(PROMPT, max_tokens=20)[0] == output[:20]
    model.model.close()


@pytest.mark.parametrize("kind", DRAFTERS)
def test_cancellation_while_drafting(native: Bindings, tmp_path: Path, kind: DrafterKind) -> None:
    """An abort arrives while the drafter computes; the cancelled reply ends, and the next one is right."""
    model = DraftingModel(native, *arrange(write_pair(kind, tmp_path), kind))
    draft = model.drafter.draft
    n_calls = 0

    def draft_and_abort(requests: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 4:
            model.model.abort()
        return draft(requests)

    model.drafter.draft = draft_and_abort  # type: ignore[method-assign]
    request = model.start(PROMPT, max_tokens=400)
    model.finish(lambda _step: {request} if n_calls >= 4 else None)
    assert model.final(request).finish_reason == "cancelled"
    output = model.tokens(request)
    assert output == follow_chain(PROMPT[-1], len(output))
    assert model.ask(PROMPT, max_tokens=50)[0] == follow_chain(PROMPT[-1], 50)
    model.model.close()


def test_cancelled_load_of_a_drafter_cancels_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_server, answers = EngineServer(), list[bool]()

    def open_and_cancel(*_arguments: Any, on_progress: Any, **_options: Any) -> Any:
        answers.append(on_progress(0.1))
        engine_server._cancel(1)
        answers.append(on_progress(0.2))
        on_progresses.append(on_progress)
        raise PlanError("the load was cancelled")

    on_progresses: list[Any] = []
    monkeypatch.setattr(server, "open_model_drafter", open_and_cancel)
    target, draft = write_pair("draft-model", tmp_path)
    plan = make_manual_plan(
        str(target), n_ctx=512, n_threads=1, drafter=DrafterPlan(kind="draft-model", model_path=str(draft))
    )  # fmt: skip
    engine_server._begin_request(1)
    with pytest.raises(ModelFileError, match="cancelled"):
        engine_server._load(protocol.Load(id=1, plan=plan))
    assert answers == [True, False]
    engine_server._running_ids.clear()
    assert on_progresses[0](0.3)  # when the drafter is woken later
    engine_server._unload()


def test_drafter_in_an_engine_process(tmp_path: Path) -> None:
    """The event of the load names the drafter, or says why the model works without it."""
    target, draft = write_pair("draft-model", tmp_path)
    for path, kind in ((draft, "draft-model"), (tmp_path / "missing.gguf", None)):
        client = EngineClient()
        drafter = DrafterPlan(kind="draft-model", model_path=str(path))
        plan = make_manual_plan(str(target), n_ctx=512, n_threads=1, n_seqs=2, drafter=drafter)
        loaded = client.load(protocol.Load(id=client.next_id(), plan=plan))
        assert loaded.drafter == kind
        assert bool(loaded.drafter_error) == (kind is None)
        request = protocol.Generate(
            id=client.next_id(), tokens=PROMPT, max_tokens=30, ignore_eog=True, sampling=GREEDY
        )  # fmt: skip
        output = [t for e in client.generate(request) if isinstance(e, protocol.TokensGenerated) for t in e.tokens]
        assert output == follow_chain(PROMPT[-1], 30)
        state = client.stats().drafter
        assert state is not None
        assert (state.is_open, state.is_asleep) == (kind is not None, False)
        assert state.error == loaded.drafter_error
        client.close()


def arrange(pair: tuple[Path, Path | None], kind: DrafterKind) -> tuple[Path, DrafterKind, Path | None]:
    return pair[0], kind, pair[1]
