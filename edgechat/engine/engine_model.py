"""Base class of the models in the engine process."""

from __future__ import annotations

from collections.abc import Callable, Collection

from edgechat.engine.protocol import AnyRequest, Event
from edgechat.errors import EngineError
from edgechat.planner.drafter_plan import DrafterKind


class EngineModel:
    """Base class of loaded models. While no model is loaded, an instance of this class serves as a placeholder.

    Any thread may call `cancel`, `abort` and `clear_abort`; all other methods must be called on the decoding thread.
    """

    n_ctx = 0
    n_embd = 0
    """Number of dimensions of the model's embeddings; 0 for a text model and for a reranker."""
    n_labels = 0
    """Number of outputs of a reranker's classifier; 0 for another model."""
    can_truncate = False
    max_draft = 0
    drafter: DrafterKind | None = None
    """Kind of the open model drafter; None without one."""
    drafter_error = ""
    """Why the planned model drafter could not be opened."""
    has_failed = False
    """True if a computation on a GPU failed: new clients must not use the model, and nothing of it may be saved."""

    @property
    def is_busy(self) -> bool:
        """True while a Generate or Tokenize request is unfinished; `step` must then be called to advance it."""
        return False

    def execute(self, request: AnyRequest, arrived_at: float) -> Event | None:  # noqa: ARG002  (subclasses use them)
        """Execute a request and return its final event; return None for a request that `step` completes.

        Raises EdgechatError.
        """
        raise EngineError("No model is loaded. Load a model first.")

    def step(self, cancelled_ids: set[int]) -> None:
        """Cancel the requests in `cancelled_ids`, then run one step of the other requests."""

    def end_thinking(self, request_id: int) -> None:
        """End the reasoning in the replies of a request, now and later. The request need not exist yet."""

    def idle_step(self, allow_abort: Callable[[bool], None]) -> float | None:  # noqa: ARG002  (subclasses use it)
        """Do one idle task; return the delay in seconds before the next call, or None if no task is left.

        Between `allow_abort(True)` and `allow_abort(False)`, an arriving request may abort the task. Raises
        EdgechatError, MemoryError and OSError.
        """
        return None

    def cancel(self, request_id: int) -> None:
        """Abort the running computation if it is only for the request `request_id`, which was cancelled."""

    def cancel_sequences(self, request_id: int, indexes: Collection[int]) -> None:
        """End single replies of the Generate request `request_id`. Call this on the decoding thread."""

    def abort(self) -> None:
        """Abort the running decode, or the next one if none is running."""

    def clear_abort(self) -> None:
        """Reset `abort`, so that decoding works again."""

    def close(self) -> None:
        """Cancel all requests, save the caches, and free the model."""
