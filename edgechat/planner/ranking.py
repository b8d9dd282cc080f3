"""Which model and quant: the best answers that the memory and the wished speed allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from edgechat.errors import EdgechatError, PlanError
from edgechat.humanize import size
from edgechat.modelfile.header import ModelHeader
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions, MemoryEstimate, estimate
from edgechat.planner.plan import MIN_N_CTX, LoadPlan, default_n_ctx, default_n_seqs, plan
from edgechat.planner.quality import Quality, loss
from edgechat.planner.throughput import KernelSpeeds, PredictedSpeed, predict_speed, speed_by_bandwidth

PROMPT_TOKENS = 1000
"""Of the prompt whose time to the first token is shown."""
# Where most of an answer is decoded at.
_N_PAST = 512
# Points that nobody would notice: between such, the faster one is better.
_EVEN = 0.25


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A file that could be chosen."""

    name: str
    quant: str
    header: ModelHeader
    quality: Quality
    is_installed: bool = True
    """False if it would have to be downloaded first."""
    is_default: bool = True
    """False if it is never chosen unasked: its licence asks for something."""
    is_size_estimated: bool = False
    """True if its size is not known, only computed."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate on a machine."""

    candidate: Candidate
    plan: LoadPlan | None
    """None if it does not fit."""
    memory: MemoryEstimate
    """As planned, or the least that it would take."""
    speed: PredictedSpeed | None
    points: float
    """Of quality, with everything that the plan gives up."""
    verdict: str
    """Why it is, or is not, what one would choose: one reason."""
    is_fast_enough: bool = True


Exact = Callable[[Candidate], Callable[[LoadOptions], MemoryEstimate] | None]
"""What asks llama.cpp for sizes, where it can be asked about a candidate."""


def evaluate(
    candidate: Candidate,
    machine: Machine,
    *,
    speeds: KernelSpeeds | None = None,
    n_ctx: int | None = None,
    min_tps: float = 0.0,
    exact: Exact = lambda candidate: None,
) -> Evaluation:
    """Plan a candidate and say how good and how fast it would be; one whose speed is not known counts as fast enough."""
    header = candidate.header
    take = exact(candidate)
    if take is None and speeds is not None:
        known = speeds.repacked
        take = lambda options: estimate(header, options, known)  # noqa: E731  (one line)
    try:
        made = plan(header, machine, n_ctx=n_ctx, estimator=take)
    except PlanError:
        return _too_large(candidate, n_ctx)
    except EdgechatError as error:  # a header with shapes that cannot be
        nothing = MemoryEstimate(weights=header.tensor_bytes, repacked=0, kv_cache=0, compute=0)
        return Evaluation(
            candidate=candidate, plan=None, memory=nothing, speed=None, points=-math.inf, verdict=str(error)
        )
    options = made.options
    if speeds is not None and not options.n_gpu_layers:
        # As if nothing were given up: what more memory brings must not make a model too slow.
        speed = predict_speed(header, speeds, n_past=_N_PAST)
    else:
        gpu_part = min(1.0, max(0, options.n_gpu_layers - 1) / max(1, header.n_layers))
        speed = speed_by_bandwidth(header, machine.read_bps, machine.gpu_read_bps, gpu_part)
    points = candidate.quality.points
    if options.kv_type == "q8_0":
        points -= loss("F32", header.n_params, kv_q8=True)
    slow = speed is not None and speed.decode_tps < min_tps
    verdict = "; ".join(made.concessions) or "fits"
    if speed is not None and slow:
        verdict = f"too slow: {speed.decode_tps:.1f} tokens/s of {min_tps:g} wished"
    return Evaluation(
        candidate=candidate, plan=made, memory=made.estimate, speed=speed, points=points, verdict=verdict,
        is_fast_enough=not slow,
    )  # fmt: skip


def choose(rated: Sequence[Evaluation], *, unasked: bool = False) -> Evaluation | None:
    """The best of them that fit: fast enough if any is, then quality, context and speed; None if none fits.

    If none is fast enough, the fastest: the wish comes before quality, so that with more memory a fast model may take the
    place of a slow and better one. Of what is even in quality, a quarter of a point, context and speed count. With `unasked`, only what may be chosen so.
    """
    fitting = [r for r in rated if r.plan is not None and (r.candidate.is_default or not unasked)]
    fast = [r for r in fitting if r.is_fast_enough]
    if not fast:
        return max(fitting, key=lambda r: (_tps(r), r.points), default=None)
    best = max(r.points for r in fast)
    if not math.isfinite(best):  # quants that nobody measured
        return max(fast, key=lambda r: (r.memory.weights, _tps(r)))
    even = [r for r in fast if r.points >= best - _EVEN]
    return max(even, key=lambda r: (r.plan.options.n_ctx if r.plan else 0, _tps(r), r.points))


def _tps(rated: Evaluation) -> float:
    return rated.speed.decode_tps if rated.speed is not None else 0.0


def _too_large(candidate: Candidate, n_ctx: int | None) -> Evaluation:
    """What it would take at least."""
    header = candidate.header
    frugal = LoadOptions(
        n_ctx=n_ctx or min(default_n_ctx(header), MIN_N_CTX), n_seqs=default_n_seqs(header), use_mmap=False,
        kv_type="q8_0", n_ubatch=128,
    )  # fmt: skip
    least = estimate(header, frugal)
    return Evaluation(
        candidate=candidate, plan=None, memory=least, speed=None, points=candidate.quality.points,
        verdict=f"needs at least {size(least.total)}",
    )  # fmt: skip
