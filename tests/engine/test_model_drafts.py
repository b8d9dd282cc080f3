"""Drafts of a model never change the output: any drafter, one to four sequences, on a fake context and real models."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.config import GREEDY, Sampling
from edgechat.engine import protocol, sequence
from edgechat.engine.drafting import DraftManager
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.runtime.bindings import Bindings
from tests.engine.fake_engine import N_VOCAB, FakeEngine, free_steps
from tests.engine.scripted_drafters import BEHAVIOURS, Behaviour, ScriptedDrafter, make_source
from tests.engine.text_models import SteppedModel
from tests.fake_context import FakeModel, FakeSampler
from tests.models import write_tiny


@pytest.fixture
def fake(native: Bindings, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    monkeypatch.setattr(sequence, "Sampler", FakeSampler)
    return FakeModel(native, N_VOCAB)


def run_alone(fake: FakeModel, request: protocol.Generate) -> FakeEngine:
    engine = FakeEngine(fake, with_drafts=False)
    engine.add(request)
    engine.finish()
    return engine


def make_engine(
    fake: FakeModel, behaviour: Behaviour, requests: list[protocol.Generate], n_cells: int = 10_000
) -> tuple[FakeEngine, ScriptedDrafter, list[str]]:
    """Return an engine whose model drafter knows the texts of `requests`, and the list of its failures."""
    texts = [
        [*(request.tokens or []), *output]
        for request in requests
        for output in run_alone(fake, request).outputs[request.id]
    ]
    engine, failures = FakeEngine(fake, with_drafts=True, n_cells=n_cells), list[str]()
    drafter = ScriptedDrafter(engine.context, behaviour, N_VOCAB, texts)
    engine.model = make_source(drafter, failures.append)
    assert engine.batch is not None
    engine.batch._model = engine.model
    return engine, drafter, failures


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(1, N_VOCAB - 1), min_size=1, max_size=8),
        st.sampled_from([0.0, 0.0, 0.7, 2.0]),
        st.integers(1, 40),  # max_tokens, so that two replies fit into 60 cells
        st.sampled_from([1, 1, 1, 2]),  # n_sequences
        st.sampled_from([[], [], ["a"], ["cd", "be"]]),  # stop strings
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs=REQUESTS, n_cells=st.sampled_from([60, 90, 10_000]), cancelled_at=st.one_of(st.none(), st.integers(1, 20)))
def test_output_is_unchanged_by_any_drafter(
    fake: FakeModel, behaviour: Behaviour, specs: list[Any], n_cells: int, cancelled_at: int | None
) -> None:
    requests = [
        protocol.Generate(
            id=i, tokens=prompt, sampling=Sampling(temperature=temperature, seed=i),
            max_tokens=min(max_tokens, 40 // n), n_sequences=n, stop=stop, ignore_eog=i % 2 == 0,
        )
        for i, (prompt, temperature, max_tokens, n, stop) in enumerate(specs)
    ]  # fmt: skip
    engine, _, failures = make_engine(fake, behaviour, requests, n_cells)
    for request in requests:
        engine.add(request)
    for step in range(20):
        if step == cancelled_at and 0 not in engine.final:
            engine.scheduler.cancel({0})
        engine.scheduler.step()
    engine.finish()
    for request in requests:
        alone = run_alone(fake, request)
        if request.id == 0 and cancelled_at is not None:
            for output, expected in zip(engine.outputs[0], alone.outputs[0], strict=False):
                assert output == expected[: len(output)]
            continue
        assert engine.outputs[request.id] == alone.outputs[request.id]
        for key, text in alone.text.items():
            assert engine.text.get(key, "") == text
        final, expected_final = engine.final[request.id], alone.final[request.id]
        assert isinstance(final, protocol.RequestFinished)
        assert isinstance(expected_final, protocol.RequestFinished)
        assert final.finish_reason == expected_final.finish_reason
    assert len(failures) <= 1
    assert not engine.cache._leased_seqs


@pytest.mark.parametrize("n_requests", [1, 2, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_perfect_drafter_saves_most_steps(fake: FakeModel, n_requests: int, temperature: float) -> None:
    requests = [
        protocol.Generate(
            id=i, tokens=[1 + i, 5, 2], max_tokens=40, ignore_eog=True,
            sampling=Sampling(temperature=temperature, seed=i),
        )
        for i in range(n_requests)
    ]  # fmt: skip
    engine, drafter, _ = make_engine(fake, "perfect", requests)
    for request in requests:
        engine.add(request)
    engine.finish()
    final = engine.final[0]
    assert isinstance(final, protocol.RequestFinished)
    stats = final.stats
    assert isinstance(stats.drafts_by_source, dict)
    counts = stats.drafts_by_source["model"]
    assert counts.n_accepted >= 0.95 * counts.n_drafted
    assert counts.n_accepted > 10
    assert max(drafter.n_seqs_of_calls) == n_requests
    assert len(engine.context.widths) < n_requests + 25
    assert max(engine.context.widths) <= 32


def test_failed_drafter_is_reported_once_and_not_used_again(fake: FakeModel) -> None:
    requests = [protocol.Generate(id=i, tokens=[1, 5, 2 + i], max_tokens=40, ignore_eog=True) for i in range(3)]
    engine, drafter, failures = make_engine(fake, "raising", requests)
    for request in requests:
        engine.add(request)
        engine.finish()
    assert failures == ["llama.cpp failed to compute a draft."]
    assert drafter.n_calls == 3


# Real models


class ModelWithDrafter(SteppedModel):
    """A tiny model with a scripted drafter, which is asked in every step."""

    def __init__(self, native: Bindings, path: Path, behaviour: Behaviour, **options: Any) -> None:
        super().__init__(native, path, draft_tokens=5000, n_rs_seq=7, n_ctx=1024, **options)
        manager = self.manager
        self.drafter = ScriptedDrafter(self.context, behaviour, self.context.model.n_vocab, [])
        self.failures: list[str] = []
        manager._model = make_source(self.drafter, self.failures.append)
        manager.batch_speculator._model = manager._model
        for n in (1, 2, 3, 4):
            free_steps(manager._profile.find_batch_costs(n))

    @property
    def manager(self) -> DraftManager:
        manager = self.model._draft_manager
        assert manager is not None
        return manager


@pytest.mark.usefixtures("eager_model")
@pytest.mark.parametrize("behaviour", ["perfect", "half", "wrong", "raising"])
@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_tiny_models_generate_the_same_with_drafts_of_a_model(
    native: Bindings, tmp_path: Path, kind: Any, behaviour: Behaviour
) -> None:
    """One reply alone, then four at once; the outputs differ only where rounding decides between two tokens."""
    model = ModelWithDrafter(native, write_tiny(tmp_path / "tiny.gguf", kind), behaviour)
    rng = random.Random(1)
    prompts = [[1, *(rng.randrange(20, 300) for _ in range(40))] for _ in range(4)]
    options = {"max_tokens": 60, "sampling": GREEDY, "ephemeral": True}
    plain = [model.ask(prompt, speculate=False, **options)[0] for prompt in prompts]
    model.drafter.texts = [[*prompt, *output] for prompt, output in zip(prompts, plain, strict=True)]
    alone, final = model.ask(prompts[0], **options)
    assert model.find_difference(prompts[0], alone) is None
    if behaviour == "perfect" and alone == plain[0]:
        assert final.stats.n_accepted > 30
        assert final.stats.drafts_by_source["model"].n_accepted > 0
    ids = [model.start(prompt, **options) for prompt in prompts]
    model.finish()
    for request_id, prompt in zip(ids, prompts, strict=True):
        output = model.tokens(request_id)
        assert len(output) == 60
        assert model.find_difference(prompt, output) is None
    assert len(model.failures) == (behaviour == "raising")
    if behaviour in ("perfect", "half"):
        assert max(model.drafter.n_seqs_of_calls) == 4
        assert sum(model.final(i).stats.n_accepted for i in ids) > 20
    model.model.close()


def test_drafts_of_a_model_obey_a_grammar(native: Bindings, tmp_path: Path) -> None:
    model = ModelWithDrafter(native, write_tiny(tmp_path / "tiny.gguf", "llama"), "perfect")
    options: dict[str, Any] = {"max_tokens": 30, "grammars": ["start: /[a-f]{4,20}/"], "ephemeral": True}
    prompt = [1, *range(30, 60)]
    plain, _ = model.ask(prompt, speculate=False, **options)
    model.drafter.texts = [[*prompt, *plain, 5, 5, 5]]
    drafted, final = model.ask(prompt, **options)
    assert drafted == plain
    assert final.stats.n_accepted > 0
    model.model.close()


def test_model_works_without_a_drafter_that_cannot_be_opened(
    native: Bindings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "llama")
    plan = DrafterPlan(kind="draft-model", model_path="missing.gguf")

    def refuse(context: object, plan: DrafterPlan, *, is_asleep: bool) -> Any:
        raise MemoryError

    model = SteppedModel(native, path, drafter=plan, open_drafter=refuse, n_ctx=512)
    assert model.model.drafter is None
    assert "Memory ran out" in model.model.drafter_error
    assert len(model.ask([1, 20, 21])[0]) == 30
    assert "without the drafter" in capfd.readouterr().err
    model.model.close()
