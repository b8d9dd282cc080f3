"""Speculative decoding for a loaded model: drafters, acceptance rates, step costs, and idle work to update them."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from edgechat.engine.drafter_work import DrafterWork
from edgechat.engine.generation import DrafterState
from edgechat.engine.protocol import Generate, Load
from edgechat.errors import EdgechatError, EngineError
from edgechat.files import make_file_key
from edgechat.planner.drafter_plan import MAX_DRAFTED_SEQS, DrafterPlan
from edgechat.prefix.shared_prefix import make_folder_name
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.runtime.suffix_index import SuffixIndex
from edgechat.speculation import profile
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.batch_speculator import BatchSpeculator
from edgechat.speculation.calibration import Calibration
from edgechat.speculation.controller import DraftController
from edgechat.speculation.corpus import Corpus, CorpusDrafter
from edgechat.speculation.drafter import Drafter, LivePool, ModelDrafter, PooledDrafter
from edgechat.speculation.model_source import ModelSource
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import MIN_SAMPLES, STEP_SIZES

# Minimum time between two rounds of step-cost measurements.
_MEASUREMENT_INTERVAL_S: Final = 60.0
# Maximum time of one round; on a slow machine the next idle period measures the remaining step sizes.
_MEASUREMENT_ROUND_S: Final = 10.0
# Number of one-token steps before each measured step. The first step is slower, because llama.cpp builds a new graph;
# the last step is recorded as the reference.
_WARM_UP_STEPS: Final = 2
# Maximum number of finished requests that wait to be added to the corpus, in case the engine is never idle.
_MAX_PENDING_REQUESTS: Final = 16


class _FinishedRequest(msgspec.Struct, frozen=True):
    """Texts of a finished request, to be added to the corpus in idle time."""

    folder: str
    attached_texts: list[str]
    outputs: list[list[int]]


class OpenDrafter(Protocol):
    """Opens the model drafter of a plan, or only checks its file if it `is_asleep`. Raises PlanError."""

    def __call__(self, context: Context, plan: DrafterPlan, *, is_asleep: bool) -> ModelDrafter: ...


class DraftManager:
    """Owns the drafters and the profile of a loaded model. All methods must be called on the decoding thread."""

    def __init__(
        self, context: Context, load: Load, backend: str, open_drafter: OpenDrafter | None = None
    ) -> None:  # fmt: skip
        """Load the saved profile and corpus; if `load` disables the disk cache, start without them and save nothing.

        `open_drafter` opens the model drafter of the plan. Raises MemoryError.
        """
        library = context.model.bindings.edgechat
        vocabulary_hash = context.model.vocabulary_hash()
        folder = None
        if load.prefix_dir and load.plan.prefix_disk_bytes > 0:
            folder = Path(load.prefix_dir) / f"drafts-{vocabulary_hash}"
        file_name = f"{make_folder_name(str(context.model.path))}-{backend}-{context.n_threads}.json"
        self._profile_path = folder / file_name if folder is not None else None
        self._profile = (
            profile.load_profile(self._profile_path) if self._profile_path is not None else profile.SpeculationProfile()
        )
        self._context = context
        self._sizes = [size for size in STEP_SIZES if size <= 1 + context.max_rollback]
        self._live_pool = LivePool(lambda: SuffixIndex(library, context.n_ctx), MAX_DRAFTED_SEQS)
        self._corpus = Corpus(
            lambda capacity: SuffixIndex(library, capacity), load.plan.draft_tokens, context.model.n_vocab, folder
        )
        self._corpus.load()
        self._has_unsaved_profile = False
        self._must_plan_idle_work = True
        """True at the start and after each reply: the next idle step removes deleted texts and plans measurements."""
        self._pending_requests: deque[_FinishedRequest] = deque(maxlen=_MAX_PENDING_REQUESTS)
        self._corpus_work: Iterator[bool] | None = None
        """Remaining steps of adding the texts of a finished request to the corpus."""
        self._measured_at = float("-inf")
        self._measurement_deadline = 0.0
        self._sizes_to_measure: list[int] = []
        """Step sizes to measure, in reverse order: the last item is measured first."""
        self.drafter_error = ""
        """Why the model drafter of the plan could not be opened, or failed later; "" without an error."""
        self._drafter: ModelDrafter | None = None
        self.has_memory: Callable[[int], bool] = lambda _n_bytes: True
        """Whether that many bytes can be allocated; asked before a sleeping drafter is woken."""
        self._drafter_work: DrafterWork | None = None
        self._model = self._open_model(load.plan.drafter, open_drafter)
        self._rates = profile.LearnedRates(self._profile, self._model.profile if self._model is not None else None)
        self.batch_speculator = BatchSpeculator(self._profile.find_batch_costs, self._model, context.max_outputs)
        """Chooses the drafts of several sequences in one batch."""

    def _open_model(self, plan: DrafterPlan | None, open_drafter: OpenDrafter | None) -> ModelSource | None:
        """Open the model drafter of the plan; return None, and set `drafter_error`, if that fails.

        A drafter whose drafts did not pay in earlier processes stays asleep until its next trial.
        """
        context = self._context
        if plan is None or open_drafter is None or not self._sizes:
            return None
        # The key changes if another file takes the path of the draft model.
        name = f"{plan.kind}-{make_folder_name(make_file_key(plan.model_path))}" if plan.model_path else plan.kind
        drafter_profile = self._profile.find_drafter(name)
        is_asleep = drafter_profile.schedule.is_rare
        try:
            drafter = self._drafter = open_drafter(context, plan, is_asleep=is_asleep)
        except (EdgechatError, MemoryError, OSError) as error:
            self._report_failure(str(error) or "Memory ran out when the drafter was opened.")
            return None

        def start_timer() -> Callable[[], tuple[float, bool]]:
            stopwatch = context.start_stopwatch()

            def stop() -> tuple[float, bool]:
                timing = stopwatch.stop()
                return timing.elapsed_s, timing.is_disturbed

            return stop

        source = ModelSource(
            drafter, drafter_profile, context.model.n_vocab, start_timer, self._report_failure, is_asleep=is_asleep
        )  # fmt: skip
        self._drafter_work = DrafterWork(context, plan, source)
        return source

    def _report_failure(self, message: str) -> None:
        self.drafter_error = message
        print(f"Decoding without the drafter: {message}", file=sys.stderr, flush=True)  # noqa: T201  (the log)

    def open_request(self, params: Generate) -> Callable[[], Speculator] | None:
        """Return a function that creates a speculator for each output sequence of a request.

        Returns None if the request must be decoded without drafts.
        """
        if params.conversation and not params.ephemeral:
            self._corpus.open_conversation(make_folder_name(params.conversation))
        if not params.speculate or not self._sizes or params.n_sequences > MAX_DRAFTED_SEQS:
            return None
        is_sampled = params.sampling.temperature > 0
        is_saved = bool(params.conversation) and not params.ephemeral
        self._has_unsaved_profile |= is_saved
        acceptance, counts = self._rates.find(is_sampled=is_sampled, is_saved=is_saved)
        is_end_token = self._context.model.is_eog if not params.ignore_eog else None

        def make_speculator() -> Speculator:
            # Replies that run at the same time share the counts of all replies, but not those of the current one.
            controller = DraftController(Acceptance(acceptance.counts), self._profile.costs, Calibration(counts))
            drafters: list[Drafter] = [PooledDrafter(self._live_pool), CorpusDrafter(self._corpus)]
            return Speculator(drafters, controller, is_end_token, self._model)

        return make_speculator

    @property
    def has_model(self) -> bool:
        """True if a model drafter is open and has not failed."""
        return self._model is not None and self._model.is_usable

    @property
    def is_drafter_asleep(self) -> bool:
        """True if the memory of the model drafter was freed, because its drafts did not pay."""
        return self._model is not None and self._model.is_asleep

    def free_drafter_memory(self) -> bool:
        """Free the memory of the model drafter until its next trial; return whether it had any."""
        return self._model is not None and self._model.free_memory()

    def describe_drafter(self) -> DrafterState | None:
        """Return the state of the model drafter; None if the plan has none."""
        if self._model is None and not self.drafter_error:
            return None
        return DrafterState(
            is_open=self.has_model, is_asleep=self.is_drafter_asleep, error=self.drafter_error,
            draft_costs=self.draft_costs(),
        )  # fmt: skip

    def draft_costs(self) -> dict[int, float]:
        """Return the measured cost of a draft of the model by its number of tokens; a step of one token costs 1."""
        single_step_s = self._profile.costs.single_step_s(self._find_max_depth())
        return self._model.estimate_costs(single_step_s) if self._model is not None else {}

    def add_outputs(self, params: Generate, outputs: Sequence[list[int]]) -> None:
        """Queue the outputs of a finished request for the corpus, except those of an ephemeral request."""
        if params.ephemeral or not any(outputs):
            return
        self._must_plan_idle_work = True
        if params.conversation:
            request = _FinishedRequest(make_folder_name(params.conversation), params.attached_texts, list(outputs))
            self._pending_requests.append(request)

    def step_costs(self) -> dict[int, float]:
        """Return the measured cost of a decode step by its number of tokens; a step of one token costs 1.

        The costs are those at the length of the longest sequence.
        """
        costs, depth = self._profile.costs, self._find_max_depth()
        return {n: costs.ratio(n, depth) for n in STEP_SIZES if costs.has_cost(n, depth)}

    def _find_longest_seq(self) -> int:
        return max(range(self._context.n_seqs), key=lambda seq: len(self._context.tokens(seq)))

    def _find_max_depth(self) -> int:
        return len(self._context.tokens(self._find_longest_seq()))

    # Idle work

    def idle_step(self, allow_abort: Callable[[bool], None]) -> bool:
        """Do one idle task: for the corpus or the model drafter, a measurement of a step, or saving the profile.

        Returns False if no task is left, or if a request aborts the task, which the next idle time then repeats. Calls
        `allow_abort(True)` before work that a new request may abort, and `allow_abort(False)` after it. Raises OSError,
        MemoryError and EdgechatError.
        """
        try:
            return self._do_next_task(allow_abort)
        except DecodeAborted:
            return False

    def _do_next_task(self, allow_abort: Callable[[bool], None]) -> bool:
        """Do one idle task; return False if none is left. Raises DecodeAborted, too."""
        if self._extend_corpus() or self._wake_drafter(allow_abort):
            return True
        if self._must_plan_idle_work:
            self._must_plan_idle_work = False
            self._corpus.remove_deleted_texts()
            self._plan_measurements()
            return True
        if self._corpus.save_next_conversation():
            return True
        if self._sizes_to_measure and time.monotonic() < self._measurement_deadline:
            return self._measure_next_size(allow_abort)
        if self._do_drafter_work(allow_abort):
            return True
        if self._has_unsaved_profile:
            self._has_unsaved_profile = False
            self._save_profile()
        return False

    def _wake_drafter(self, allow_abort: Callable[[bool], None]) -> bool:
        """Wake the model drafter, or postpone its trial; return False if it need not be woken."""
        if self._drafter_work is None or not self._drafter_work.wake(self.has_memory, allow_abort):
            return False
        self._must_plan_idle_work = True
        return True

    def _do_drafter_work(self, allow_abort: Callable[[bool], None]) -> bool:
        """Measure the model drafter, or let it read a text; return False if nothing is left to do."""
        if self._drafter_work is None or not self._drafter_work.step(allow_abort):
            return False
        self._has_unsaved_profile = True
        return True

    def _extend_corpus(self) -> bool:
        """Do a short step of adding the texts of finished requests to the corpus; return False if none is left."""
        if self._corpus_work is None and self._pending_requests:
            self._corpus_work = self._add_to_corpus(self._pending_requests.popleft())
        if self._corpus_work is None:
            return False
        if next(self._corpus_work, None) is None:
            self._corpus_work = None
        return True

    def _add_to_corpus(self, request: _FinishedRequest) -> Iterator[bool]:
        """Add the texts of a request to the corpus; yield True after each step."""
        for text in request.attached_texts:
            tokens = []
            for part in self._context.model.iterate_tokens(text, add_special=False, parse_special=False):
                tokens += part
                yield True
            self._corpus.add(request.folder, tokens)
        for tokens in request.outputs:
            self._corpus.add(request.folder, tokens)

    def _save_profile(self) -> None:
        if self._profile_path is not None:
            profile.save_profile(self._profile, self._profile_path)

    def _plan_measurements(self) -> None:
        """Schedule one measurement of each step size, unless the previous round was less than an interval ago.

        If any step size has fewer than `MIN_SAMPLES` samples, schedule `MIN_SAMPLES` measurements of each size.
        """
        for batch_costs in self._profile.batch_costs.values():
            batch_costs.discard_contradicted()
        now = time.monotonic()
        self._measurement_deadline = now + _MEASUREMENT_ROUND_S
        is_due = not self._sizes_to_measure and now - self._measured_at >= _MEASUREMENT_INTERVAL_S
        if self._drafter_work is not None:
            # Every round measures it again, because a wrong high cost would keep the drafter from being asked.
            self._drafter_work.plan(must_measure=is_due)
        if is_due:
            self._measured_at = now
            depth = self._find_max_depth()
            has_all_samples = all(self._profile.costs.is_measured(n, depth) for n in self._sizes)
            self._sizes_to_measure = self._sizes[::-1] * (1 if has_all_samples else MIN_SAMPLES)

    def _measure_next_size(self, allow_abort: Callable[[bool], None]) -> bool:
        allow_abort(True)
        try:
            self._measure_step(self._sizes_to_measure[-1])
            self._sizes_to_measure.pop()
        except (NoKvSlotError, EngineError):
            self._sizes_to_measure = []
        finally:
            allow_abort(False)
        return True

    def _measure_step(self, size: int) -> None:
        """Measure how long it takes to append `size` tokens to a copy of the longest sequence; record the time."""
        context, costs, seq = self._context, self._profile.costs, self._find_longest_seq()
        depth = len(context.tokens(seq))
        if depth + size > context.n_ctx:
            return
        tokens = ([*context.tokens(seq)[-size:]] or [0]) * size
        source_seq = seq if depth else None
        single_steps = [context.time_decode(tokens[:1], source_seq) for _ in range(_WARM_UP_STEPS)]
        for n_tokens, timing in ((1, single_steps[-1]), (size, context.time_decode(tokens[:size], source_seq))):
            costs.record(n_tokens, depth, timing.elapsed_s, is_benchmark=True, is_disturbed=timing.is_disturbed)
        self._has_unsaved_profile = True

    def finish(self, deadline: float) -> None:
        """Save as much of the corpus as possible before `deadline` (monotonic time), then save the profile.

        Raises the same exceptions as `idle_step`.
        """
        while time.monotonic() < deadline and self._extend_corpus():
            pass
        while time.monotonic() < deadline and self._corpus.save_next_conversation():
            pass
        if self._has_unsaved_profile:
            self._save_profile()

    def close(self) -> None:
        """Free the memory of the model drafter. Call it before the context is closed."""
        if self._drafter is not None:
            self._drafter.sleep()
