"""OpenAI Responses API: complete responses, and streams of named events."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from edgechat.prompt.reply_parser import ToolCallDelta
from edgechat.serve.choices import Choice, ChoiceDelta, Delta, UsageTotals, make_stop_fields
from edgechat.serve.dialects.dialect import Dialect, encode_named_event
from edgechat.serve.dialects.openai import PING
from edgechat.serve.dialects.openai_responses_output import OutputWriter, make_output
from edgechat.serve.errors import ApiError
from edgechat.serve.response_builder import ResponseBuilder

_DEFAULT_ERROR_CODE: Final = "server_error"
_PINGS_PER_EVENT: Final = 10
"""Number of comments in a silent stream before an event, because some clients wait for an event: Codex for 300 s."""


class ResponsesDialect(Dialect):
    """Writes one response, and passes it to `save` when it is complete."""

    def __init__(
        self, builder: ResponseBuilder, writer: OutputWriter, echo_fields: Mapping[str, Any],
        save: Callable[[bytes], None] | None = None, resources: contextlib.ExitStack | None = None,
    ) -> None:  # fmt: skip
        """Create the dialect of a response.

        `echo_fields` are the encoded fields of the request that the response repeats. `resources` are closed when the
        response ends.
        """
        super().__init__(builder)
        self._writer = writer
        self._echo_fields = echo_fields
        self._save = save
        self._resources = resources or contextlib.ExitStack()
        self._created_at = int(time.time())
        self._n_events = 0
        self._is_started = False
        self._n_pings = 0
        """Number of comments since the last event."""
        self._end_delta = ChoiceDelta(0, finish_reason="stop")
        """Delta with the finish reason of the reply."""

    def close(self) -> None:
        self._resources.close()

    # Complete responses

    def make_body(self, choices: list[Choice], totals: UsageTotals) -> dict[str, Any]:
        choice = choices[0]
        calls = [ToolCallDelta(i, call.name, call.id, call.arguments) for i, call in enumerate(choice.calls)]
        self._end_delta = ChoiceDelta(0, finish_reason=choice.finish_reason, stop_reason=choice.stop_reason)
        reply = ChoiceDelta(0, choice.content, choice.reasoning, calls, choice.logprobs)
        make_output(self._writer, reply, is_incomplete=self._is_incomplete)
        return self._make_final_response(totals)

    @property
    def _is_incomplete(self) -> bool:
        return self._end_delta.finish_reason not in {"stop", "tool_calls"}

    def _make_final_response(self, totals: UsageTotals) -> dict[str, Any]:
        """Build the response at the end of a reply, and save it."""
        end: dict[str, Any] = {"status": "completed", "completed_at": int(time.time())}
        if self._is_incomplete:
            end = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        end |= make_stop_fields(self._end_delta.stop_reason)
        response = self._make_response(end | {"output": self._writer.items, "usage": _make_usage(totals)})
        if self._save is not None:
            self._save(msgspec.json.encode(response))
        return response

    def _make_response(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": self.builder.id, "object": "response", "created_at": self._created_at, "status": "in_progress",
            "background": False, "completed_at": None, "error": None, "incomplete_details": None,
            "model": self.builder.model_name, "output": [], "usage": None, **self._echo_fields, **fields,
        }  # fmt: skip

    # Streams

    def encode_delta(self, delta: Delta) -> Sequence[bytes]:
        if delta is None:
            return []
        parts = list(self._start())
        if isinstance(delta, ChoiceDelta):
            if delta.finish_reason is not None:
                self._end_delta = delta._replace(content="", reasoning="", calls=(), logprobs=())
            parts += [self._encode_event(f"response.{kind}", fields) for kind, fields in self._writer.write(delta)]
        return parts

    def encode_ping(self) -> Sequence[bytes]:
        start = list(self._start())
        if self._n_pings < _PINGS_PER_EVENT:
            self._n_pings += 1
            return [*start, PING]
        return [self._encode_event("response.in_progress", {"response": self._make_response({})})]

    def encode_error(self, error: ApiError) -> Sequence[bytes]:
        code = error.code or (_DEFAULT_ERROR_CODE if error.status >= 500 else "invalid_prompt")  # noqa: PLR2004
        details = {"code": error.code, "message": str(error), "param": error.param}
        failed = self._make_response({
            "status": "failed", "output": self._writer.items, "error": {"code": code, "message": str(error)}
        })  # fmt: skip
        return [
            *self._start(), self._encode_event("error", details),
            self._encode_event("response.failed", {"response": failed}),
        ]  # fmt: skip

    def encode_end(self, totals: UsageTotals) -> Sequence[bytes]:
        events = [*self._writer.finish(is_incomplete=self._is_incomplete)]
        parts = [*self._start(), *(self._encode_event(f"response.{kind}", fields) for kind, fields in events)]
        response = self._make_final_response(totals)
        return [*parts, self._encode_event(f"response.{response['status']}", {"response": response})]

    def _start(self) -> Iterator[bytes]:
        if not self._is_started:
            self._is_started = True
            for event_type in ("response.created", "response.in_progress"):
                yield self._encode_event(event_type, {"response": self._make_response({})})

    def _encode_event(self, event_type: str, fields: Mapping[str, Any]) -> bytes:
        event = encode_named_event(event_type, {"sequence_number": self._n_events, **fields})
        self._n_events += 1
        self._n_pings = 0
        return event


def _make_usage(totals: UsageTotals) -> dict[str, Any]:
    usage = totals.usage()
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            **usage["prompt_tokens_details"], "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {
            "reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
        },
        "total_tokens": usage["total_tokens"],
    }  # fmt: skip
