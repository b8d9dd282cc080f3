"""Responses of the OpenAI Responses API that later requests can continue, kept in memory within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgechat.serve.errors import ApiError

MAX_RESPONSES: Final = 1000
MAX_BYTES: Final = 64 << 20
"""Maximum size of all stored conversations: the JSON of their items and responses."""
# Memory of a stored response beside its JSON.
_OVERHEAD_BYTES: Final = 512
_MEMORY_ONLY: Final = (
    f"Responses are kept in memory only: the last {MAX_RESPONSES} with together at most {MAX_BYTES >> 20} MiB, until "
    "the server ends."
)


class StoredResponse:
    """Response with its input. Through `previous`, it keeps the conversation before it, even a deleted response."""

    def __init__(self, response_id: str, response: bytes, input_items: bytes, previous: StoredResponse | None) -> None:
        """Create an entry from the JSON of a response and of the list of its input items."""
        self.id = response_id
        self.response = response
        self.input_items = input_items
        self.previous = previous
        self.n_users = 0
        """Number of later responses that continue this one, plus 1 while it can be found by its id."""

    @property
    def n_bytes(self) -> int:
        """Memory of this response without the conversation before it."""
        return len(self.response) + len(self.input_items) + _OVERHEAD_BYTES

    def iterate_history(self) -> Iterator[StoredResponse]:
        """Yield this response and those before it, from the newest to the oldest."""
        response: StoredResponse | None = self
        while response is not None:
            yield response
            response = response.previous


class ResponseStore:
    """Stored responses by id. If the number or the bytes exceed the bounds, the oldest responses are deleted."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.n_bytes = 0
        """Memory of all responses, including deleted ones that a later response continues."""
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._responses: dict[str, StoredResponse] = {}

    def __len__(self) -> int:
        """Return the number of responses that can be found by their id."""
        return len(self._responses)

    def add(self, stored: StoredResponse) -> None:
        """Store a response, unless its conversation alone exceeds the bound."""
        if sum(response.n_bytes for response in stored.iterate_history()) > self._max_bytes:
            return
        self._responses[stored.id] = stored
        self._hold(stored)
        while len(self._responses) > self._max_responses or self.n_bytes > self._max_bytes:
            self.delete(next(iter(self._responses)))

    def find(self, response_id: str) -> StoredResponse:
        """Return a stored response. Raises ApiError (404) if there is none with this id."""
        if response_id not in self._responses:
            raise ApiError(404, f"Response with id {response_id[:60]!r} not found. {_MEMORY_ONLY}", param="id")
        return self._responses[response_id]

    def find_previous(self, response_id: str) -> StoredResponse:
        """Return the response that a request continues. Raises ApiError (400) with the code that clients know."""
        if response_id not in self._responses:
            message = (
                f"Previous response with id {response_id[:60]!r} not found. {_MEMORY_ONLY} Send the whole conversation "
                "as input."
            )
            raise ApiError(400, message, param="previous_response_id", code="previous_response_not_found")
        return self._responses[response_id]

    def delete(self, response_id: str) -> None:
        """Delete a response. Raises ApiError (404) if there is none with this id."""
        stored: StoredResponse | None = self.find(response_id)
        del self._responses[response_id]
        while stored is not None:
            stored.n_users -= 1
            if stored.n_users:
                break
            self.n_bytes -= stored.n_bytes
            stored = stored.previous

    def _hold(self, stored: StoredResponse) -> None:
        """Count a new response as a user of the one before it, which may have been deleted in the meantime."""
        response: StoredResponse | None = stored
        while response is not None:
            is_counted = response.n_users > 0
            response.n_users += 1
            if is_counted:
                break
            self.n_bytes += response.n_bytes
            response = response.previous
