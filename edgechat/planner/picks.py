"""Choice between models: three picks that weigh quality against the time of a typical turn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from edgechat.planner.quality import POINTS_PER_DOUBLING
from edgechat.planner.ranking import Evaluation

# Scores that differ by at most this number of points are equal, because nobody measured such a difference; the faster
# model wins.
_TIE_POINTS: Final = 0.25
# Quality from which a model is useful in a chat. A useful model within a time limit of a pick ranks before all others.
_USEFUL_POINTS: Final = 8.0
_USEFUL_BONUS: Final = 1000.0
# Turns up to this time count as equally fast: the reply begins at once and is read while it is generated.
_UNNOTICED_S: Final = 5.0
# Quants without a noticeable difference to Q8_0, at twice its size.
_FULL_PRECISION: Final = ("F32", "F16", "BF16")


class Wish(NamedTuple):
    """What one of the picks values: how long a user waits for a typical turn, and for how much quality."""

    label: str
    limits_s: tuple[float, ...]
    """Times of a typical turn, in seconds, within which a useful model ranks before all slower ones."""
    points_per_doubling: float
    """Number of quality points that a user gives up to halve the time of a turn."""

    def describe(self) -> str:
        """Describe the wish for the explanation of a pick."""
        limits = " or else ".join(f"{limit_s:.0f} s" for limit_s in self.limits_s)
        if not self.points_per_doubling:
            return f"wants a reply within {limits}; then quality alone counts"
        return f"wants a reply within {limits}, and gives up {self.points_per_doubling:.1f} points for half the time"


# Doubling the number of weights gains 4.9 points and doubles the time. Fast does not pay for that, Best quality always
# does, and Balanced pays for a gain of at least half of it.
FAST: Final = Wish("Fast", (10.0, 30.0, 120.0), POINTS_PER_DOUBLING)
BALANCED: Final = Wish("Balanced", (30.0, 120.0), POINTS_PER_DOUBLING / 2)
BEST_QUALITY: Final = Wish("Best quality", (120.0,), 0.0)
WISHES: Final = (FAST, BALANCED, BEST_QUALITY)
# Between the quants of one model, a time limit would choose a quant that ruins the model.
_QUANT_WISH: Final = Wish("Quant", (), BALANCED.points_per_doubling)


class Pick(NamedTuple):
    """A recommended model, with the wishes that it fulfils best."""

    wishes: tuple[Wish, ...]
    evaluation: Evaluation

    @property
    def label(self) -> str:
        """Labels of the wishes, such as `Fast, Balanced`."""
        return ", ".join(wish.label for wish in self.wishes)


def choose_picks(evaluations: Sequence[Evaluation], *, defaults_only: bool = False) -> list[Pick]:
    """Return the best model for each wish, in the order of `WISHES`; one that is best for several has one entry.

    Recommends nothing before the speed of the processor was measured: a model could take minutes for a reply. With
    `defaults_only`, candidates whose `is_default` is False are ignored.
    """
    eligible = _list_eligible(evaluations, defaults_only=defaults_only)
    known = [e for e in eligible if _is_speed_known(e) and e.is_fast_enough]
    wishes_by_name: dict[str, list[Wish]] = {}
    chosen: dict[str, Evaluation] = {}
    for wish in WISHES:
        evaluation = _choose(known, wish)
        if evaluation is not None:
            wishes_by_name.setdefault(evaluation.candidate.name, []).append(wish)
            chosen[evaluation.candidate.name] = evaluation
    return [Pick(tuple(wishes), chosen[name]) for name, wishes in wishes_by_name.items()]


def choose_evaluation(evaluations: Sequence[Evaluation], *, defaults_only: bool = False) -> Evaluation | None:
    """Return the model that a user gets without a choice: the Balanced pick; None if no candidate fits.

    If no model is fast enough, the fastest is returned. If no speed is known, quality decides between installed models.
    With `defaults_only`, candidates whose `is_default` is False are ignored.
    """
    eligible = _list_eligible(evaluations, defaults_only=defaults_only)
    known = [e for e in eligible if _is_speed_known(e)]
    if not known:
        return _choose([e for e in eligible if e.candidate.is_installed], BALANCED)
    fast = [e for e in known if e.is_fast_enough]
    return _choose(fast, BALANCED) or max(known, key=lambda e: (e.speed.decode_tps if e.speed else 0.0, e.points))


def choose_quants(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the recommended quant of each model: quality against time as in Balanced, but without time limits.

    If no quant fits, the smallest is returned. As long as the speed is unknown, the time of a turn counts as
    proportional to the size of the weights.
    """
    by_model: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_model.setdefault(evaluation.model_name, []).append(evaluation)
    chosen = []
    for quants in by_model.values():
        eligible = _list_eligible(quants, defaults_only=False)
        known = [e for e in eligible if _is_speed_known(e)]
        smallest = min(quants, key=lambda e: e.memory.total)
        by_size = max(eligible, key=lambda e: _score(e, _QUANT_WISH, float(e.memory.weights)), default=smallest)
        chosen.append((_choose(known, _QUANT_WISH) or by_size) if known else by_size)
    return chosen


def is_improvement(evaluation: Evaluation, other: Evaluation) -> bool:
    """Return whether a model has better quality than `other`, by more than a tie, or a shorter typical turn."""
    is_faster = _is_speed_known(evaluation) and _ranking_s(evaluation) < _ranking_s(other)
    return evaluation.points > other.points + _TIE_POINTS or is_faster


def _list_eligible(evaluations: Iterable[Evaluation], *, defaults_only: bool) -> list[Evaluation]:
    """Return the evaluations that may be picked: models that fit in memory and on the disk.

    A file at full precision is left out if a Q8_0 of the same model is among them.
    """
    eligible = [
        e for e in evaluations
        if e.plan is not None and not e.is_download_too_large and (e.candidate.is_default or not defaults_only)
    ]  # fmt: skip
    with_q8 = {e.model_name for e in eligible if e.candidate.quant == "Q8_0"}
    return [e for e in eligible if e.candidate.quant not in _FULL_PRECISION or e.model_name not in with_q8]


def _is_speed_known(evaluation: Evaluation) -> bool:
    """Return whether the speed of a model is known, or the model runs on a GPU, whose kernels are never measured."""
    plan = evaluation.plan
    return evaluation.ranking_s is not None or (plan is not None and plan.options.n_gpu_layers > 0)


def _choose(evaluations: Sequence[Evaluation], wish: Wish) -> Evaluation | None:
    """Return the fastest of the models whose score is at most a tie below the best.

    A model that takes longer and has less quality than another one never wins, on any machine: its score is lower, and
    in a tie it is the slower one. So neither more memory nor more speed makes a pick worse in both.
    """
    measured = [e for e in evaluations if math.isfinite(e.points)]
    if not measured:  # the quality of every quant is unknown
        return max(evaluations, key=lambda e: e.memory.weights, default=None)
    best_score = max(_score(e, wish, _ranking_s(e)) for e in measured)
    tied = [e for e in measured if _score(e, wish, _ranking_s(e)) >= best_score - _TIE_POINTS]
    return min(tied, key=lambda e: (_ranking_s(e), -e.points, not e.candidate.is_installed, e.candidate.name))


def _score(evaluation: Evaluation, wish: Wish, seconds: float) -> float:
    """Return quality minus the cost of waiting `seconds`, in points: it grows with quality and falls with time."""
    waiting_points = wish.points_per_doubling * math.log2(max(seconds, _UNNOTICED_S) / _UNNOTICED_S)
    n_limits = sum(seconds <= limit_s for limit_s in wish.limits_s) if evaluation.points >= _USEFUL_POINTS else 0
    return evaluation.points - waiting_points + _USEFUL_BONUS * n_limits


def _ranking_s(evaluation: Evaluation) -> float:
    """Return the time by which a model is ranked, in seconds; 0.0 for an unknown speed, so that quality decides."""
    return evaluation.ranking_s or 0.0
