"""JSON bodies of error responses, in the form of the API to which the path of the request belongs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from edgechat.serve.dialects import anthropic, ollama
from edgechat.serve.errors import ApiError

ErrorBody = dict[str, Any]

_BODY_MAKERS: Final[dict[str, Callable[[ApiError], ErrorBody]]] = {
    "/v1/messages": anthropic.make_error_body, "/messages": anthropic.make_error_body, "/api/": ollama.make_error_body
}  # fmt: skip
"""Functions that build the error bodies of the dialects, by the beginning of the path. Other paths belong to the OpenAI
API."""


def make_error_body(error: ApiError, path: str) -> ErrorBody:
    """Build the JSON body of the response to a request for `path`, which need not be an endpoint."""
    make_body = next((make for prefix, make in _BODY_MAKERS.items() if path.startswith(prefix)), ApiError.body)
    return make_body(error)
