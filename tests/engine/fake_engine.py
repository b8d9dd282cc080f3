"""A scheduler on a fake context, which executes requests step by step."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from edgechat.engine import protocol
from edgechat.engine.request import ActiveRequest
from edgechat.engine.scheduler import Scheduler
from edgechat.prefix.cache import PrefixCache
from edgechat.runtime.context import Context
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.batch_speculator import BatchSpeculator
from edgechat.speculation.controller import DraftController
from edgechat.speculation.drafter import LivePool, PooledDrafter
from edgechat.speculation.model_source import ModelSource
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import STEP_SIZES, BatchStepCosts, RunningMean, StepCosts
from tests.fake_context import FakeContext, FakeModel
from tests.suffix_reference import PlainIndex

N_VOCAB = 12
N_CTX = 60
Costs = TypeVar("Costs", bound=StepCosts)


def free_steps(costs: Costs) -> Costs:
    """Make all steps as fast as one without drafts, so that every draft is worthwhile."""
    costs.ratios = [{n: RunningMean(1.0, 1000) for n in STEP_SIZES} for _ in costs.ratios]
    return costs


class FakeEngine:
    """A scheduler on a fake context; it records the output of each request."""

    def __init__(
        self, fake: FakeModel, *, with_drafts: bool, model: ModelSource | None = None, n_cells: int = N_CTX
    ) -> None:  # fmt: skip
        self.context = FakeContext(fake, N_CTX, n_cells=n_cells)
        self.cache = PrefixCache(self.context)  # type: ignore[arg-type]
        self.costs = free_steps(StepCosts())
        batch_costs = {n: free_steps(BatchStepCosts(n, self.costs)) for n in (2, 3, 4)}
        self.batch = BatchSpeculator(batch_costs.__getitem__, model, 32) if with_drafts else None
        self.scheduler = Scheduler(
            self.context, self.cache, self._on_finished, batch_speculator=self.batch,  # type: ignore[arg-type]
        )  # fmt: skip
        self.text: dict[tuple[int, int], str] = {}
        self.final: dict[int, protocol.Event] = {}
        self.outputs: dict[int, list[list[int]]] = {}
        self.prompt_logprobs: dict[int, list[float]] = {}
        self.awaiting: dict[int, ActiveRequest] = {}
        """Requests that wait for a grammar, by id."""
        self.pool = LivePool(PlainIndex, 4)
        self.model = model
        self.with_drafts = with_drafts

    def _on_finished(self, request: ActiveRequest, event: protocol.Event) -> None:
        assert request.params.id not in self.final
        self.final[request.params.id] = event
        self.outputs[request.params.id] = request.output_tokens

    def on_event(self, event: protocol.Event) -> None:
        if isinstance(event, protocol.TokensGenerated):
            key = event.id, event.sequence
            self.text[key] = self.text.get(key, "") + event.text
        if isinstance(event, protocol.PromptLogprobs):
            self.prompt_logprobs.setdefault(event.id, []).extend(token.logprob for token in event.logprobs)

    def add(self, request: protocol.Generate, *, awaits_grammar: bool = False) -> None:
        def make_speculator() -> Speculator:
            return Speculator([PooledDrafter(self.pool)], DraftController(Acceptance(), self.costs), model=self.model)

        active = ActiveRequest(
            cast("Context", self.context), self.cache, request, request.tokens or [], self.on_event, 0.0,
            make_speculator if self.with_drafts else None,
        )  # fmt: skip
        if awaits_grammar:
            active.await_grammar()
            self.awaiting[request.id] = active
        self.scheduler.add(active)

    def set_grammar(self, request_id: int) -> None:
        """End the wait of a request for its grammar, which allows everything."""
        active = self.awaiting.pop(request_id, None)
        if active is not None and request_id not in self.final:
            active.set_grammar(cast("Any", None))

    def set_all_grammars(self) -> None:
        for request_id in list(self.awaiting):
            self.set_grammar(request_id)

    def finish(self) -> None:
        for _ in range(10_000):
            if self.scheduler.is_idle:
                return
            self.scheduler.step()
        raise AssertionError("the scheduler did not finish within 10,000 steps")
