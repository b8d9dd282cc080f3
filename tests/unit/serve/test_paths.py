"""Spellings of paths, and the list of endpoints for error messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route

from edgechat.serve.paths import PathTable


def respond(request: Any) -> Any:
    raise NotImplementedError


TABLE = PathTable([
    *(Route(path, respond) for path in (
        "/", "/v1/chat/completions", "/v1/chat/completions/{id}/end", "/v1/models", "/v1/models/{name:path}",
        "/health", "/api/chat", "/api/version",
    )),
    Route("/api/delete", respond, include_in_schema=False),
])  # fmt: skip


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"), ("/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"), ("//v1//chat/completions//", "/v1/chat/completions"),
        ("/chat/completions/x/end", "/v1/chat/completions/x/end"), ("/models/", "/v1/models"),
        ("/v1/models/", "/v1/models"), ("/models/a/b:c", "/v1/models/a/b:c"), ("/v1/health", "/health"),
        ("http://localhost:8080/v1/models", "/v1/models"), ("HTTPS://localhost", "/"), ("", "/"), ("///", "/"),
        ("/v1", "/v1"), ("/v1/", "/v1"), ("/v2/models", "/v2/models"), ("/api/nothing/", "/api/nothing"),
        ("/v1/v1/v1/models", "/v1/v1/v1/models"), ("/v1/v1/models", "/v1/models"),
    ],
)  # fmt: skip
def test_other_spellings_mean_the_endpoint(path: str, expected: str) -> None:
    assert TABLE.normalize(path) == expected


@given(st.text("/v1aph.:", max_size=12) | st.text(max_size=20))
def test_normalised_path_does_not_change_again(path: str) -> None:
    normalised = TABLE.normalize(path)
    assert normalised
    if normalised.startswith("/"):
        assert TABLE.normalize(normalised) == normalised or normalised.startswith("/v1/v1/")


def test_list_of_endpoints_is_that_of_the_api() -> None:
    assert TABLE.describe("/v1/x") == "Endpoints under /v1/: chat/completions, models. Others: /health, /api/..."
    assert TABLE.describe("/api/x") == "Endpoints under /api/: chat, version."
    assert TABLE.paths >= {"/", "/api/delete"}
