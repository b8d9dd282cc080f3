"""Greedy generation with a model drafter, at the level of the runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgechat.draft_request import DraftRequest
from edgechat.planner.drafter_plan import DrafterKind, DrafterPlan
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context
from edgechat.runtime.model import Model
from edgechat.runtime.model_drafter import NativeDrafter, open_model_drafter
from edgechat.speculation.drafter import ModelDrafter
from tests.models import open_context

N_DRAFT = 4


class DraftRun:
    """A target with its drafter, which counts the steps, and the drafted and the accepted tokens."""

    def __init__(self, context: Context, drafter: NativeDrafter) -> None:
        self.context = context
        self.drafter = drafter
        self.protocol: ModelDrafter = drafter
        self.n_steps = self.n_drafted = self.n_accepted = 0
        self.next_tokens: dict[int, int] = {}

    @property
    def acceptance(self) -> float:
        return self.n_accepted / max(1, self.n_drafted)

    def prefill(self, tokens: list[int], seq: int = 0) -> None:
        n_batch = self.context.n_batch
        for start in range(0, len(tokens), n_batch):
            self.context.decode(tokens[start : start + n_batch], seq)
        self.next_tokens[seq] = self.argmax(-1)

    def argmax(self, index: int) -> int:
        return int(np.argmax(self.context.logits(index)))

    def draft(self, *seqs: int, max_tokens: int = N_DRAFT, **limits: Any) -> dict[int, list[int]]:
        requests = {seq: DraftRequest(self.next_tokens[seq], max_tokens, **limits) for seq in seqs or (0,)}
        return {seq: list(draft.tokens) for seq, draft in self.protocol.draft(requests).items()}

    def verify(self, draft: list[int], seq: int = 0) -> list[int]:
        """Decode the next token and `draft`; return the tokens that the model chooses."""
        self.context.decode_chains({seq: [self.next_tokens[seq], *draft]})
        tokens: list[int] = []
        for i in range(len(draft) + 1):
            tokens.append(self.argmax(i))
            if i == len(draft) or tokens[-1] != draft[i]:
                break
        self.context.rollback(seq, len(draft) - len(tokens) + 1)
        self.next_tokens[seq] = tokens[-1]
        self.n_steps += 1
        self.n_drafted += len(draft)
        self.n_accepted += len(tokens) - 1
        return tokens

    def generate(self, n_tokens: int, seq: int = 0, **limits: Any) -> list[int]:
        """Generate at least `n_tokens` tokens with drafts."""
        output = [self.next_tokens[seq]]
        while len(output) < n_tokens:
            output += self.verify(self.draft(seq, **limits).get(seq, []), seq)
        return output[:n_tokens]

    def generate_plainly(self, n_tokens: int, seq: int = 0) -> list[int]:
        output = [self.next_tokens[seq]]
        while len(output) < n_tokens:
            output += self.verify([], seq)
        return output


@contextlib.contextmanager
def open_run(
    native: Bindings, target: Path, kind: DrafterKind, draft: Path | None = None, *, plan: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[DraftRun]:  # fmt: skip
    """Open a target of two sequences with its drafter. `options` are those of `open_context`."""
    defaults: dict[str, Any] = {"n_seqs": 2, "n_threads": 2, "n_ctx": 2048, "n_batch": 512, "n_rs_seq": N_DRAFT}
    model = Model(native, target, load_mtp=kind == "mtp")
    context = open_context(model, **(defaults | options))
    drafter = None
    try:
        drafter = open_model_drafter(
            context, DrafterPlan(kind=kind, model_path=str(draft or ""), **({"n_seqs": 2} | (plan or {})))
        )
        yield DraftRun(context, drafter)
    finally:
        if drafter is not None:
            drafter.close()
        context.close()
        model.close()
