"""Choice between models: three picks that weigh quality against the time of a typical turn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from edgechat.planner.memory import is_all_on_gpu
from edgechat.planner.quality import POINTS_PER_DOUBLING
from edgechat.planner.ranking import Evaluation

# Scores that differ by at most this number of points count as equal, because the scores are not more precise; the
# faster model wins.
_TIE_POINTS: Final = 0.25
# Minimum quality, in points, of a model that is useful in a chat. For each time limit of an objective that a useful
# model meets, the bonus is added to its score, so that it ranks before all models that do not meet the limit.
_USEFUL_POINTS: Final = 8.0
_USEFUL_BONUS: Final = 1000.0
# Turns up to this time count as equally fast: the reply begins at once, and the user reads it while it is being
# generated.
_UNNOTICED_S: Final = 5.0
# Quants without a noticeable difference to Q8_0, at twice its size.
_FULL_PRECISION: Final = ("F32", "F16", "BF16")


class Objective(NamedTuple):
    """Preference by which models are ranked: time limits for a typical turn, and the price of time in quality."""

    label: str
    limits_s: tuple[float, ...]
    """Times of a typical turn, in seconds, within which a useful model ranks before all slower ones."""
    points_per_doubling: float
    """Number of quality points that a user gives up to halve the time of a turn."""

    def format_rule(self) -> str:
        """Format the time limits and the price of time for the explanation of a pick."""
        limits = ", otherwise within ".join(f"{limit_s:.0f} s" for limit_s in self.limits_s)
        if not self.points_per_doubling:
            return f"prefers a reply within {limits}, and then the best quality"
        return f"prefers a reply within {limits}, and gives up {self.points_per_doubling:.1f} points for half the time"


# Doubling the number of weights gains 4.9 points and doubles the time. `Fast` values this time at as many points,
# `Balanced` at half as many, and `Best quality` at none.
FAST: Final = Objective("Fast", (10.0, 30.0, 120.0), POINTS_PER_DOUBLING)
BALANCED: Final = Objective("Balanced", (30.0, 120.0), POINTS_PER_DOUBLING / 2)
BEST_QUALITY: Final = Objective("Best quality", (120.0,), 0.0)
OBJECTIVES: Final = (FAST, BALANCED, BEST_QUALITY)
# No time limits, because they would choose a quant that ruins the model.
_QUANT_OBJECTIVE: Final = Objective("Quant", (), BALANCED.points_per_doubling)


class Pick(NamedTuple):
    """Recommended model, with the objectives for which it ranks first."""

    objectives: tuple[Objective, ...]
    evaluation: Evaluation

    @property
    def label(self) -> str:
        """Labels of the objectives, such as `Fast, Balanced`."""
        return ", ".join(objective.label for objective in self.objectives)


def choose_picks(evaluations: Sequence[Evaluation], *, defaults_only: bool = False) -> list[Pick]:
    """Return the best model for each objective, in the order of `OBJECTIVES`, with one entry for each model.

    Recommends nothing before the speed of the processor was measured: a model could take minutes for a reply. A pick
    leaves the reserved memory to other programs. With `defaults_only`, candidates whose `is_default` is False are
    ignored.
    """
    fast_models = _list_fast(evaluations, defaults_only=defaults_only)
    objectives_by_name: dict[str, list[Objective]] = {}
    best_models: dict[str, Evaluation] = {}
    for objective in OBJECTIVES:
        best_model = _choose(fast_models, objective)
        if best_model is not None:
            objectives_by_name.setdefault(best_model.candidate.name, []).append(objective)
            best_models[best_model.candidate.name] = best_model
    return [Pick(tuple(objectives), best_models[name]) for name, objectives in objectives_by_name.items()]


class SlowerModel(NamedTuple):
    """Model of better quality that a time limit excluded."""

    evaluation: Evaluation
    turn_s: float
    """Time of a typical turn of the model, in seconds."""
    limit_s: float
    """Time limit that the picked model meets and the better model exceeds, in seconds."""


def find_slower_model(
    pick: Pick, evaluations: Sequence[Evaluation], *, defaults_only: bool = False
) -> SlowerModel | None:
    """Return the better model that would be picked if there were no time limits; None if there is none."""
    models, pick_s = _list_fast(evaluations, defaults_only=defaults_only), _ranking_s(pick.evaluation)
    for objective in pick.objectives:
        best_model = _choose(models, objective._replace(limits_s=()))
        if best_model is None or best_model.points <= pick.evaluation.points + _TIE_POINTS:
            continue
        turn_s = _ranking_s(best_model)
        limit_s = next((limit_s for limit_s in objective.limits_s if pick_s <= limit_s < turn_s), None)
        if limit_s is not None:
            return SlowerModel(best_model, turn_s, limit_s)
    return None


def choose_evaluation(evaluations: Sequence[Evaluation], *, defaults_only: bool = False) -> Evaluation | None:
    """Return the model that a user gets without a choice: the Balanced pick; None if no candidate fits.

    If no model is fast enough, the fastest is returned. If no speed is known, quality decides between installed models.
    If no model leaves the reserved memory to other programs, an installed model may use it. With `defaults_only`,
    candidates whose `is_default` is False are ignored.
    """
    eligible_models = _list_eligible(evaluations, defaults_only=defaults_only)
    best_model = _choose_default([e for e in eligible_models if not e.uses_reserve])
    return best_model or _choose_default([e for e in eligible_models if e.candidate.is_installed])


def _choose_default(eligible_models: Sequence[Evaluation]) -> Evaluation | None:
    predicted_models = [e for e in eligible_models if _is_speed_known(e)]
    if not predicted_models:
        return _choose([e for e in eligible_models if e.candidate.is_installed], BALANCED)
    best_model = _choose([e for e in predicted_models if e.is_fast_enough], BALANCED)
    return best_model or max(predicted_models, key=lambda e: (e.speed.decode_tps if e.speed else 0.0, e.points))


def choose_quants(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the recommended quant of each model, weighing quality against time as in Balanced, without time limits.

    If no quant leaves the reserved memory free, the smallest is returned. As long as the speed is unknown, the time of
    a turn counts as proportional to the size of the weights.
    """
    quants_by_model: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        quants_by_model.setdefault(evaluation.model_name, []).append(evaluation)
    return [_choose_quant(quants) for quants in quants_by_model.values()]


def _choose_quant(quants: Sequence[Evaluation]) -> Evaluation:
    eligible_quants = [e for e in _list_eligible(quants, defaults_only=False) if not e.uses_reserve]
    best_quant = _choose([e for e in eligible_quants if _is_speed_known(e)], _QUANT_OBJECTIVE)
    if best_quant is not None:
        return best_quant
    smallest_quant = min(quants, key=lambda e: e.memory.total)
    return max(
        eligible_quants, key=lambda e: _score(e, _QUANT_OBJECTIVE, float(e.memory.weights)), default=smallest_quant
    )


def is_improvement(evaluation: Evaluation, other: Evaluation) -> bool:
    """Return whether a model is better than `other`: in quality, by more than a tie, in time, or in memory.

    A model is better in memory if only `other` needs the memory that is reserved for other programs.
    """
    is_faster = _is_speed_known(evaluation) and _ranking_s(evaluation) < _ranking_s(other)
    leaves_more = other.uses_reserve and not evaluation.uses_reserve
    return evaluation.points > other.points + _TIE_POINTS or is_faster or leaves_more


def _list_fast(evaluations: Iterable[Evaluation], *, defaults_only: bool) -> list[Evaluation]:
    """Return the eligible models of a known speed that are fast enough and leave memory to other programs."""
    eligible_models = _list_eligible(evaluations, defaults_only=defaults_only)
    return [e for e in eligible_models if _is_speed_known(e) and e.is_fast_enough and not e.uses_reserve]


def _list_eligible(evaluations: Iterable[Evaluation], *, defaults_only: bool) -> list[Evaluation]:
    """Return the evaluations that may be picked: models that fit in memory and on the disk.

    A file at full precision is left out if a Q8_0 of the same model is among them. Only an installed Q8_0 excludes an
    installed file, because a download of the Q8_0 saves nothing.
    """
    usable_models = [
        e for e in evaluations
        if e.plan is not None and not e.is_download_too_large and (e.candidate.is_default or not defaults_only)
    ]  # fmt: skip
    q8_models = {(e.model_name, e.candidate.is_installed) for e in usable_models if e.candidate.quant == "Q8_0"}

    def has_q8(evaluation: Evaluation) -> bool:
        name, is_installed = evaluation.model_name, evaluation.candidate.is_installed
        return (name, True) in q8_models or (not is_installed and (name, False) in q8_models)

    return [e for e in usable_models if e.candidate.quant not in _FULL_PRECISION or not has_q8(e)]


def _is_speed_known(evaluation: Evaluation) -> bool:
    """Return whether the speed of a model is known, or all of it is on a GPU, whose kernels are never measured."""
    plan, profile = evaluation.plan, evaluation.candidate.profile
    return evaluation.ranking_s is not None or (plan is not None and is_all_on_gpu(profile, plan.options))


def _choose(evaluations: Sequence[Evaluation], objective: Objective) -> Evaluation | None:
    """Return the fastest of the models whose score is at most a tie below the best.

    In a tie, the time of a model with heads for drafts counts as divided by their expected gain.
    A model that takes longer and has less quality than another one never wins, on any machine: its score is lower, and
    in a tie it is the slower one. So neither more memory nor more speed makes a pick worse in both.
    """
    scores = [(_score(e, objective, _ranking_s(e)), e) for e in evaluations if math.isfinite(e.points)]
    if not scores:  # the quality of every quant is unknown
        return max(evaluations, key=lambda e: e.memory.weights, default=None)
    best_score = max(score for score, _ in scores)
    best_models = [e for score, e in scores if score >= best_score - _TIE_POINTS]
    return min(
        best_models,
        key=lambda e: (_ranking_s(e) / e.draft_gain, -e.points, not e.candidate.is_installed, e.candidate.name),
    )


def _score(evaluation: Evaluation, objective: Objective, seconds: float) -> float:
    """Return quality minus the cost of waiting `seconds`, in points: it grows with quality and falls with time."""
    waiting_points = objective.points_per_doubling * math.log2(max(seconds, _UNNOTICED_S) / _UNNOTICED_S)
    n_limits = sum(seconds <= limit_s for limit_s in objective.limits_s) if evaluation.points >= _USEFUL_POINTS else 0
    return evaluation.points - waiting_points + _USEFUL_BONUS * n_limits


def _ranking_s(evaluation: Evaluation) -> float:
    """Return the time by which a model is ranked, in seconds; 0.0 for an unknown speed, as with all layers on a GPU."""
    return evaluation.ranking_s or 0.0
