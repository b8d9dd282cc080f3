"""The OpenAI dialect: the bytes of a stream, and error bodies by path."""

from __future__ import annotations

import pytest

from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.choices import ChoiceDelta, UsageTotals
from edgechat.serve.dialects.error_bodies import make_error_body
from edgechat.serve.dialects.openai import DONE, PING, OpenAiDialect
from edgechat.serve.errors import ApiError
from tests.unit.serve.examples import FakeQueue, chat_request


def make_dialect(*, include_usage: bool) -> OpenAiDialect:
    request = chat_request(stream=True, stream_options={"include_usage": include_usage})
    return OpenAiDialect(ChatResponseBuilder(FakeQueue(), request))  # type: ignore[arg-type]


@pytest.mark.parametrize("include_usage", [False, True])
def test_parts_of_a_stream(*, include_usage: bool) -> None:
    dialect = make_dialect(include_usage=include_usage)
    (chunk,) = dialect.encode_delta(ChoiceDelta(0, "a"))
    assert chunk.startswith(b'data: {"id":"chatcmpl-')
    assert (b'"usage":null' in chunk) == include_usage
    assert dialect.encode_delta(None) == []
    assert dialect.encode_ping() == [PING]
    *usage, done = dialect.encode_end(UsageTotals())
    assert len(usage) == include_usage
    assert done == DONE
    error = ApiError(503, "Full.", code="busy")
    assert dialect.encode_error(error) == [
        b'data: {"error":{"message":"Full.","type":"server_error","param":null,"code":"busy"}}\n\n', DONE
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/", "", "/unknown"])
def test_other_paths_have_error_bodies_of_the_openai_api(path: str) -> None:
    error = ApiError(404, "No.")
    assert make_error_body(error, path) == error.body()
