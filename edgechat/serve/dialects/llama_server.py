"""llama-server's own API: responses to /completion and /infill, complete and streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from edgechat.serve.choices import Choice, ChoiceDelta, Delta, PromptProgress, UsageTotals
from edgechat.serve.dialects.dialect import Dialect, encode_event
from edgechat.serve.dialects.openai import PING
from edgechat.serve.errors import ApiError
from edgechat.serve.response_builder import ResponseBuilder

_NO_SLOT: Final = -1  # the scheduler has no fixed slots


class LlamaServerDialect(Dialect):
    """Writes the response to a text completion. Its streams end with an object whose `stop` is true."""

    def __init__(self, builder: ResponseBuilder, response_fields: Sequence[str] = ()) -> None:
        """Create the writer; `response_fields` are the paths of the fields of the last object to send, if not all."""
        super().__init__(builder)
        self._response_fields = response_fields
        self._end = ChoiceDelta(0)
        self._has_new_line = False

    def make_body(self, choices: list[Choice], totals: UsageTotals) -> dict[str, Any]:
        choice = choices[0]
        self._end = ChoiceDelta(0, finish_reason=choice.finish_reason, stop_string=choice.stop_string)
        self._has_new_line = "\n" in choice.content
        return self._make_end_object(choice.content, totals)

    def encode_delta(self, delta: Delta) -> Sequence[bytes]:
        if isinstance(delta, PromptProgress):
            progress_chunks = self.builder.chunks(delta)
            progress = [{"prompt_progress": chunk["prompt_progress"]} for chunk in progress_chunks]
            return [encode_event(self._make_object("", is_end=False) | fields) for fields in progress]
        if not isinstance(delta, ChoiceDelta):
            return []
        if delta.finish_reason is not None:
            self._end = delta
        self._has_new_line = self._has_new_line or "\n" in delta.content
        return [encode_event(self._make_object(delta.content, is_end=False))] if delta.content else []

    def encode_ping(self) -> Sequence[bytes]:
        return [PING]

    def encode_error(self, error: ApiError) -> Sequence[bytes]:
        return [encode_event(error.body())]

    def encode_end(self, totals: UsageTotals) -> Sequence[bytes]:
        return [encode_event(self._make_end_object("", totals))]

    def _make_object(self, content: str, *, is_end: bool) -> dict[str, Any]:
        return {"index": 0, "content": content, "tokens": [], "id_slot": _NO_SLOT, "stop": is_end}

    def _make_end_object(self, content: str, totals: UsageTotals) -> dict[str, Any]:
        usage, stop_string = totals.usage(), self._end.stop_string
        is_stopped = self._end.finish_reason == "stop"
        fields = self._make_object(content, is_end=True) | {
            "model": self.builder.model_name, "tokens_predicted": usage["completion_tokens"],
            "tokens_evaluated": usage["prompt_tokens"], "tokens_cached": usage["total_tokens"], "truncated": False,
            "has_new_line": self._has_new_line,
            "stop_type": "word" if stop_string else "eos" if is_stopped else "limit", "stopping_word": stop_string,
            "timings": totals.timings(),
        }  # fmt: skip
        return select_fields(fields, self._response_fields) if self._response_fields else fields


def select_fields(values: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """Return the values at the paths, such as `timings/prompt_n`, by path. Paths without a value are left out."""
    selected = {}
    for path in paths:
        value: Any = values
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            selected[path] = value
    return selected
