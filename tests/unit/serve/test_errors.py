"""Errors of request decoding."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgechat.serve import errors
from edgechat.serve.errors import ApiError
from edgechat.serve.schemas import ChatRequest


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"), ({"messages": [], "n": 1}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "top_p": 2}, "top_p"),
    ],
)  # fmt: skip
def test_error_names_the_invalid_field(body: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        errors.decode_body(json.dumps(body).encode(), ChatRequest)
    assert caught.value.param == param
    assert caught.value.body()["error"]["type"] == "invalid_request_error"
