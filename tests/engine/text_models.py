"""A text model in the process of the test, which executes requests step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.drafting import OpenDrafter
from edgechat.engine.failures import create_failure_event
from edgechat.engine.text_model import TextModel
from edgechat.errors import EdgechatError
from edgechat.hardware.free_memory import FreeMemory
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.model import Model

PLENTY = FreeMemory(total_bytes=1 << 40, available_bytes=1 << 40)

# Largest difference between two logits that the order of cells in the context makes, in these models.
ROUNDING: Final = 0.02


class SteppedModel:
    """A text model that records the events of its requests. `memory` is the free memory that it reads."""

    def __init__(
        self, native: Bindings, path: Path, prefix_dir: Path | str = "", open_drafter: OpenDrafter | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        self.events: list[protocol.Event] = []
        self.memory = PLENTY
        self.now = 0.0
        self.ids = 0
        plan = make_manual_plan(str(path), **({"n_threads": 2, "n_batch": 128, "n_seqs": 4} | options))
        model = Model(native, path, plan.options, load_mtp=plan.drafter is not None and plan.drafter.kind == "mtp")
        self.model = TextModel(
            model,
            protocol.Load(id=0, plan=plan, prefix_dir=str(prefix_dir)),
            "test",
            self.events.append,
            lambda _id, event: self._finish(event),
            open_drafter,
        )
        self.context = self.model._context
        self.sizer = self.model._sizer
        self.sizer._read_memory = lambda: self.memory
        self.sizer._now = lambda: self.now
        self.lengths = [self.context.n_ctx]
        """Lengths of the context, in the order of the resizes."""
        resize = self.context.resize

        def resize_and_record(n_ctx: int) -> None:
            resize(n_ctx)
            self.lengths.append(self.context.n_ctx)

        self.context.resize = resize_and_record  # type: ignore[method-assign]

    def _finish(self, event: protocol.Event) -> None:
        self.events.append(event)

    def start(self, tokens: list[int], **fields: Any) -> int:
        """Start a request of `tokens`, and return its id."""
        self.ids += 1
        fields = dict[str, Any](
            **{"max_tokens": 30, "ignore_eog": True, "sampling": GREEDY, "conversation": ""} | fields
        )
        request = protocol.Generate(id=self.ids, tokens=tokens, **fields)
        try:
            self.model.execute(request, 0.0)
        except EdgechatError as error:
            self.events.append(create_failure_event(request.id, error))
        return request.id

    def finish(self, on_step: Callable[[int], set[int] | None] = lambda step: None) -> None:
        """Run steps until all requests have ended; `on_step` gets the number of the step and returns cancelled ids."""
        for step in range(20_000):
            if not self.model.is_busy:
                return
            self.model.clear_abort()
            self.model.step(on_step(step) or set())
        raise AssertionError("the requests did not end within 20,000 steps")

    def tokens(self, request_id: int, sequence: int = 0) -> list[int]:
        """Return the generated tokens of a reply."""
        return [
            token
            for event in self.events
            if isinstance(event, protocol.TokensGenerated) and (event.id, event.sequence) == (request_id, sequence)
            for token in event.tokens
        ]

    def find_difference(self, prompt: list[int], tokens: list[int], **fields: Any) -> int | None:
        """Return the index of the first of `tokens` that this model does not generate after `prompt`; None without one.

        Each token is compared after all tokens before it. It counts as generated if the difference between its logprob
        and that of the likeliest token is a rounding difference. `fields` are further fields of the request.
        """
        if not tokens:
            return None
        request_id = self.start(
            prompt, max_tokens=len(tokens), forced_tokens=tokens, n_logprobs=1, ephemeral=True, **fields
        )
        self.finish()
        events = [e for e in self.events if isinstance(e, protocol.TokensGenerated) and e.id == request_id]
        logprobs = [item for event in events for item in event.logprobs]
        assert [token for event in events for token in event.tokens] == tokens
        assert len(logprobs) == len(tokens)
        for i, item in enumerate(logprobs):
            if item.top_logprobs[0][1] - item.logprob > ROUNDING:
                return i
        return None

    def logprobs(self, request_id: int, sequence: int = 0) -> list[float]:
        """Return the logprobs of the generated tokens of a reply to a request with `n_logprobs`."""
        return [
            item.logprob
            for event in self.events
            if isinstance(event, protocol.TokensGenerated) and (event.id, event.sequence) == (request_id, sequence)
            for item in event.logprobs
        ]

    def final(self, request_id: int) -> Any:
        """Return the final event of a request."""
        [event] = [e for e in self.events if e.id == request_id and isinstance(e, protocol.FINAL_EVENTS)]
        return event

    def notices(self, request_id: int) -> list[protocol.ContextGrowthRefused]:
        """Return the refusals that a request got."""
        return [e for e in self.events if e.id == request_id and isinstance(e, protocol.ContextGrowthRefused)]

    def ask(self, tokens: list[int], **fields: Any) -> tuple[list[int], Any]:
        """Run one request; return its tokens and its final event."""
        request_id = self.start(tokens, **fields)
        self.finish()
        return self.tokens(request_id), self.final(request_id)
