"""Speeds of replies that no other program disturbed, to correct the predictions of the planner."""

from __future__ import annotations

import statistics
from typing import Final

from edgechat.errors import EdgechatError
from edgechat.hardware.contention import Timing
from edgechat.planner.load_plan import LoadPlan
from edgechat.runtime.backends import observed_speeds
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.observed_speeds import Work

# Maximum positions in the context, in tokens, of steps and batches that count. The planner predicts the decode speed
# for a context of 512 tokens, and the prefill speed for its start.
_MAX_DECODE_DEPTH: Final = 1024
_MAX_PREFILL_DEPTH: Final = 2048
# Minimum number of steps in a reply, and of tokens in a prefill batch. Smaller batches take more time per token.
_MIN_STEPS: Final = 16
_MIN_BATCH_TOKENS: Final = 256


class ReplySpeeds:
    """Undisturbed steps of one request: decode steps of one token, and prefill batches of several hundred tokens."""

    def __init__(self) -> None:
        self._steps_s: list[float] = []
        self._n_prefill_tokens = 0
        self._prefill_s = 0.0

    def record_step(self, depth: int, timing: Timing) -> None:
        """Record a decode step of one token of one sequence, at position `depth`."""
        if depth <= _MAX_DECODE_DEPTH and not timing.is_disturbed:
            self._steps_s.append(timing.elapsed_s)

    def record_prefill(self, start: int, end: int, timing: Timing) -> None:
        """Record a prefill batch of the tokens from position `start` to `end`."""
        if end - start >= _MIN_BATCH_TOKENS and end <= _MAX_PREFILL_DEPTH and not timing.is_disturbed:
            self._n_prefill_tokens += end - start
            self._prefill_s += timing.elapsed_s

    @property
    def decode_tps(self) -> float | None:
        """Decode speed without drafts, in tokens per second; None if there were too few undisturbed steps."""
        step_s = statistics.median(self._steps_s) if len(self._steps_s) >= _MIN_STEPS else 0.0
        return 1.0 / step_s if step_s > 0 else None

    @property
    def prefill_tps(self) -> float | None:
        """Prefill speed in tokens per second; None if no batch of several hundred tokens was undisturbed."""
        return self._n_prefill_tokens / self._prefill_s if self._prefill_s > 0 else None


class SpeedRecorder:
    """Collects and saves the speeds of a model's replies. Ignores models on a GPU, whose speed is not predicted."""

    def __init__(self, plan: LoadPlan, backend: str) -> None:
        self._plan = plan
        self._backend = backend
        self._speeds: dict[tuple[Work, int], list[float]] = {}
        """Speeds that were not saved yet, in tokens per second, by work and number of threads."""

    def add(self, reply: ReplySpeeds) -> None:
        """Add the speeds of a reply, to be saved by `save`."""
        if self._plan.options.uses_gpu:
            return
        decode_tps, prefill_tps = reply.decode_tps, reply.prefill_tps
        if decode_tps is not None:
            self._speeds.setdefault(("decode", self._plan.n_threads), []).append(decode_tps)
        if prefill_tps is not None:
            self._speeds.setdefault(("prefill", self._plan.n_threads_batch), []).append(prefill_tps)

    def save(self) -> None:
        """Save the new speeds, which takes about a millisecond. Does nothing if there are no new speeds."""
        speeds, self._speeds = self._speeds, {}
        if not speeds:
            return
        try:
            backend_key = observed_speeds.make_backend_key(find_bundle(), self._backend)
        except EdgechatError:  # the bundle was deleted meanwhile
            return
        if backend_key:
            observed_speeds.record(self._plan.model_path, backend_key, speeds)
