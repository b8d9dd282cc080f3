"""Order of checks and responses in the middleware: nothing of a refused request is kept in memory."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.serve.middleware import AccessRules, RequestGuard


class Exchange:
    """One HTTP request to a guard, with a record of what happens in which order."""

    def __init__(self, **headers: str) -> None:
        self.log: list[str] = []
        self.scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions",
            "headers": [
                (name.replace("_", "-").encode(), value.encode())
                for name, value in {"host": "localhost", "content_length": "100"}.items() | headers.items()
            ],
        }  # fmt: skip
        self._n_chunks = 2

    async def receive(self) -> Any:
        self._n_chunks -= 1
        self.log.append("receive")
        return {"type": "http.request", "body": b" " * 50, "more_body": self._n_chunks > 0}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.log.append(str(message["status"]))
        elif not message.get("more_body"):
            self.log.append("end")

    async def run(self, *, api_key: str = "") -> list[str]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.log.append("app")
            await receive()
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})

        guard = RequestGuard(app, AccessRules(host="127.0.0.1", api_key=api_key), lambda path, status: None)
        await guard(self.scope, self.receive, self.send)
        return self.log


async def test_application_reads_the_body_itself() -> None:
    assert await Exchange().run() == ["app", "receive", "receive", "200", "end"]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
async def test_body_of_a_refused_request_is_discarded_after_the_response(headers: dict[str, str]) -> None:
    assert await Exchange(**headers).run(api_key="secret") == ["401", "receive", "receive", "end"]


async def test_key_is_accepted_beside_a_token_for_another_service() -> None:
    headers = {"authorization": "Bearer another", "x-api-key": "secret"}
    assert "200" in await Exchange(**headers).run(api_key="secret")
    assert "401" in await Exchange(**headers).run(api_key="other")


async def test_body_that_the_client_has_not_sent_yet_is_not_awaited() -> None:
    assert await Exchange(expect="100-continue").run(api_key="secret") == ["401", "end"]
    assert await Exchange(transfer_encoding="chunked").run() == ["400", "end"]  # two lengths
