"""Client of remotes over real sockets: right answers, and every kind of wrong one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgechat.config import Settings
from edgechat.errors import ContextOverflowError, RemoteError, RemoteStatusError, RequestCancelledError
from edgechat.remote import client as client_module
from edgechat.remote import sse
from edgechat.remote.client import ChatRequest, ListedModel, RemoteClient, RetryScheduled
from edgechat.remote.connection import Timeouts
from edgechat.remote.reply_stream import ReplyChunk
from edgechat.remote.request_options import CONTINUATION_FIELDS, make_options
from edgechat.remote.target import RemoteModel
from edgechat.remote_settings import RemoteSettings
from tests.remote_server import KEY, Answer, Exchange, RemoteServer, remote_server, reply
from tests.waiting import until

SHORT = Timeouts(first_token_s=0.3, between_tokens_s=0.3, answer_s=0.3)
SHORT_AFTER_TEXT = Timeouts(between_tokens_s=0.3)
SHORT_AFTER_HEADERS = Timeouts(first_token_s=2.0)  # long enough for the headers on a busy machine


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with remote_server() as server:
        yield server


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let retries follow at once, and return the list of their delays."""
    delays: list[float] = []
    monkeypatch.setattr("edgechat.remote.connection.RemoteConnection.wait", lambda _, delay_s: delays.append(delay_s))
    return delays


def stream(
    server: RemoteServer, model: str = "big", timeouts: Timeouts | None = None, name: str = "box", **options: Any
) -> list[object]:  # fmt: skip
    """Return the chunks of one reply."""
    client = RemoteClient(name, server.settings, *([timeouts] if timeouts else []))
    target = RemoteModel(remote=name, model=model, settings=server.settings)
    request = ChatRequest(messages=[{"role": "user", "content": "Hi"}], options=options)
    return list(client.stream_reply(target, request))


def text_of(chunks: list[object]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, ReplyChunk))


def fail(status: int, body: Any = "", **headers: str) -> Answer:
    return lambda exchange: exchange.send(body, status, **headers)


def test_models_are_listed_with_their_context_length(server: RemoteServer) -> None:
    server.models = [
        {"id": "a", "max_model_len": 4096}, {"id": "b", "meta": {"n_ctx": 512}}, {"id": None}, "junk",
        {"id": "c" * 999}, {"id": "bad\x1bname"}, {"id": "a"}, {"id": "d", "context_length": True},
    ]  # fmt: skip
    models = RemoteClient("box", server.settings).list_models()
    assert models == [ListedModel(id="a", n_ctx=4096), ListedModel(id="b", n_ctx=512), ListedModel(id="d")]


def test_reply_is_streamed_with_usage(server: RemoteServer) -> None:
    chunks = stream(server)
    assert text_of(chunks) == "Hello there."
    assert [c.usage for c in chunks if isinstance(c, ReplyChunk) and c.usage]
    assert server.chats[0].body["stream_options"] == {"include_usage": True}


def test_whole_completion_in_place_of_a_stream_is_read(server: RemoteServer) -> None:
    message = {"role": "assistant", "content": [{"type": "text", "text": "Whole"}], "reasoning": "Hm"}
    server.answers = [lambda e: e.send({"choices": [{"message": message, "finish_reason": "length"}]})]
    [chunk] = stream(server)
    assert chunk == ReplyChunk(text="Whole", reasoning="Hm", finish_reason="length")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"error": {"message": "Bad key"}}, "needs an API key (HTTP 401: Bad key)"),
        (403, {"error": "no access"}, "needs an API key (HTTP 403: no access)"),
        (404, {"detail": "Not Found"}, "`edgechat remotes test box` lists its models"),
        (400, {"error": {"message": "n must be 1."}}, "refuses the request (HTTP 400: n must be 1)"),
        (429, {"error": {"message": "Slow down"}}, "takes no more requests now (HTTP 429: Slow down)"),
        (500, "<html>Error</html>", "failed (HTTP 500)."),
        (500, {"error": {"code": None, "message": None}}, "failed (HTTP 500)."),
        (503, "\x1b[31mred " + "x" * 9000, "failed (HTTP 503: "),
        (418, b"\xff\xfe", "refuses the request (HTTP 418: "),
    ],
)
def test_status_becomes_one_sentence(
    status: int, body: Any, words: str, server: RemoteServer, no_delay: list[float]
) -> None:
    server.answers = [fail(status, body)]
    with pytest.raises(RemoteStatusError) as caught:
        stream(server)
    message = str(caught.value)
    assert message.startswith(f"box (127.0.0.1:{server.port}) ")
    assert words in message
    assert "\x1b" not in message
    assert len(message) < 700
    is_retried = status in {429, 500, 503}
    assert len(server.chats) == (4 if is_retried else 1)
    assert no_delay == ([0.5, 1.0, 2.0] if is_retried else [])


def test_missing_list_of_models_is_no_advice_to_list_them(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "handle", fail(404, {"detail": "Not Found"}))
    with pytest.raises(RemoteStatusError, match=r"this API .* Check its URL, which usually ends with /v1"):
        RemoteClient("box", server.settings).list_models()


def test_request_is_repeated_before_the_first_token(server: RemoteServer, no_delay: list[float]) -> None:
    server.answers = [fail(503, ""), fail(429, {}, Retry_After="7"), reply("Now.")]
    chunks = stream(server)
    assert text_of(chunks) == "Now."
    assert no_delay == [0.5, 7.0]
    retries = [chunk for chunk in chunks if isinstance(chunk, RetryScheduled)]
    assert retries[1].message.startswith("Trying again in 7")


def test_server_that_loads_its_model_is_asked_again_for_minutes(server: RemoteServer, no_delay: list[float]) -> None:
    loading = fail(503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
    server.answers = [*[loading] * 20, reply("Fine.")]
    assert text_of(stream(server)) == "Fine."
    assert no_delay == [2.0] * 20


@pytest.mark.parametrize("message", ["overloading", "error loading model: out of memory", ""])
def test_server_that_is_not_loading_is_asked_three_times_more(
    server: RemoteServer, no_delay: list[float], message: str
) -> None:
    server.answers = [fail(503, {"error": {"message": message}})] * 10
    with pytest.raises(RemoteStatusError):
        stream(server, name="loading-model")
    assert no_delay == [0.5, 1.0, 2.0]


def test_long_retry_after_is_an_error_that_names_the_time(server: RemoteServer, no_delay: list[float]) -> None:
    server.answers = [fail(429, "", Retry_After="3600")]
    with pytest.raises(RemoteStatusError, match=r"Try again in (60 min|1 h|3600 s)"):
        stream(server)
    assert no_delay == []


def test_stream_that_breaks_is_not_repeated(server: RemoteServer, no_delay: list[float]) -> None:
    server.answers = [lambda e: e.chunk("Half a")]
    with pytest.raises(RemoteError, match="closed the connection before the end of the reply"):
        stream(server)
    assert len(server.chats) == 1


def _cut_chunked(exchange: Exchange) -> None:
    handler = exchange.handler
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'40\r\ndata: {"choices":[{"delta":{"content":"Ha')
    handler.wfile.flush()
    handler.close_connection = True


def _sleep(exchange: Exchange) -> None:
    until(lambda: _is_closed(exchange), 20)


def _is_closed(exchange: Exchange) -> bool:
    try:
        exchange.handler.wfile.write(b"")
        data: bytes = exchange.handler.connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        return data == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _sleep_after_headers(exchange: Exchange) -> None:
    exchange.start_stream()
    _sleep(exchange)


def _sleep_after_text(exchange: Exchange) -> None:
    exchange.chunk("Half")
    _sleep(exchange)


def _ping_for_ever(exchange: Exchange) -> None:
    while True:
        exchange.write(b": ping\n\n")
        time.sleep(0.01)


def _write_without_newline(exchange: Exchange) -> None:
    while True:
        exchange.write(b"data: " + b"x" * 65536)


SLOW = (_sleep, _sleep_after_headers, _sleep_after_text, _ping_for_ever)


def _write(data: bytes) -> Answer:
    return lambda exchange: exchange.write(data)


def _redirect(location: str) -> Answer:
    return fail(307, "", Location=location)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_cut_chunked, "closed the connection before the end of the reply"),
        (_sleep, "did not answer in time"),
        (_sleep_after_headers, "did not answer in time|did not send the first word"),
        (_sleep_after_text, "did not answer in time|did not send the next word"),
        (_ping_for_ever, "did not send the first word of the reply within"),
        (_write_without_newline, "a line of more than 1 MiB"),
        (_write(b"data: {not json}\n\n"), r"not JSON in UTF-8: '\{not json\}'"),
        (_write(b"data: [1]\n\n"), "JSON that is not an object"),
        (_write(b"data: " + b"[" * 100_000 + b"\n\n"), "not JSON"),
        (_write(b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n'), "not JSON in UTF-8"),
        (_write(b'data: {"choices": [{"delta": {"content": 5}}]}\n\n'), "text is not a string"),
        (_write(b'data: {"choices": ["x"]}\n\n'), "without the fields of the OpenAI API"),
        (_write(b'data: {"error": {"message": "out of memory"}}\n\n'), "ended the reply with an error: out of memory"),
        (_write(b'event: error\ndata: {"error": "gone"}\n\n'), "ended the reply with an error: gone"),
        (lambda e: e.send("<html>Welcome</html>", content_type="text/html"), "answers with text/html instead of"),
        (lambda e: e.send("{", content_type="application/json"), "not JSON"),
        (lambda e: e.send(b"x", content_encoding="gzip"), "compressed"),
        (_redirect("http://example.org/v1/chat/completions"), "redirects to example.org"),
        (_redirect("https://127.0.0.1/v1"), "redirects to 127.0.0.1"),
        (_redirect("/v1/chat/completions"), "redirects more than 3 times"),
    ],
)
def test_wrong_answer_is_one_clear_error(
    answer: Answer, words: str, server: RemoteServer, no_delay: list[float]
) -> None:
    server.answers = [answer]
    limits = {_sleep_after_text: SHORT_AFTER_TEXT, _ping_for_ever: SHORT_AFTER_HEADERS}
    timeouts = limits.get(answer, SHORT) if answer in SLOW else None
    with pytest.raises(RemoteError, match=words) as caught:
        stream(server, timeouts=timeouts)
    assert "box" in str(caught.value)
    n_requests = 4 if "3 times" in words else 1
    until(lambda: len(server.chats) >= n_requests)  # on a busy machine, the server may read a request after its end
    assert len(server.chats) == n_requests


def test_null_and_missing_fields_count_as_empty(server: RemoteServer) -> None:
    def answer(exchange: Exchange) -> None:
        values: list[dict[str, Any]] = [
            {},
            {"choices": None},
            {"choices": []},
            {"choices": [{"delta": None, "finish_reason": None}]},
        ]
        for value in values:
            exchange.event(value)
        exchange.event({"choices": [{"delta": {"content": None, "reasoning_content": None}}], "usage": None})
        exchange.event({"choices": [{"delta": {"content": "Fine"}}], "usage": {"prompt_tokens": "x"}})
        exchange.write(b"\n\n: comment\nretry: 5\nid: 7\n\n")
        exchange.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})

    server.answers = [answer]
    assert stream(server) == [ReplyChunk(text="Fine"), ReplyChunk(finish_reason="stop")]


def test_lone_surrogates_are_replaced_or_refused(server: RemoteServer) -> None:
    server.answers = [
        lambda e: e.write(b'data: {"choices": [{"delta": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}\n\n')
    ]
    with contextlib.suppress(RemoteError):
        text_of(stream(server)).encode()


def test_endless_reply_is_cut(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(exchange: Exchange) -> None:
        while True:
            exchange.chunk("word " * 100)

    monkeypatch.setattr(sse, "MAX_STREAM_BYTES", 1 << 20)
    server.answers = [answer]
    with pytest.raises(RemoteError, match="a reply of more than 1 MiB"):
        stream(server)


def test_cancel_ends_a_request_in_every_phase(server: RemoteServer) -> None:
    for answer in (_sleep, _sleep_after_headers, _sleep_after_text):
        server.answers = [answer]
        n_chats = len(server.chats)
        client = RemoteClient("box", server.settings)
        target = RemoteModel(remote="box", model="big", settings=server.settings)
        errors: list[BaseException] = []

        thread = threading.Thread(target=_run_until_cancelled, args=(client, target, errors))
        thread.start()
        until(lambda n_chats=n_chats: len(server.chats) > n_chats)  # type: ignore[misc]
        client.cancel()
        thread.join(10)
        assert errors


def _run_until_cancelled(client: RemoteClient, target: RemoteModel, errors: list[BaseException]) -> None:
    try:
        list(client.stream_reply(target, ChatRequest(messages=[])))
    except RequestCancelledError as error:
        errors.append(error)


def test_key_is_sent_but_in_no_message(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, no_delay: list[float]
) -> None:
    monkeypatch.setenv("BOX_KEY", KEY)
    settings = msgspec.structs.replace(server.settings, api_key_env="BOX_KEY")
    server.required_key = KEY
    client = RemoteClient("box", settings)
    assert client.list_models()
    assert server.exchanges[0].headers["Authorization"] == f"Bearer {KEY}"
    server.required_key = "another"
    with pytest.raises(RemoteStatusError, match="refuses the API key") as caught:
        client.list_models()
    assert KEY not in str(caught.value)
    assert "BOX_KEY" in str(caught.value)
    assert KEY not in repr(client.__dict__)
    assert KEY not in repr(client._connection.__dict__)


def test_server_that_does_not_run_is_tried_again(no_delay: list[float]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    settings = RemoteSettings(url=f"http://127.0.0.1:{port}/v1")
    target = RemoteModel(remote="box", model="x", settings=settings)
    with pytest.raises(
        RemoteError, match=rf"box \(127.0.0.1:{port}\) cannot be reached: Connection refused. Check that"
    ):
        list(RemoteClient("box", settings).stream_reply(target, ChatRequest(messages=[])))
    assert no_delay == [0.5, 1.0, 2.0]


def test_proxy_of_the_environment_is_used(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("no_proxy", "")
    settings = RemoteSettings(url="http://box.example/v1")
    target = RemoteModel(remote="box", model="big", settings=settings)
    request = ChatRequest(messages=[{"role": "user", "content": "Hi"}])
    assert text_of(list(RemoteClient("box", settings).stream_reply(target, request))) == "Hello there."
    assert server.exchanges[0].path == "http://box.example/v1/chat/completions"


def test_certificate_that_cannot_be_verified_is_refused(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with remote_server(certificate=certificate) as server:
        with pytest.raises(
            RemoteError, match=r"certificate that cannot be verified: self.signed certificate\. Nothing"
        ):
            RemoteClient("box", server.settings).list_models()
        assert not server.exchanges
        monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
        assert RemoteClient("box", server.settings).list_models()


def test_unknown_fields_are_left_out_of_a_second_request(server: RemoteServer) -> None:
    def refuse_once(exchange: Exchange) -> None:
        message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        exchange.send({"error": {"message": message}}, 400)

    server.answers = [refuse_once, reply("Fine.")]
    assert text_of(stream(server, max_tokens=9)) == "Fine."
    assert server.chats[1].body["max_completion_tokens"] == 9
    assert "max_tokens" not in server.chats[1].body


def test_schema_that_a_service_cannot_enforce_is_sent_again_without_strict(server: RemoteServer) -> None:
    message = "Invalid schema for response_format 'reply': 'additionalProperties' is required to be false."
    server.answers = [fail(400, {"error": {"message": message}}), reply("{}")]
    schema = {"type": "object"}
    response_format = make_options(Settings(), schema)["response_format"]
    assert text_of(stream(server, response_format=response_format)) == "{}"
    sent = [chat.body["response_format"]["json_schema"] for chat in server.chats]
    assert [(one["strict"], one["schema"]) for one in sent] == [(True, schema), (False, schema)]
    server.answers = [fail(400, {"error": {"message": message}})]
    with pytest.raises(RemoteStatusError, match="Invalid schema"):
        stream(server, response_format=response_format)
    assert len(server.chats) == 4


@pytest.mark.parametrize(
    "refusal",
    [
        (400, {"error": {"message": "Unrecognized request argument supplied: continue_final_message"}}),
        (422, {"detail": [{"loc": ["body", "add_generation_prompt"], "msg": "Extra inputs are not permitted"}]}),
    ],
)
def test_fields_of_a_continuation_are_left_out_for_a_service_that_refuses_them(
    server: RemoteServer, refusal: tuple[int, Any]
) -> None:
    server.answers = [fail(*refusal), reply("Fine.")]
    assert text_of(stream(server, **CONTINUATION_FIELDS)) == "Fine."
    assert server.chats[0].body["continue_final_message"] is True
    assert not CONTINUATION_FIELDS.keys() & server.chats[1].body.keys()


def test_refusal_is_the_text_of_the_reply(server: RemoteServer) -> None:
    def refuse(exchange: Exchange) -> None:
        exchange.chunk(refusal="I cannot ")
        exchange.chunk(refusal="help.")
        exchange.chunk(finish="stop")

    server.answers = [refuse]
    assert text_of(stream(server)) == "I cannot help."


def test_too_long_prompt_is_an_overflow(server: RemoteServer) -> None:
    server.answers = [fail(400, {"error": {"message": "maximum context length is 8192 tokens"}})]
    with pytest.raises(ContextOverflowError, match="maximum context length is 8192 tokens"):
        stream(server)


def test_list_of_models_is_limited(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_MAX_LIST_BYTES", 1000)
    server.models = [{"id": f"model-{n}"} for n in range(100)]
    with pytest.raises(RemoteError, match="a response of more than 0 KiB"):
        RemoteClient("box", server.settings).list_models()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the files of a self-signed certificate for 127.0.0.1 and of its key."""
    return write_certificate(tmp_path_factory.mktemp("certificate"))


def write_certificate(folder: Path) -> tuple[str, str]:
    import shutil
    import subprocess

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)
