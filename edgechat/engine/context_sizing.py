"""Resizing of the context, which grows when tokens do not fit, and shrinks when memory is short or unused."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Final

from edgechat.engine.protocol import ContextGrowthRefused, ContextResizeStarted, ContextResizing, Event
from edgechat.errors import EdgechatError, EngineError
from edgechat.hardware.free_memory import FreeMemory, read_free_memory
from edgechat.hardware.memory import return_freed_memory
from edgechat.planner.context_growth import ContextGrowth
from edgechat.planner.kv_memory import round_up_to_cells
from edgechat.prefix.cache import PrefixCache
from edgechat.runtime.context import Context
from edgechat.runtime.resizable_context import ResizeError

# Memory that growing leaves to other programs: 256 MiB, but at most a sixteenth of the total.
_MARGIN_BYTES: Final = 256 << 20
_MARGIN_DIVISOR: Final = 16
# The context shrinks if less than this part of the margin is free.
_SHORT_DIVISOR: Final = 2
# Share of the last ten seconds from which waiting for memory shows that less memory is free than the system reports.
# The margin is then multiplied by the factor. A stall alone may have another cause, such as the limit of a cgroup that
# contains this process.
_MAX_STALL_PERCENT: Final = 10.0
_STALL_FACTOR: Final = 4
HEADROOM_DIVISOR: Final = 16
"""A context has this fraction (1/16) more cells than the sequences need, and as much must stay free after a request is
admitted, so that sequences can grow for a while before the context is resized again or one of them is preempted."""
# A context that is full grows at least by this fraction (1/8), because each resize copies all sequences.
_MIN_STEP_DIVISOR: Final = 8
# Time after which a resize sends an event, so that the client can show why it waits.
_PROGRESS_DELAY_S: Final = 1.0
# Time before the next attempt after growing was refused; doubled after each refusal.
_MIN_RETRY_S: Final = 5.0
_MAX_RETRY_S: Final = 300.0
# Time after shrinking for lack of memory in which the context grows only for requests that cannot run otherwise.
_MIN_REGROW_S: Final = 60.0
# Minimum time between two checks for a shortage of memory, between decode steps and while the engine is idle.
_CHECK_INTERVAL_S: Final = 1.0
_IDLE_CHECK_INTERVAL_S: Final = 5.0
# Time without requests after which the context shrinks.
_IDLE_S: Final = 300.0
_MAX_NOTIFIED_IDS: Final = 100


class ContextSizer:
    """Resizes a context between two steps. All methods must be called on the decoding thread."""

    def __init__(
        self, context: Context, cache: PrefixCache, growth: ContextGrowth | None, send: Callable[[Event], None],
        read_memory: Callable[[], FreeMemory] = read_free_memory, now: Callable[[], float] = time.monotonic,
        free_drafter: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        """If `growth` is None, never resize the context. During a resize, another thread may call `send`.

        `free_drafter` frees the memory of the model drafter, and returns False if it had none; None without a drafter.
        It is called before anything else is freed for the context or for other programs.
        """
        self._free_drafter = free_drafter
        self._context = context
        self._cache = cache
        self._growth = growth
        self._send = send
        self._read_memory = read_memory
        self._now = now
        self.peak_n_ctx = context.n_ctx
        """Largest length that the context has had, in tokens."""
        self._refusal: ContextGrowthRefused | None = None
        """The last refusal; None after the context has grown."""
        self._refused_n_tokens = 0
        self._retry_at = 0.0
        self._retry_s = _MIN_RETRY_S
        self._regrow_at = 0.0
        self._check_at = 0.0
        self._has_shrunk_in_idle_time = False
        self._notified_ids: deque[int] = deque(maxlen=_MAX_NOTIFIED_IDS)

    @property
    def refusal(self) -> ContextGrowthRefused | None:
        """The last refusal to grow; None if the context has grown since."""
        return self._refusal

    def grow(
        self, n_needed: int, request_ids: Collection[int], paused_ids: Collection[int], *, is_required: bool = False
    ) -> bool:
        """Grow the context beyond its current size, to at least `n_needed` cells; return whether it has grown.

        Growing is refused if memory is short. Then each of the requests `request_ids`, which need the cells, gets one
        ContextGrowthRefused event, and their next attempts for as many tokens are refused without a check for some
        time. With `is_required`, the requests cannot run without the cells: memory is always checked, unless a larger
        context could not be opened shortly before. The requests `paused_ids` get the progress of growing. Raises
        EngineError if the sequences were lost, because memory ran out.
        """
        context, growth = self._context, self._growth
        if growth is None or not context.is_open or max(context.n_ctx + 1, n_needed) > context.max_n_ctx:
            return False
        if not is_required and self._now() < self._regrow_at:
            return False
        if self._is_backing_off(n_needed, request_ids, is_required=is_required):
            self._notify(request_ids)
            return False
        min_step = context.n_ctx // _MIN_STEP_DIVISOR
        smallest = min(round_up_to_cells(max(n_needed, context.n_ctx + min_step)), context.max_n_ctx)
        wanted = min(max(2 * context.n_ctx, _add_headroom(n_needed)), context.max_n_ctx)
        n_ctx = self._find_affordable_n_ctx(growth, smallest, max(smallest, wanted))
        error = self._resize(n_ctx, paused_ids) if n_ctx else ""
        if error or not n_ctx:
            self._refuse(growth, n_needed, smallest, error, request_ids)
            return False
        self._refusal, self._retry_s = None, _MIN_RETRY_S
        return True

    def _is_backing_off(self, n_needed: int, request_ids: Collection[int], *, is_required: bool) -> bool:
        """Return whether growing is refused without another check, because it was refused a short time ago.

        A request that was not refused yet always causes a check, because memory may be free again.
        """
        refusal = self._refusal
        if refusal is None or self._now() >= self._retry_at or n_needed < self._refused_n_tokens:
            return False
        return bool(refusal.error) or not (is_required or any(i not in self._notified_ids for i in request_ids))

    def _find_affordable_n_ctx(self, growth: ContextGrowth, smallest: int, wanted: int) -> int:
        """Return the largest length from `smallest` to `wanted` that fits in the free memory; 0 if there is none.

        If memory is short, discard data of the prefix cache from RAM.
        """
        memory = self._read_memory()
        shortage_bytes = self._compute_needed_bytes(growth, smallest, memory) - memory.available_bytes
        if shortage_bytes > 0 and self._free_drafter is not None and self._free_drafter():
            return_freed_memory()
            memory = self._read_memory()
            shortage_bytes = self._compute_needed_bytes(growth, smallest, memory) - memory.available_bytes
        if 0 < shortage_bytes <= self._cache.store.ram_bytes:
            self._cache.store.discard_from_ram(shortage_bytes)
            return_freed_memory()
            memory = self._read_memory()
        present_n_ctx = self._context.n_ctx
        free_bytes = memory.available_bytes - self._compute_needed_bytes(growth, present_n_ctx, memory)
        n_ctx = round_up_to_cells(growth.find_largest_n_ctx(growth.compute_bytes(present_n_ctx) + free_bytes))
        return min(n_ctx, wanted) if n_ctx >= smallest else 0

    def _compute_needed_bytes(self, growth: ContextGrowth, n_ctx: int, memory: FreeMemory) -> int:
        """Return the memory that must be free to grow to `n_ctx`: new cells, a copy of the sequences, and a margin."""
        cell_bytes = growth.compute_bytes(n_ctx) - growth.compute_bytes(self._context.n_ctx)
        return max(0, cell_bytes) + self._context.state_bytes + _compute_margin_bytes(memory)

    def _resize(self, n_ctx: int, paused_ids: Collection[int] = ()) -> str:
        """Resize the context. If this fails, keep the old context and return the error; otherwise return "".

        Raises EngineError if the sequences were lost.
        """
        self._send(ContextResizeStarted(id=0, n_ctx=n_ctx))
        try:
            with self._reporting_progress(n_ctx, paused_ids):
                self._context.resize(n_ctx)
        except ResizeError as error:
            if error.lost_sequences:
                self._cache.drop_lost_sequences()
                raise EngineError(f"The context was lost when it was resized ({error}). Send the request again.") from (
                    error
                )
            return str(error)
        except (MemoryError, EdgechatError) as error:  # the sequences could not be saved
            return str(error) or "memory ran out"
        finally:
            return_freed_memory()
        self.peak_n_ctx = max(self.peak_n_ctx, self._context.n_ctx)
        return ""

    @contextlib.contextmanager
    def _reporting_progress(self, n_ctx: int, request_ids: Collection[int]) -> Iterator[None]:
        """Send a ContextResizing event to each request if the `with` block takes more than a second."""
        is_growing = n_ctx > self._context.n_ctx

        def report() -> None:
            for request_id in request_ids:
                self._send(ContextResizing(id=request_id, n_ctx=n_ctx, is_growing=is_growing))

        timer = threading.Timer(_PROGRESS_DELAY_S, report)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _refuse(
        self, growth: ContextGrowth, n_needed: int, n_ctx: int, error: str, request_ids: Collection[int]
    ) -> None:
        self._retry_at = self._now() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _MAX_RETRY_S)
        self._refused_n_tokens = n_needed
        memory = self._read_memory()
        self._refusal = ContextGrowthRefused(
            id=0, n_ctx=self._context.n_ctx, refused_n_ctx=n_ctx, error=error,
            needed_bytes=self._compute_needed_bytes(growth, n_ctx, memory), available_bytes=memory.available_bytes,
        )  # fmt: skip
        self._notify(request_ids)

    def _notify(self, request_ids: Collection[int]) -> None:
        """Send the last refusal to each request that has not received one."""
        for request_id in request_ids:
            if self._refusal is not None and request_id not in self._notified_ids:
                self._notified_ids.append(request_id)
                self._send(self._refusal.replace_id(request_id))

    def has_memory(self, n_bytes: int) -> bool:
        """Return whether `n_bytes` can be allocated, so that the margin for other programs stays free."""
        memory = self._read_memory()
        return memory.available_bytes >= n_bytes + _compute_margin_bytes(memory)

    # Shrinking

    def check_memory(self, n_running_tokens: int, paused_ids: Collection[int] = ()) -> None:
        """Shrink the context if memory is short; `n_running_tokens` is the number of cells that requests need.

        First free the model drafter, discard data of the prefix cache from RAM, and remove idle sequences that are
        saved in full, because a resize needs memory for a copy of all sequences. Does nothing if the last check was
        less than a second ago. The requests `paused_ids` get the progress. Raises EngineError if the sequences were
        lost.
        """
        if not self._may_free or self._now() < self._check_at:
            return
        self._check_at = self._now() + _CHECK_INTERVAL_S
        memory = self._read_memory()
        if is_short(memory) and self._free_drafter is not None and self._free_drafter():
            return_freed_memory()
            memory = self._read_memory()
        if not is_short(memory) or not self._is_grown:
            return
        store = self._cache.store
        if store.ram_bytes:
            store.discard_from_ram(_compute_margin_bytes(memory) - memory.available_bytes)
            return_freed_memory()
            memory = self._read_memory()
            if not is_short(memory):
                return
        while self._cache.evict_saved_lru():
            pass
        if self._shrink(n_running_tokens, memory, paused_ids):
            self._regrow_at = self._now() + _MIN_REGROW_S

    def idle_step(self, idle_s: float) -> float | None:
        """Shrink the context if memory is short, or if the idle time `idle_s` has reached several minutes.

        If memory is short, the model drafter is freed, too. Returns the delay before the next call, None if there is
        nothing to free. Raises EngineError.
        """
        if not self._may_free:
            return None
        if idle_s < _IDLE_S:
            self._has_shrunk_in_idle_time = False
        elif self._is_grown and not self._has_shrunk_in_idle_time:
            self._has_shrunk_in_idle_time = True
            self._cache.save_and_evict(n_kept=1)
            self._shrink(0, self._read_memory())
        self.check_memory(0)
        return _IDLE_CHECK_INTERVAL_S if self._may_free else None

    @property
    def _may_free(self) -> bool:
        return self._is_grown or (self._free_drafter is not None and self._context.is_open)

    @property
    def _is_grown(self) -> bool:
        context, growth = self._context, self._growth
        return growth is not None and context.is_open and context.n_ctx > growth.initial_n_ctx

    def _shrink(self, n_running_tokens: int, memory: FreeMemory, paused_ids: Collection[int] = ()) -> bool:
        """Remove the cells that neither requests nor idle sequences need; return whether the context is smaller.

        Does nothing if it would get only slightly smaller, or if `memory` does not suffice for a copy of the sequences.
        """
        context, growth = self._context, self._growth
        if growth is None or not context.is_open:
            return False
        n_ctx = max(growth.initial_n_ctx, _add_headroom(n_running_tokens + self._cache.idle_tokens))
        if n_ctx > context.n_ctx // 4 * 3 or context.state_bytes >= memory.available_bytes:
            return False
        return not self._resize(n_ctx, paused_ids)


def _compute_margin_bytes(memory: FreeMemory) -> int:
    """Return the memory that growing leaves to other programs; it is larger while programs wait for memory."""
    factor = _STALL_FACTOR if memory.stall_percent > _MAX_STALL_PERCENT else 1
    return factor * min(_MARGIN_BYTES, memory.total_bytes // _MARGIN_DIVISOR)


def is_short(memory: FreeMemory) -> bool:
    """Return whether other programs need the memory that a grown context or an idle model uses."""
    return memory.available_bytes < _compute_margin_bytes(memory) // _SHORT_DIVISOR


def _add_headroom(n_tokens: int) -> int:
    return round_up_to_cells(n_tokens + n_tokens // HEADROOM_DIVISOR)
