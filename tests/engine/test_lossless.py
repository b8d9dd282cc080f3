"""What is drafted never changes what is said: exactly on a fake runtime, in distribution, and on real models."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.config import Sampling
from edgechat.engine import sequence as samples
from edgechat.engine.protocol import Event, Generate, RequestFailed, RequestFinished
from edgechat.engine.request import ActiveRequest
from edgechat.engine.scheduler import Scheduler
from edgechat.errors import EngineError, GrammarError, error_class
from edgechat.prefix.cache import PrefixCache
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.runtime.model import Model
from edgechat.runtime.suffix_index import SuffixIndex
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.controller import DraftController
from edgechat.speculation.corpus import Corpus
from edgechat.speculation.drafter import LiveDrafter
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import SIZES, RunningMean, StepCosts
from tests.fake_context import FakeContext, FakeModel, FakeSampler
from tests.models import KINDS, Kind, a_context, write_tiny
from tests.suffix_reference import PlainIndex

N_VOCAB = 12
PROMPT = [3, 4, 5, 3, 4]
Said = tuple[list[int], str, RequestFinished]


class Scripted(Speculator):
    """Proposes whatever it is told to: the numbers of a script, or with -1 what will really come."""

    def __init__(self, script: list[list[int]], oracle: list[int] | None = None) -> None:
        super().__init__([], DraftController(Acceptance(), StepCosts()))
        self.script = iter(script)
        self.oracle = oracle or []
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
        ahead = self.oracle[len(self.text) - self.n_prompt :]
        wanted = next(self.script, [])
        draft = [ahead[i] if token < 0 and i < len(ahead) else max(token, 0) for i, token in enumerate(wanted)]
        return draft[: max(room, 0)]


@pytest.fixture
def fake(native: Bindings, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    monkeypatch.setattr(samples, "Sampler", FakeSampler)
    return FakeModel(native, N_VOCAB)


def say(
    context: FakeContext | Context, request: Generate, prompt: list[int], speculator: Speculator | None = None
) -> Said:
    heard: list[str] = []
    cache = PrefixCache(context)  # type: ignore[arg-type]
    work = ActiveRequest(
        context, cache, request, prompt, lambda event: heard.append(getattr(event, "text", "")), 0.0, speculator  # type: ignore[arg-type]
    )  # fmt: skip
    ended: list[Event] = []
    batching = Scheduler(context, cache, lambda generation, event: ended.append(event))  # type: ignore[arg-type]
    batching.add(work)
    while not batching.is_idle:
        batching.step()
    (finished,) = ended
    if isinstance(finished, RequestFailed):
        raise error_class(finished.error_type)(finished.message)
    assert isinstance(finished, RequestFinished)
    return work.output_tokens[0] if work.output_tokens else [], "".join(heard), finished


SAMPLINGS = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]), top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([0.5, 0.95, 1.0]), min_p=st.sampled_from([0.0, 0.05, 0.3]),
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
def test_any_draft_and_any_sampler_give_the_same_text(
    fake: FakeModel, sampling: Sampling, script: list[list[int]], max_tokens: int | None, n_ctx: int, ignore_eog: bool
) -> None:
    request = Generate(id=1, max_tokens=max_tokens, sampling=sampling, ignore_eog=ignore_eog)
    plain_context, context = FakeContext(fake, n_ctx), FakeContext(fake, n_ctx)
    plain = say(plain_context, request, PROMPT)
    drafted = say(context, request, PROMPT, Scripted(script, plain[0]))
    assert drafted[:2] == plain[:2]
    assert drafted[2].finish_reason == plain[2].finish_reason
    assert drafted[2].context_tokens == plain[2].context_tokens
    assert context.held == plain_context.held


GRAMMARS = ("start: /(b|cd|e[f-l])+/", "start: /b{3,9}/ | /[c-e]+/ /j/", 'start: %json {"const": null}')


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sampling=SAMPLINGS, script=SCRIPTS, grammar=st.sampled_from(GRAMMARS[:2]), max_tokens=st.integers(1, 40))
def test_a_grammar_is_kept_with_drafts_as_without(
    fake: FakeModel, sampling: Sampling, script: list[list[int]], grammar: str, max_tokens: int
) -> None:
    request = Generate(id=1, max_tokens=max_tokens, sampling=sampling, grammar=grammar)
    plain = say(FakeContext(fake), request, PROMPT)
    drafted = say(FakeContext(fake), request, PROMPT, Scripted(script, plain[0]))
    assert drafted[:2] == plain[:2]
    if plain[2].finish_reason == "stop":
        assert re.fullmatch(r"(b|cd|e[f-l])+|b{3,9}|[c-e]+j", plain[1])


def test_what_a_vocabulary_cannot_say_is_an_error(fake: FakeModel) -> None:
    with pytest.raises(GrammarError, match="cannot be"):
        say(FakeContext(fake), Generate(id=1, grammar=GRAMMARS[2]), PROMPT)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sampling=SAMPLINGS,
    max_tokens=st.one_of(st.none(), st.integers(1, 120)),
    n_ctx=st.integers(8, 150),
    others=st.lists(st.lists(st.integers(0, N_VOCAB - 1), min_size=8, max_size=30), max_size=4),
)
def test_our_own_drafters_give_the_same_text(
    fake: FakeModel, sampling: Sampling, max_tokens: int | None, n_ctx: int, others: list[list[int]]
) -> None:
    """Everything as in an engine, but for a clock by which drafts cost nothing, so that there are many."""
    corpus = Corpus(PlainIndex, 200, N_VOCAB, None)
    for text in others:
        corpus.add("another", text)
    request = Generate(id=1, max_tokens=max_tokens, sampling=sampling)
    plain_context, context = FakeContext(fake, n_ctx), FakeContext(fake, n_ctx)
    plain = say(plain_context, request, PROMPT)
    speculator = Speculator(
        [LiveDrafter(PlainIndex()), corpus], DraftController(Acceptance(), free_steps()), fake.is_eog
    )
    drafted = say(context, request, PROMPT, speculator)
    assert drafted[:2] == plain[:2]
    assert drafted[2].finish_reason == plain[2].finish_reason
    assert context.held == plain_context.held


def free_steps() -> StepCosts:
    costs = StepCosts()
    for ratios in costs.ratios:
        ratios.update({n: RunningMean(1.0, 3) for n in SIZES})
    return costs


def test_right_drafts_save_steps(fake: FakeModel) -> None:
    request = Generate(id=1, max_tokens=41, sampling=Sampling(temperature=0.0), ignore_eog=True)
    plain_context, context = FakeContext(fake), FakeContext(fake)
    plain = say(plain_context, request, PROMPT)
    drafted = say(context, request, PROMPT, Scripted([[-1] * 7] * 5, plain[0]))
    assert drafted[0] == plain[0]
    assert len(plain_context.widths) == 1 + 40
    assert len(context.widths) == 1 + 5


@pytest.mark.parametrize("failure", [DecodeAborted, NoKvSlotError])
@pytest.mark.parametrize("step", [2, 4])
def test_a_step_that_fails_says_nothing_wrong(
    fake: FakeModel, failure: type[DecodeAborted | NoKvSlotError], step: int
) -> None:
    """Given up for somebody else's sake, it is done again; with no room for the draft, the token alone is decoded."""
    request = Generate(id=1, max_tokens=40, sampling=Sampling(temperature=0.0), ignore_eog=True)
    plain = say(FakeContext(fake), request, PROMPT)
    context = FakeContext(fake)
    context.fail[step] = failure
    tokens, _, finished = say(context, request, PROMPT, Scripted([[-1] * 3] * 100, plain[0]))
    assert tokens == plain[0]
    assert finished.context_tokens == plain[2].context_tokens


def test_drawn_tokens_have_the_distribution_that_they_should(fake: FakeModel) -> None:
    """Chi-squared over the second and third token, which are verified in one batch, at temperature 1."""
    n_runs, flat = 3000, FakeModel(fake.bindings, 6, flatness=0.7, end_logit=0.0)
    seen: Counter[tuple[int, int]] = Counter()
    for seed in range(n_runs):
        sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        request = Generate(id=1, max_tokens=3, sampling=sampling, ignore_eog=True)
        tokens, _, _ = say(FakeContext(flat), request, PROMPT, Scripted([[seed % 6, seed // 6 % 6]]))
        seen[tokens[1], tokens[2]] += 1

    def chances(tokens: list[int]) -> list[float]:
        weights = [math.exp(x) for x in flat.logits(tokens)]
        return [w / sum(weights) for w in weights]

    expected: Counter[tuple[int, int]] = Counter()
    for a, p in enumerate(chances(PROMPT)):
        for b, q in enumerate(chances([*PROMPT, a])):
            for c, r in enumerate(chances([*PROMPT, a, b])):
                expected[b, c] += p * q * r * n_runs  # type: ignore[assignment]
    cells = [(seen[key], value) for key, value in expected.items()]
    assert min(value for _, value in cells) > 5
    statistic = sum((observed - value) ** 2 / value for observed, value in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty: the cube root of chi-squared over its freedom is nearly normal; 2.326 is p = 0.01.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 2.326


# Real models


def top_gap_at_difference(model: Model, prompt: list[int], a: list[int], b: list[int]) -> float:
    """Where two answers part: the difference of the two largest logits, in parts of the spread; inf if they do not."""
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)  # noqa: B905
    if same is None:
        assert len(a) == len(b)
        return math.inf
    context = a_context(model, n_ctx=1024, n_threads=2)
    for token in [*prompt, *a[:same]]:
        context.decode([token])
    logits = np.array(model.bindings.llama.llama_get_logits_ith(context.pointer, -1)[: model.n_vocab])
    context.close()
    best = np.sort(logits)[-2:]
    return float((best[1] - best[0]) / (logits.max() - logits.min()))


@pytest.mark.parametrize("kind", [*KINDS, "starter"])
def test_real_models_say_the_same_but_for_ties(kind: str, native: Bindings, starter: Path, tmp_path: Path) -> None:
    """Greedy answers differ only where two logits are as near as the noise of batches of other shapes."""
    model = Model(native, starter if kind == "starter" else write_tiny(tmp_path / "tiny.gguf", kind))  # type: ignore[arg-type]
    words = "Repeat this list: red, green, blue, red, green, blue, red, green, blue, red, green,"
    prompt = model.tokenize(words, add_special=True, parse_special=False)
    request = Generate(id=1, max_tokens=120, sampling=Sampling(temperature=0.0), ignore_eog=True)
    noise = 0.03 if kind == "starter" else 0.01

    def context() -> Context:
        return a_context(model, n_ctx=512, n_threads=2, n_batch=64, n_ubatch=64, n_seqs=2, n_rs_seq=7)

    plain_context, drafting = context(), context()
    plain = say(plain_context, request, prompt)
    draw = random.Random(0)
    script = [[-1] * draw.randrange(6) + [17] * draw.randrange(3) for _ in range(120)]
    drafted = say(drafting, request, prompt, Scripted(script, plain[0]))
    stats = drafted[2].stats
    if drafting.max_rollback:
        assert stats.n_drafts > 10
        assert stats.n_accepted > 10
        assert stats.n_drafted > stats.n_accepted + 10  # some were wrong, and taken back
    else:
        assert kind == "mamba"
        assert stats.n_drafted == 0
    if plain[0] != drafted[0]:
        assert top_gap_at_difference(model, prompt, plain[0], drafted[0]) < noise
    plain_context.close()
    drafting.close()


def test_the_starter_model_drafts_and_says_the_same(native: Bindings, starter: Path) -> None:
    """As in an engine, with drafts of its own finding."""
    model = Model(native, starter)
    words = "Repeat this list: red, green, blue, red, green, blue, red, green, blue, red, green,"
    prompt = model.tokenize(words, add_special=True, parse_special=False)
    request = Generate(id=1, max_tokens=120, sampling=Sampling(temperature=0.0), ignore_eog=True)
    plain_context, context = (a_context(model, n_ctx=512, n_threads=2) for _ in range(2))
    plain = say(plain_context, request, prompt)
    index = SuffixIndex(native.edgechat, 512)
    drafted = say(
        context, request, prompt, Speculator([LiveDrafter(index)], DraftController(Acceptance(), free_steps()))
    )
    assert drafted[2].stats.n_accepted > 30
    if plain[0] != drafted[0]:
        assert top_gap_at_difference(model, prompt, plain[0], drafted[0]) < 0.03
    assert drafted[2].context_tokens == plain[2].context_tokens
    plain_context.close()
    context.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_rehearsal_leaves_nothing_behind(kind: Kind, native: Bindings, tmp_path: Path) -> None:
    model = Model(native, write_tiny(tmp_path / "tiny.gguf", kind))
    rehearsed, plain = (
        a_context(model, n_ctx=512, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=2, n_rs_seq=7) for _ in range(2)
    )
    tokens = [int(t) for t in np.random.default_rng(1).integers(10, 340, 60)]
    for context in (rehearsed, plain):
        context.decode(tokens)
    for size in (1, 2, 8, 32):
        assert rehearsed.time_decode(tokens[:size], 0) > 0
        assert rehearsed.time_decode(tokens[:size]) > 0
    assert list(rehearsed.tokens()) == tokens
    for context in (rehearsed, plain):
        context.decode([17])
    difference = np.abs(logits(rehearsed) - logits(plain)).max()
    assert difference < 0.01 * (logits(plain).max() - logits(plain).min())
    rehearsed.close()
    plain.close()


def test_drafts_that_cannot_be_taken_back_are_an_error(native: Bindings, tmp_path: Path) -> None:
    """Rather that than words that come from nowhere."""
    model = Model(native, write_tiny(tmp_path / "tiny.gguf", "mamba"))
    context = a_context(model, n_ctx=512, n_threads=1, n_seqs=1, n_rs_seq=7)
    assert context.max_rollback == 0
    context.decode_chain([20, 21, 22])
    with pytest.raises(EngineError, match="take back 2"):
        context.rollback(0, 2)
    context.close()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_undone_leaves_nothing_behind(
    kind: Kind, native: Bindings, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """After wrong drafts of any length the logits are those of a context that never saw them; also in a copy, and saved."""
    model = Model(native, write_tiny(tmp_path_factory.mktemp("undo") / "tiny.gguf", kind))
    context = a_context(model, n_ctx=512, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=3, n_rs_seq=7)
    plain = a_context(model, n_ctx=512, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=1)
    tokens = [int(t) for t in np.random.default_rng(1).integers(10, 340, 60)]
    context.decode(tokens)
    plain.decode(tokens)
    for number in range(data.draw(st.integers(1, 25))):
        wrong = data.draw(st.integers(0, min(context.max_rollback, 7)))
        right = data.draw(st.integers(0, min(context.max_rollback, 7) - wrong))
        fresh = [int(t) for t in np.random.default_rng(100 + number).integers(10, 340, 1 + right + wrong)]
        context.decode_chain(fresh)
        context.rollback(0, wrong)
        for token in fresh[: 1 + right]:
            plain.decode([token])
        assert list(context.tokens()) == list(plain.tokens())
    context.commit_rollback(0)
    context.copy(0, 1, len(context.tokens()))
    saved = context.save(0, 0, len(context.tokens()))
    assert context.restore(2, 0, list(context.tokens()), saved)
    plain.decode([17])
    wanted = logits(plain)
    for seq in range(3):
        context.decode([17], seq)
        difference = np.abs(logits(context) - wanted).max() / (wanted.max() - wanted.min())
        assert difference < 0.01, seq
    context.close()
    plain.close()


def logits(context: Context) -> np.ndarray:
    pointer = context.model.bindings.llama.llama_get_logits_ith(context.pointer, -1)
    return np.array(pointer[: context.model.n_vocab], dtype=np.float32)
