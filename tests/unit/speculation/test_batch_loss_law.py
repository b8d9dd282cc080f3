"""No reply of a batch is slower than 0.97 of plain decoding, whatever the drafters of all replies propose."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import pytest

from edgechat.bench.draft_replay import FixedStepCosts
from edgechat.draft_request import DraftRequest, TextWindow, TokenChain
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.batch_speculator import BatchMember, BatchSpeculator
from edgechat.speculation.calibration import Calibration
from edgechat.speculation.controller import DraftController
from edgechat.speculation.model_source import DrafterProfile, ModelSource
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import BatchStepCosts
from tests.unit.speculation.costs import STAIRCASE, STEEP, costs_of
from tests.unit.speculation.replies import N_VOCAB, IsRight, ReplyReader, ScriptedText

MAX_COST = 1 / 0.97
N_TOKENS = 150


class BatchModel:
    """Model drafter of several replies, which is right where `is_right` says so; it takes `step_cost` per token."""

    max_tokens = 7
    is_open = True

    def __init__(self, step_cost: float) -> None:
        self.step_cost, self.now_s = step_cost, 0.0
        self.readers: list[ReplyReader] = []
        self.is_right: list[IsRight] = []
        self.n_calls = 0

    def find_window(self, seq: int) -> TextWindow:
        return TextWindow(1, 500, 0)

    def draft(self, requests: Mapping[int, DraftRequest]) -> dict[int, TokenChain]:
        self.n_calls += 1
        tokens = {seq: self.readers[seq].follow(self.is_right[seq], r.max_tokens) for seq, r in requests.items()}
        self.now_s += self.step_cost * max(map(len, tokens.values()))
        return {seq: TokenChain(draft, [0.9] * len(draft)) for seq, draft in tokens.items()}

    def sleep(self) -> None:
        pass

    def wake(self) -> bool:
        return True

    def start_timer(self) -> Callable[[], tuple[float, bool]]:
        started_s = self.now_s
        return lambda: (self.now_s - started_s, False)


class BatchReplay:
    """Replays batches of replies one after another, which learn from each other."""

    def __init__(self, n_seqs: int, ratios: dict[int, float], step_cost: float) -> None:
        self.costs = FixedStepCosts(BatchStepCosts(n_seqs, costs_of(ratios)))
        estimate = BatchStepCosts(n_seqs, costs_of(ratios))._estimate_ratio
        self.costs._estimate_ratio = estimate  # type: ignore[method-assign]
        self.costs.record(1, 100, 1.0)
        self.model = BatchModel(step_cost)
        self.profile, self.acceptance = DrafterProfile(), Acceptance()
        self.source = ModelSource(self.model, self.profile, N_VOCAB, self.model.start_timer)
        self.batch = BatchSpeculator(lambda _n_seqs: self.costs, self.source, 32)

    def start(self, texts: Sequence[tuple[IsRight, int]], model_is_right: Sequence[IsRight]) -> list[BatchMember]:
        """Start a batch of replies, whose text drafters and model are right as given."""
        rng = random.Random(len(texts))
        readers, members = [ReplyReader() for _ in texts], []
        for seq, (reader, (is_right, match_length)) in enumerate(zip(readers, texts, strict=True)):
            reader.reply = [rng.randrange(N_VOCAB) for _ in range(N_TOKENS + 40)]
            controller = DraftController(
                Acceptance(self.acceptance.counts), self.costs, Calibration(self.profile.greedy)
            )  # fmt: skip
            speculator = Speculator([ScriptedText(reader, is_right, match_length)], controller, model=self.source)
            speculator.seq = seq
            speculator.start([])
            members.append(BatchMember(speculator, 31))
        self.model.readers, self.model.is_right = readers, list(model_is_right)
        return members

    def run(self, texts: Sequence[tuple[IsRight, int]], model_is_right: Sequence[IsRight]) -> float:
        """Replay a batch until its first reply has `N_TOKENS` tokens; return the cost per token of the slowest one."""
        members = self.start(texts, model_is_right)
        readers, cost = self.model.readers, 0.0
        while all(reader.position < N_TOKENS for reader in readers):
            drafts, outputs = self.batch.propose(members, 100), []
            for reader, draft in zip(readers, drafts, strict=True):
                rest = reader.reply[reader.position :]
                n_accepted = next((i for i, t in enumerate(draft) if t != rest[i]), len(draft))
                outputs.append(list(rest[: n_accepted + 1]))
            ratio = self.costs.ratio(1 + sum(map(len, drafts)), 100)
            cost += ratio + self.batch._draft_s
            self.batch.record_step(members, drafts, outputs, 100, ratio)
            for member, output in zip(members, outputs, strict=True):
                member.speculator.append(output)
        return cost / min(reader.position for reader in readers)


def guess(share: float, seed: int) -> IsRight:
    return lambda position: hash((position, seed)) % 1000 < 1000 * share


@pytest.mark.parametrize("n_seqs", [2, 4])
@pytest.mark.parametrize("ratios", [STAIRCASE, STEEP], ids=["staircase", "steep"])
@pytest.mark.parametrize("shares", [(0.0,), (0.1,), (1.0, 0.0), (0.8, 0.0, 0.5)], ids=str)
def test_batches_keep_the_law(n_seqs: int, ratios: dict[int, float], shares: tuple[float, ...]) -> None:
    """Replies of a batch have different texts; a step is as slow for those whose drafts are wrong as for the others."""
    replay, rng = BatchReplay(n_seqs, ratios, step_cost=0.15), random.Random(n_seqs)
    slowest = 0.0
    for seed in range(12):
        rights = [guess(shares[(seed + i) % len(shares)], seed + i) for i in range(n_seqs)]
        texts = [(is_right, rng.choice([1, 8, 64])) for is_right in rights]
        slowest = max(slowest, replay.run(texts, rights[::-1] if seed % 2 else rights))
    assert slowest <= MAX_COST


def test_batches_of_right_drafts_are_faster() -> None:
    replay = BatchReplay(3, STAIRCASE, step_cost=0.05)
    for _ in range(4):
        cost = replay.run([(guess(0.0, 0), 1)] * 3, [guess(1.0, 0)] * 3)
    assert replay.model.n_calls > 10
    assert cost < 0.8


@pytest.mark.parametrize(("budget", "n_calls"), [(1.4, 0), (2.5, 1)])
def test_model_is_asked_only_for_drafts_that_all_replies_can_afford(budget: float, n_calls: int) -> None:
    """The last part of the budget of a reply without a draft pays for no drafts of others."""
    replay = BatchReplay(2, STAIRCASE, step_cost=0.05)
    replay.profile.costs.record(1, 2, 2, 0.05, is_disturbed=False)
    members = replay.start([(guess(0.0, 0), 0)] * 2, [guess(1.0, 0)] * 2)
    members[0].speculator._drafters = []  # only the model drafts
    members[1] = BatchMember(members[1].speculator, 0)
    while replay.costs.needs_single_step:
        replay.costs.record(1, 100, 1.0)
    left = members[1].speculator.budget.remaining
    members[1].speculator.budget.record(1, 1 + left - budget)
    drafts = replay.batch.propose(members, 100)
    assert replay.model.n_calls == n_calls
    assert bool(drafts[0]) == bool(n_calls)
