"""Choice of the number of tokens for which a model drafter is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from edgechat.draft_request import TextWindow
from edgechat.speculation.calibration import Calibration
from edgechat.speculation.drafter_costs import FIRST_PENDING_TOKENS, DrafterCosts
from edgechat.speculation.step_costs import STEP_SIZES, StepCosts

# Number of pending tokens whose time counts in the expected gain of a draft. More tokens, as after a prompt, are
# computed only once, for many drafts.
_MAX_COUNTED_PENDING: Final = 4


class ModelCandidate(NamedTuple):
    """A sequence for which the model can draft."""

    seq: int
    next_token: int
    """Last token of the text, which the sequence does not contain yet."""
    max_tokens: int
    calibration: Calibration
    ends_at_eog: bool = True
    """True if a draft ends before an end-of-generation token."""


class ModelChoice(NamedTuple):
    """Decision to ask the model for drafts."""

    n_tokens: int
    """Number of tokens to ask for, for each sequence."""
    max_pending: int
    """Maximum number of tokens of each sequence that the model may compute before it drafts."""
    gain: float
    """Expected speed relative to decoding without drafts."""
    pays: bool
    """False for a trial."""


def find_best_length(
    candidates: Sequence[ModelCandidate], windows: Sequence[TextWindow], costs: StepCosts, drafter_costs: DrafterCosts,
    depth: int, *, max_cost: float, reserve: float = 0.0, is_optimistic: bool = False,
) -> ModelChoice | None:  # fmt: skip
    """Return the number of tokens with the highest expected speed; None if no draft is allowed.

    `costs` are those of a decode step for as many sequences as there are `candidates`, at position `depth`; `windows`
    are the parts of their texts that the model reads. A draft and its step must cost at most `max_cost` decode steps
    even if all tokens are rejected, less `reserve` if a sequence is not expected to gain from the step. With
    `is_optimistic`, the acceptance rates are one standard error higher.
    """
    n_seqs, single_step_s = len(candidates), costs.single_step_s(depth)
    step_cost = drafter_costs.step_cost(n_seqs, single_step_s)
    max_step_cost = drafter_costs.max_step_cost(n_seqs, single_step_s)
    n_pending = sum(window.n_pending for window in windows)
    n_counted = min(n_pending, _MAX_COUNTED_PENDING * n_seqs)
    counted_cost = drafter_costs.pending_cost(n_counted, n_seqs, single_step_s)
    estimates = [
        c.calibration.estimate_accepted(c.max_tokens if window.n_pending else 0, is_optimistic=is_optimistic)
        for c, window in zip(candidates, windows, strict=True)
    ]
    max_tokens = max((len(sums) - 1 for sums in estimates), default=0)
    best: ModelChoice | None = None
    for n_tokens in (size - 1 for size in STEP_SIZES):
        if n_tokens > max_tokens:
            break
        n_drafted = sum(min(n_tokens, len(sums) - 1) for sums in estimates)
        ratio = costs.ratio(1 + n_drafted, depth)
        all_expected = [1 + sums[min(n_tokens, len(sums) - 1)] for sums in estimates]
        free_cost = max_cost - (reserve if min(all_expected) < ratio else 0.0) - ratio - n_tokens * max_step_cost
        max_pending = drafter_costs.max_pending(free_cost, n_seqs, single_step_s)
        if free_cost < 0 or max_pending < min(n_pending, FIRST_PENDING_TOKENS * n_seqs):
            break
        gain = sum(all_expected) / n_seqs / (ratio + n_tokens * step_cost + counted_cost)
        if best is None or gain > best.gain:
            best = ModelChoice(n_tokens, max(1, max_pending // n_seqs), gain, pays=False)
    return best
