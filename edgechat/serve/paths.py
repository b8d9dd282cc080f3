"""Paths of the endpoints, derived from the routes: other spellings of them, and the list for error messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from starlette.routing import Route

_PREFIX: Final = "/v1"
_OLLAMA_PREFIX: Final = "/api/"
_SLASHES: Final = re.compile("/{2,}")
# A proxy's client sends `GET http://localhost:8080/v1/models`; RFC 9112 requires servers to accept this.
_ORIGIN: Final = re.compile("https?://[^/]*", re.IGNORECASE)


class PathTable:
    """Paths of all endpoints. `normalize` maps other spellings of a path to the path of its route."""

    def __init__(self, routes: Sequence[Route] = ()) -> None:
        self.paths = frozenset(route.path for route in routes if "{" not in route.path)
        """Paths of endpoints without variable parts."""
        self._patterns = [route.path_regex for route in routes]
        self._listed_paths = [r.path for r in routes if r.path in self.paths and r.include_in_schema and r.path != "/"]

    def normalize(self, path: str) -> str:
        """Return the path of the endpoint that a request for `path` means, or a shorter spelling of an unknown path.

        The prefix /v1 can be missing or too much, and a slash at the end or a second slash makes no difference: clients
        differ in what they append to the base URL that the user has set.
        """
        path = _SLASHES.sub("/", _ORIGIN.sub("", path, count=1))
        path = path.rstrip("/") or "/"
        if self._is_endpoint(path):
            return path
        other_path = path.removeprefix(_PREFIX) if path.startswith(f"{_PREFIX}/") else _PREFIX + path
        return other_path if self._is_endpoint(other_path) else path

    def _is_endpoint(self, path: str) -> bool:
        return any(pattern.match(path) for pattern in self._patterns)

    def describe(self, path: str) -> str:
        """Return a sentence that lists the endpoints of the API to which an unknown `path` belongs."""
        if path.startswith(_OLLAMA_PREFIX):
            names = [p.removeprefix(_OLLAMA_PREFIX) for p in self._listed_paths if p.startswith(_OLLAMA_PREFIX)]
            return f"Endpoints under {_OLLAMA_PREFIX}: {', '.join(names)}."
        prefix = f"{_PREFIX}/"
        names = [p.removeprefix(prefix) for p in self._listed_paths if p.startswith(prefix)]
        others = [p for p in self._listed_paths if not p.startswith((prefix, _OLLAMA_PREFIX))]
        return f"Endpoints under {prefix}: {', '.join(names)}. Others: {', '.join(others)}, {_OLLAMA_PREFIX}..."
