"""Speculative decoding of a loaded model: drafters, measured acceptance rates and step costs, and idle-time work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.engine.protocol import Generate, Load
from edgechat.errors import EngineError
from edgechat.prefix.disk_tier import folder_name
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.runtime.suffix_index import SuffixIndex
from edgechat.speculation import profile
from edgechat.speculation.controller import DraftController
from edgechat.speculation.corpus import Corpus
from edgechat.speculation.drafter import LiveDrafter
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import MIN_SAMPLES, SIZES

# Step costs are measured again after the first reply that ends at least this long after the last measurement.
_MEASURE_INTERVAL_S: Final = 60.0
# Time limit of one round of measurements; on a slow machine the remaining sizes wait for the next idle period.
_MEASURE_ROUND_S: Final = 10.0
# Number of one-token steps before each measured step: the first one is slower, because it builds a new graph.
_WARM_UP_STEPS: Final = 2
# Maximum number of replies that wait to be added to the corpus, in case the engine has no idle time.
_MAX_PENDING: Final = 16


class _FinishedRequest(msgspec.Struct, frozen=True):
    """Texts of a finished request that wait to be added to the corpus."""

    folder: str
    attached_texts: list[str]
    outputs: list[list[int]]


class Drafting:
    """Owns the drafters and the profile of a loaded model. All methods must be called on the decoding thread."""

    def __init__(self, context: Context, load: Load, backend: str) -> None:
        """Load the saved profile and corpus. Nothing is saved if `load` names no directory. Raises MemoryError."""
        library = context.model.bindings.edgechat
        vocabulary = context.model.vocabulary_hash()
        folder = None
        if load.prefix_dir and load.plan.prefix_disk_bytes > 0:
            folder = Path(load.prefix_dir) / f"drafts-{vocabulary}"
        name = f"{folder_name(str(context.model.path))}-{backend}-{context.n_threads}.json"
        self._profile_path = folder / name if folder is not None else None
        self._profile = (
            profile.load_profile(self._profile_path) if self._profile_path is not None else profile.SpeculationProfile()
        )
        self._context = context
        self._sizes = [size for size in SIZES if size <= 1 + context.max_rollback]
        self._live_drafter = LiveDrafter(SuffixIndex(library, context.n_ctx))
        self._corpus = Corpus(
            lambda capacity: SuffixIndex(library, capacity), load.plan.draft_tokens, context.model.n_vocab, folder
        )
        self._corpus.load()
        self._has_unsaved_profile = False
        self._starts_idle_period = True
        """True until the first idle step after a reply, which plans the measurements."""
        self._pending_requests: deque[_FinishedRequest] = deque(maxlen=_MAX_PENDING)
        self._measured_at = float("-inf")
        self._measure_deadline = 0.0
        self._sizes_to_measure: list[int] = []
        """Step sizes to measure, in reverse order: the last one is measured first."""

    def speculator_for(self, params: Generate) -> Speculator | None:
        """Create the speculator of a request; return None if the request must be decoded without drafts."""
        if params.conversation and not params.ephemeral:
            self._corpus.open_conversation(folder_name(params.conversation))
        if not params.speculate or params.n_sequences > 1 or not self._sizes:
            return None
        acceptance = self._profile.sampled if params.sampling.temperature > 0 else self._profile.greedy
        if params.conversation:
            self._has_unsaved_profile = True
        else:
            acceptance = acceptance.copy()  # an unsaved conversation must not change the profile
        is_end = self._context.model.is_eog if not params.ignore_eog else lambda _token: False
        return Speculator([self._live_drafter, self._corpus], DraftController(acceptance, self._profile.costs), is_end)

    def add_outputs(self, params: Generate, outputs: Sequence[list[int]]) -> None:
        """Queue the output of a finished request for the corpus, unless it is ephemeral or empty."""
        if params.ephemeral or not any(outputs):
            return
        self._starts_idle_period = True
        if params.conversation:
            request = _FinishedRequest(folder_name(params.conversation), params.attached_texts, list(outputs))
            self._pending_requests.append(request)

    def step_costs(self) -> dict[int, float]:
        """Return step costs by number of tokens, relative to one token, at the depth of the longest sequence."""
        costs, depth = self._profile.costs, self._depth()
        return {n: costs.ratio(n, depth) for n in SIZES if costs.is_measured(n, depth)}

    def _longest_seq(self) -> int:
        return max(range(self._context.n_seqs), key=lambda seq: len(self._context.tokens(seq)))

    def _depth(self) -> int:
        return len(self._context.tokens(self._longest_seq()))

    # Idle work

    def idle_step(self, allow_abort: Callable[[bool], None]) -> bool:
        """Update and save the corpus, measure a step cost, or save the profile. Return False if no work is left.

        `allow_abort(True)` and `allow_abort(False)` enclose decodes that `Context.abort` may end. Raises OSError,
        MemoryError and EdgechatError.
        """
        if self._pending_requests:
            self._add_to_corpus(self._pending_requests.popleft())
            return True
        if self._starts_idle_period:
            self._starts_idle_period = False
            self._corpus.remove_deleted()
            self._plan_measurements()
            return True
        if self._corpus.save_one():
            return True
        if self._sizes_to_measure and time.monotonic() < self._measure_deadline:
            return self._measure_next_size(allow_abort)
        if self._has_unsaved_profile:
            self._has_unsaved_profile = False
            self._save_profile()
        return False

    def _add_to_corpus(self, request: _FinishedRequest) -> None:
        tokenize = self._context.model.tokenize
        for text in request.attached_texts:
            self._corpus.add(request.folder, tokenize(text, add_special=False, parse_special=False))
        for tokens in request.outputs:
            self._corpus.add(request.folder, tokens)

    def _save_profile(self) -> None:
        if self._profile_path is not None:
            profile.save_profile(self._profile, self._profile_path)

    def _plan_measurements(self) -> None:
        """Schedule each step size once per interval, or `MIN_SAMPLES` times if any size has too few samples."""
        now = time.monotonic()
        self._measure_deadline = now + _MEASURE_ROUND_S
        if not self._sizes_to_measure and now - self._measured_at >= _MEASURE_INTERVAL_S:
            self._measured_at = now
            depth = self._depth()
            is_measured = all(self._profile.costs.is_measured(n, depth) for n in self._sizes)
            self._sizes_to_measure = self._sizes[::-1] * (1 if is_measured else MIN_SAMPLES)

    def _measure_next_size(self, allow_abort: Callable[[bool], None]) -> bool:
        allow_abort(True)
        try:
            self._measure_step(self._sizes_to_measure[-1])
            self._sizes_to_measure.pop()
        except DecodeAborted:
            return False  # a request arrived; the next idle period measures the remaining sizes
        except (NoKvSlotError, EngineError):
            self._sizes_to_measure = []
        finally:
            allow_abort(False)
        return True

    def _measure_step(self, size: int) -> None:
        """Time a decode of `size` tokens after the longest sequence, which stays unchanged."""
        context, costs, seq = self._context, self._profile.costs, self._longest_seq()
        depth = len(context.tokens(seq))
        if depth + size > context.n_ctx:
            return
        tokens = ([*context.tokens(seq)[-size:]] or [0]) * size
        base = seq if depth else None
        for _ in range(_WARM_UP_STEPS):
            single_s = context.time_decode(tokens[:1], base)
        costs.record(1, depth, single_s, is_benchmark=True)
        costs.record(size, depth, context.time_decode(tokens[:size], base), is_benchmark=True)
        self._has_unsaved_profile = True

    def finish(self, deadline: float) -> None:
        """Save the corpus until `deadline` (monotonic), then the profile. Raises the same exceptions as `idle_step`."""
        while self._pending_requests and time.monotonic() < deadline:
            self._add_to_corpus(self._pending_requests.popleft())
        while time.monotonic() < deadline and self._corpus.save_one():
            pass
        if self._has_unsaved_profile:
            self._save_profile()
