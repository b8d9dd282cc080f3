"""Drafts never change the output: exactly on a fake context, in distribution, and with real models."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.config import Sampling
from edgechat.engine import sequence
from edgechat.engine.protocol import Event, Generate, RequestFailed, RequestFinished
from edgechat.engine.request import ActiveRequest
from edgechat.engine.scheduler import Scheduler
from edgechat.errors import EngineError, GrammarError, find_error_class
from edgechat.prefix.cache import PrefixCache
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.runtime.grammar import compile_grammar
from edgechat.runtime.model import Model
from edgechat.runtime.suffix_index import SuffixIndex
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.controller import DraftController
from edgechat.speculation.corpus import Corpus, CorpusDrafter
from edgechat.speculation.drafter import LiveDrafter
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import STEP_SIZES, RunningMean, StepCosts
from tests.fake_context import FakeContext, FakeModel, FakeSampler
from tests.models import KINDS, Kind, open_context, write_tiny
from tests.suffix_reference import PlainIndex

N_VOCAB = 12
PROMPT = [3, 4, 5, 3, 4]
Output = tuple[list[int], str, RequestFinished]


class ScriptedSpeculator(Speculator):
    """Proposes the drafts of a script; -1 stands for the token that the model will generate."""

    def __init__(self, script: list[list[int]], expected: list[int] | None = None) -> None:
        super().__init__([], DraftController(Acceptance(), StepCosts()))
        self.script = iter(script)
        self.expected = expected or []
        self.text: list[int] = []
        self.n_prompt = 0

    def start(self, tokens: Sequence[int]) -> None:
        super().start(tokens)
        self.text = list(tokens)
        self.n_prompt = len(tokens) - 1

    def append(self, tokens: Sequence[int]) -> None:
        self.text += tokens

    def propose(self, room: int, depth: int) -> list[int]:
        assert depth == len(self.text) - 1
        ahead = self.expected[len(self.text) - self.n_prompt :]
        script = next(self.script, [])
        draft = [ahead[i] if token < 0 and i < len(ahead) else max(token, 0) for i, token in enumerate(script)]
        return draft[: max(room, 0)]


@pytest.fixture
def fake(native: Bindings, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    monkeypatch.setattr(sequence, "Sampler", FakeSampler)
    return FakeModel(native, N_VOCAB)


def generate(
    context: FakeContext | Context, request: Generate, prompt: list[int], speculator: Speculator | None = None
) -> Output:
    texts: list[str] = []
    cache = PrefixCache(context)  # type: ignore[arg-type]
    active = ActiveRequest(
        cast("Context", context), cache, request, prompt, lambda event: texts.append(getattr(event, "text", "")),
        0.0, (lambda: speculator) if speculator is not None else None,
    )  # fmt: skip
    for grammar in request.grammars:
        active.grammar = compile_grammar(cast("Model", context.model), str(grammar))
    final_events: list[Event] = []
    scheduler = Scheduler(context, cache, lambda _request, event: final_events.append(event))  # type: ignore[arg-type]
    scheduler.add(active)
    while not scheduler.is_idle:
        scheduler.step()
    (final,) = final_events
    if isinstance(final, RequestFailed):
        raise find_error_class(final.error_type)(final.message)
    assert isinstance(final, RequestFinished)
    return active.output_tokens[0] if active.output_tokens else [], "".join(texts), final


SAMPLINGS = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]), top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([0.5, 0.95, 1.0]), min_p=st.sampled_from([0.0, 0.05, 0.3]),
    typical_p=st.sampled_from([1.0, 1.0, 0.7]), top_n_sigma=st.sampled_from([-1.0, -1.0, 1.5]),
    xtc_probability=st.sampled_from([0.0, 0.0, 0.5]), dynatemp_range=st.sampled_from([0.0, 0.0, 0.3]),
    mirostat=st.sampled_from([0, 0, 0, 1, 2]), mirostat_tau=st.sampled_from([1.0, 5.0]),
    repeat_penalty=st.sampled_from([1.0, 1.1, 1.5]), seed=st.integers(0, 1 << 31),
)  # fmt: skip
SCRIPTS = st.lists(st.lists(st.one_of(st.just(-1), st.integers(0, N_VOCAB - 1)), max_size=12), max_size=40)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sampling=SAMPLINGS,
    script=SCRIPTS,
    max_tokens=st.one_of(st.none(), st.integers(1, 60)),
    n_ctx=st.integers(8, 90),
    ignore_eog=st.booleans(),
)
def test_any_draft_with_any_sampler_leaves_the_output_unchanged(
    fake: FakeModel, sampling: Sampling, script: list[list[int]], max_tokens: int | None, n_ctx: int, ignore_eog: bool
) -> None:
    request = Generate(id=1, max_tokens=max_tokens, sampling=sampling, ignore_eog=ignore_eog)
    plain_context, context = FakeContext(fake, n_ctx), FakeContext(fake, n_ctx)
    plain = generate(plain_context, request, PROMPT)
    drafted = generate(context, request, PROMPT, ScriptedSpeculator(script, plain[0]))
    assert drafted[:2] == plain[:2]
    assert drafted[2].finish_reason == plain[2].finish_reason
    assert drafted[2].context_tokens == plain[2].context_tokens
    assert context.seq_tokens == plain_context.seq_tokens


GRAMMARS = ("start: /(b|cd|e[f-l])+/", "start: /b{3,9}/ | /[c-e]+/ /j/", 'start: %json {"const": null}')


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sampling=SAMPLINGS, script=SCRIPTS, grammar=st.sampled_from(GRAMMARS[:2]), max_tokens=st.integers(1, 40))
def test_drafts_leave_the_output_of_a_grammar_unchanged(
    fake: FakeModel, sampling: Sampling, script: list[list[int]], grammar: str, max_tokens: int
) -> None:
    request = Generate(id=1, max_tokens=max_tokens, sampling=sampling, grammars=[grammar])
    plain = generate(FakeContext(fake), request, PROMPT)
    drafted = generate(FakeContext(fake), request, PROMPT, ScriptedSpeculator(script, plain[0]))
    assert drafted[:2] == plain[:2]
    if plain[2].finish_reason == "stop":
        assert re.fullmatch(r"(b|cd|e[f-l])+|b{3,9}|[c-e]+j", plain[1])


def test_grammar_that_the_vocabulary_cannot_satisfy_is_an_error(fake: FakeModel) -> None:
    with pytest.raises(GrammarError, match="cannot be"):
        generate(FakeContext(fake), Generate(id=1, grammars=[GRAMMARS[2]]), PROMPT)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sampling=SAMPLINGS,
    max_tokens=st.one_of(st.none(), st.integers(1, 120)),
    n_ctx=st.integers(8, 150),
    others=st.lists(st.lists(st.integers(0, N_VOCAB - 1), min_size=8, max_size=30), max_size=4),
)
def test_real_drafters_leave_the_output_unchanged(
    fake: FakeModel, sampling: Sampling, max_tokens: int | None, n_ctx: int, others: list[list[int]]
) -> None:
    """As in an engine, but with step costs that make every draft worthwhile."""
    corpus = Corpus(PlainIndex, 200, N_VOCAB, None)
    for text in others:
        corpus.add("other", text)
    request = Generate(id=1, max_tokens=max_tokens, sampling=sampling)
    plain_context, context = FakeContext(fake, n_ctx), FakeContext(fake, n_ctx)
    plain = generate(plain_context, request, PROMPT)
    speculator = Speculator(
        [LiveDrafter(PlainIndex()), CorpusDrafter(corpus)], DraftController(Acceptance(), free_steps()), fake.is_eog
    )
    drafted = generate(context, request, PROMPT, speculator)
    assert drafted[:2] == plain[:2]
    assert drafted[2].finish_reason == plain[2].finish_reason
    assert context.seq_tokens == plain_context.seq_tokens


def free_steps() -> StepCosts:
    costs = StepCosts()
    for ratios in costs.ratios:
        ratios.update({n: RunningMean(1.0, 3) for n in STEP_SIZES})
    return costs


def test_accepted_drafts_save_steps(fake: FakeModel) -> None:
    request = Generate(id=1, max_tokens=41, sampling=Sampling(temperature=0.0), ignore_eog=True)
    plain_context, context = FakeContext(fake), FakeContext(fake)
    plain = generate(plain_context, request, PROMPT)
    drafted = generate(context, request, PROMPT, ScriptedSpeculator([[-1] * 7] * 5, plain[0]))
    assert drafted[0] == plain[0]
    assert len(plain_context.widths) == 1 + 40
    assert len(context.widths) == 1 + 5


@pytest.mark.parametrize("failure", [DecodeAborted, NoKvSlotError])
@pytest.mark.parametrize("step", [2, 4])
def test_failed_step_leaves_the_output_unchanged(
    fake: FakeModel, failure: type[DecodeAborted | NoKvSlotError], step: int
) -> None:
    """An aborted step is repeated; without cells for the draft, the scheduler decodes only the token."""
    request = Generate(id=1, max_tokens=40, sampling=Sampling(temperature=0.0), ignore_eog=True)
    plain = generate(FakeContext(fake), request, PROMPT)
    context = FakeContext(fake)
    context.failures[step] = failure
    tokens, _, final = generate(context, request, PROMPT, ScriptedSpeculator([[-1] * 3] * 100, plain[0]))
    assert tokens == plain[0]
    assert final.context_tokens == plain[2].context_tokens


def test_sampled_tokens_have_the_expected_distribution(fake: FakeModel) -> None:
    """Chi-squared test over the second and third token, which are verified in one batch, at temperature 1."""
    n_runs, flat = 3000, FakeModel(fake.bindings, 6, flatness=0.7, end_logit=0.0)
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(n_runs):
        sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        request = Generate(id=1, max_tokens=3, sampling=sampling, ignore_eog=True)
        tokens, _, _ = generate(FakeContext(flat), request, PROMPT, ScriptedSpeculator([[seed % 6, seed // 6 % 6]]))
        counts[tokens[1], tokens[2]] += 1

    def probabilities(tokens: list[int]) -> list[float]:
        weights = [math.exp(x) for x in flat.logits(tokens)]
        return [w / sum(weights) for w in weights]

    expected: Counter[tuple[int, int]] = Counter()
    for a, p in enumerate(probabilities(PROMPT)):
        for b, q in enumerate(probabilities([*PROMPT, a])):
            for c, r in enumerate(probabilities([*PROMPT, a, b])):
                expected[b, c] += p * q * r * n_runs  # type: ignore[assignment]
    cells = [(counts[key], value) for key, value in expected.items()]
    assert min(value for _, value in cells) > 5
    statistic = sum((observed - value) ** 2 / value for observed, value in cells)
    n_free = len(cells) - 1
    # Wilson-Hilferty: the cube root of chi-squared over its degrees of freedom is nearly normal; 2.326 is p = 0.01.
    z = ((statistic / n_free) ** (1 / 3) - (1 - 2 / (9 * n_free))) / math.sqrt(2 / (9 * n_free))
    assert z < 2.326


# Real models


def top_gap_at_difference(model: Model, prompt: list[int], a: list[int], b: list[int]) -> float:
    """Gap between the two largest logits where `a` and `b` diverge, as a share of the range; inf if they are equal."""
    same = common_prefix_length(a, b)
    if same == min(len(a), len(b)):
        assert len(a) == len(b)
        return math.inf
    context = open_context(model, n_ctx=1024, n_threads=1)
    for token in [*prompt, *a[:same]]:
        context.decode([token])
    logits = np.array(model.bindings.llama.llama_get_logits_ith(context.pointer, -1)[: model.n_vocab])
    context.close()
    best = np.sort(logits)[-2:]
    return float((best[1] - best[0]) / (logits.max() - logits.min()))


@pytest.mark.parametrize("kind", [*KINDS, "starter"])
def test_real_models_generate_the_same_except_for_ties(
    kind: str, native: Bindings, starter: Path, tmp_path: Path
) -> None:
    """Greedy outputs differ only where two logits are closer than the rounding noise of other batch shapes."""
    path = starter if kind == "starter" else write_tiny(tmp_path / "tiny.gguf", cast("Kind", kind))
    model = Model(native, path)
    text = "Repeat this list: red, green, blue, red, green, blue, red, green, blue, red, green,"
    prompt = model.tokenize(text, add_special=True, parse_special=False)
    request = Generate(id=1, max_tokens=120, sampling=Sampling(temperature=0.0), ignore_eog=True)
    noise = 0.03 if kind == "starter" else 0.01

    def context() -> Context:
        return open_context(model, n_ctx=512, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=2, n_rs_seq=7)

    plain_context, drafting = context(), context()
    plain = generate(plain_context, request, prompt)
    rng = random.Random(0)
    script = [[-1] * rng.randrange(6) + [17] * rng.randrange(3) for _ in range(120)]
    drafted = generate(drafting, request, prompt, ScriptedSpeculator(script, plain[0]))
    stats = drafted[2].stats
    if drafting.max_rollback:
        assert stats.n_drafts > 10
        assert stats.n_accepted > 10
        assert stats.n_drafted > stats.n_accepted + 10  # some were rejected and rolled back
    else:
        assert kind == "mamba"
        assert stats.n_drafted == 0
    if plain[0] != drafted[0]:
        assert top_gap_at_difference(model, prompt, plain[0], drafted[0]) < noise
    plain_context.close()
    drafting.close()


def test_starter_model_generates_the_same_with_its_own_drafts(native: Bindings, starter: Path) -> None:
    """As in an engine: the drafts come from the suffix index of the sequence."""
    model = Model(native, starter)
    text = "Repeat this list: red, green, blue, red, green, blue, red, green, blue, red, green,"
    prompt = model.tokenize(text, add_special=True, parse_special=False)
    request = Generate(id=1, max_tokens=120, sampling=Sampling(temperature=0.0), ignore_eog=True)
    plain_context, context = (open_context(model, n_ctx=512, n_threads=1) for _ in range(2))
    plain = generate(plain_context, request, prompt)
    index = SuffixIndex(native.edgechat, 512)
    drafted = generate(
        context, request, prompt, Speculator([LiveDrafter(index)], DraftController(Acceptance(), free_steps()))
    )
    assert drafted[2].stats.n_accepted > 30
    if plain[0] != drafted[0]:
        assert top_gap_at_difference(model, prompt, plain[0], drafted[0]) < 0.03
    assert drafted[2].context_tokens == plain[2].context_tokens
    plain_context.close()
    context.close()


@pytest.mark.parametrize("kind", KINDS)
def test_time_decode_leaves_the_context_unchanged(kind: Kind, native: Bindings, tmp_path: Path) -> None:
    model = Model(native, write_tiny(tmp_path / "tiny.gguf", kind))
    timed, plain = (
        open_context(model, n_ctx=512, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=2, n_rs_seq=7) for _ in range(2)
    )
    tokens = [int(t) for t in np.random.default_rng(1).integers(10, 340, 60)]
    for context in (timed, plain):
        context.decode(tokens)
    for size in (1, 2, 8, 32):
        assert timed.time_decode(tokens[:size], 0).elapsed_s > 0
        assert timed.time_decode(tokens[:size]).elapsed_s > 0
    assert list(timed.tokens()) == tokens
    for context in (timed, plain):
        context.decode([17])
    difference = np.abs(logits(timed) - logits(plain)).max()
    assert difference < 0.01 * (logits(plain).max() - logits(plain).min())
    timed.close()
    plain.close()


def test_failed_rollback_is_an_error(native: Bindings, tmp_path: Path) -> None:
    """Without the error, the model would continue from tokens that are not in the output."""
    model = Model(native, write_tiny(tmp_path / "tiny.gguf", "mamba"))
    context = open_context(model, n_ctx=512, n_threads=1, n_seqs=1, n_rs_seq=7)
    assert context.max_rollback == 0
    context.decode_chains({0: [20, 21, 22]})
    with pytest.raises(EngineError, match="roll back 2"):
        context.rollback(0, 2)
    context.close()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rollback_leaves_nothing_behind(
    kind: Kind, native: Bindings, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """After a rollback, logits equal those of a context that never decoded the drafts; also in a copy and a restore."""
    model = Model(native, write_tiny(tmp_path_factory.mktemp("undo") / "tiny.gguf", kind))
    context = open_context(model, n_ctx=512, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=3, n_rs_seq=7)
    plain = open_context(model, n_ctx=512, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=1)
    tokens = [int(t) for t in np.random.default_rng(1).integers(10, 340, 60)]
    context.decode(tokens)
    plain.decode(tokens)
    for number in range(data.draw(st.integers(1, 25))):
        n_rejected = data.draw(st.integers(0, min(context.max_rollback, 7)))
        n_accepted = data.draw(st.integers(0, min(context.max_rollback, 7) - n_rejected))
        fresh = [int(t) for t in np.random.default_rng(100 + number).integers(10, 340, 1 + n_accepted + n_rejected)]
        context.decode_chains({0: fresh})
        context.rollback(0, n_rejected)
        for token in fresh[: 1 + n_accepted]:
            plain.decode([token])
        assert list(context.tokens()) == list(plain.tokens())
    context.commit_rollback(0)
    context.copy(0, 1, len(context.tokens()))
    saved = context.save(0, 0, len(context.tokens()))
    assert context.restore(2, 0, list(context.tokens()), saved)
    plain.decode([17])
    expected = logits(plain)
    for seq in range(3):
        context.decode([17], seq)
        difference = np.abs(logits(context) - expected).max() / (expected.max() - expected.min())
        assert difference < 0.01, seq
    context.close()
    plain.close()


def logits(context: Context) -> np.ndarray:
    pointer = context.model.bindings.llama.llama_get_logits_ith(context.pointer, -1)
    return np.array(pointer[: context.model.n_vocab], dtype=np.float32)
