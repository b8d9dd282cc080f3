"""Base class of the models in the engine process, which also stands for the state without a model."""

from __future__ import annotations

from collections.abc import Callable

from edgechat.engine.protocol import AnyRequest, Event
from edgechat.errors import EngineError


class EngineModel:
    """A model in the engine process. The base class itself represents the state without a loaded model.

    The decoding thread calls all methods but `abort` and `clear_abort`, which any thread may call.
    """

    n_ctx = 0
    n_embd = 0
    """Dimension of an embedding; 0 for a text model."""
    can_truncate = False
    max_draft = 0

    @property
    def is_generating(self) -> bool:
        """True while `step` has work to do."""
        return False

    def execute(self, request: AnyRequest, arrived_at: float) -> Event | None:  # noqa: ARG002  (subclasses use them)
        """Execute a request; return its final event, or None if `step` finishes it. Raises EdgechatError."""
        raise EngineError("No model is loaded. Load a model first.")

    def step(self, cancelled_ids: set[int]) -> None:
        """Cancel the requests with these ids, then run one step of the other requests."""

    def idle_step(self, allow_abort: Callable[[bool], None]) -> float | None:  # noqa: ARG002  (subclasses use it)
        """Do some idle work; return the delay in seconds before the next call, or None if no work is left.

        `allow_abort(True)` lets an arriving request abort the work, until `allow_abort(False)`. Raises EdgechatError,
        MemoryError and OSError.
        """
        return None

    def abort(self) -> None:
        """Abort the running decode, or the next one if none is running."""

    def clear_abort(self) -> None:
        """Allow decoding again after `abort`."""

    def close(self) -> None:
        """Cancel all requests, save the caches, and free the model."""
