"""Final events of requests that failed."""

from __future__ import annotations

from typing import Final

from edgechat.engine.protocol import RequestFailed

OUT_OF_MEMORY_MESSAGE: Final = (
    "The engine ran out of memory. Close other programs, or set a smaller context with --ctx."
)


def create_failure_event(request_id: int, error: BaseException) -> RequestFailed:
    """Create the final event of a request that raised an EdgechatError or a MemoryError."""
    if isinstance(error, MemoryError):
        return RequestFailed(id=request_id, error_type="PlanError", message=OUT_OF_MEMORY_MESSAGE)
    return RequestFailed(id=request_id, error_type=type(error).__name__, message=str(error))
