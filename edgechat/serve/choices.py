"""Choices of a response, assembled from engine events, and the usage and timings of the response."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from edgechat.engine import protocol
from edgechat.errors import EngineError
from edgechat.prompt.reasoning import ReasoningFormat, ReasoningSplitter, ReplyPhase
from edgechat.prompt.tool_formats import ParsedToolCall, ToolCallParser, ToolFormat
from edgechat.serve.model_queue import EventStream

FinishReason = Literal["stop", "length", "tool_calls"]
_MIN_LOGPROB: Final = -9999.0


class ChoiceDelta(NamedTuple):
    """New output of one choice, for the next chunks of a stream."""

    choice_index: int
    content: str = ""
    reasoning: str = ""
    calls: Sequence[ParsedToolCall] = ()
    n_calls_before: int = 0
    """Number of tool calls of the choice in earlier deltas."""
    logprobs: Sequence[protocol.TokenLogprobs] = ()
    finish_reason: FinishReason | None = None


class Choice:
    """One of the alternative replies to a request, extended with each engine event."""

    def __init__(
        self, index: int, reasoning_format: ReasoningFormat | None = None, phase: ReplyPhase = "content", *,
        tool_format: ToolFormat | None = None, must_call: bool = False,
    ) -> None:  # fmt: skip
        """`phase` determines whether the reply starts with reasoning or content.

        Without `tool_format`, tool calls are not parsed.
        """
        self.content = ""
        self.reasoning = ""
        self.calls: list[ParsedToolCall] = []
        self.logprobs: list[protocol.TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self._index = index
        self._pending_newlines = ""
        self._splitter = ReasoningSplitter(reasoning_format, phase)
        self._parser = ToolCallParser(tool_format, must_call=must_call)

    def feed(self, event: protocol.TokensGenerated) -> ChoiceDelta:
        """Append generated text; return the new output. Text that may be the beginning of a marker is held back."""
        return self._append(*self._splitter.feed(event.text), logprobs=event.logprobs)

    def finish(self, reason: protocol.FinishReason) -> ChoiceDelta:
        """Finish the reply; return the output that was held back, with the finish reason."""
        last = self._append(*self._splitter.finish())
        held_back = self._parser.finish()
        self.content += held_back
        # The API has no finish reason for a cancelled reply. "length" also tells clients that the text is incomplete.
        self.finish_reason = "length" if reason != "stop" else "tool_calls" if self.calls else "stop"
        return last._replace(content=last.content + held_back, finish_reason=self.finish_reason)

    def _append(self, reasoning: str, text: str, logprobs: Sequence[protocol.TokenLogprobs] = ()) -> ChoiceDelta:
        n_calls_before = len(self.calls)
        # Trailing newlines of reasoning only separate the reasoning from the content, so they are held back.
        reasoning = self._pending_newlines + reasoning
        reasoning, self._pending_newlines = reasoning.rstrip("\n"), reasoning[len(reasoning.rstrip("\n")) :]
        content, calls = self._parser.feed(text)
        self.content += content
        self.reasoning += reasoning
        self.calls += calls
        self.logprobs += logprobs
        return ChoiceDelta(self._index, content, reasoning, calls, n_calls_before, logprobs)


class UsageTotals:
    """Token counts and times, summed over the engine requests of one response."""

    def __init__(self) -> None:
        self.stats: list[protocol.GenerationStats] = []
        """Statistics of each finished engine request."""

    def add(self, stats: protocol.GenerationStats) -> None:
        """Add the statistics of a finished engine request."""
        self.stats.append(stats)

    def _sum(self, name: str) -> Any:
        return sum(getattr(stats, name) for stats in self.stats)

    def usage(self) -> dict[str, Any]:
        """Return the `usage` object of the OpenAI API; draft tokens count as prediction tokens."""
        n_prompt, n_completion, n_accepted = (
            self._sum(n) for n in ("prompt_tokens", "completion_tokens", "n_accepted")
        )
        return {
            "prompt_tokens": n_prompt, "completion_tokens": n_completion, "total_tokens": n_prompt + n_completion,
            "prompt_tokens_details": {"cached_tokens": self._sum("cached_tokens")},
            "completion_tokens_details": {
                "accepted_prediction_tokens": n_accepted,
                "rejected_prediction_tokens": self._sum("n_drafted") - n_accepted,
            },
        }  # fmt: skip

    def timings(self) -> dict[str, Any]:
        """Return a `timings` object as llama-server does, summed over the engine requests."""
        n_cached, n_prompt = self._sum("cached_tokens"), self._sum("prompt_tokens") - self._sum("cached_tokens")
        n_predicted = self._sum("completion_tokens")
        prompt_s = sum((s.prompt_tokens - s.cached_tokens) / s.prefill_tps for s in self.stats if s.prefill_tps)
        predicted_s = sum(s.completion_tokens / s.decode_tps for s in self.stats if s.decode_tps)
        return {
            "cache_n": n_cached, "prompt_n": n_prompt, **_timing_fields("prompt", n_prompt, prompt_s),
            "predicted_n": n_predicted, **_timing_fields("predicted", n_predicted, predicted_s),
            "draft_n": self._sum("n_drafted"), "draft_n_accepted": self._sum("n_accepted"),
        }  # fmt: skip


def _timing_fields(name: str, n_tokens: int, duration_s: float) -> dict[str, float]:
    return {
        f"{name}_ms": 1000 * duration_s, f"{name}_per_token_ms": 1000 * duration_s / n_tokens if n_tokens else 0.0,
        f"{name}_per_second": n_tokens / duration_s if duration_s else 0.0,
    }  # fmt: skip


async def stream_deltas(
    events: EventStream, choices: Sequence[Choice], n_sequences: int, totals: UsageTotals
) -> AsyncIterator[ChoiceDelta | None]:
    """Feed engine events to `choices`; yield the new output of a choice, or None for an event about the prompt.

    `choices` has `n_sequences` choices for each engine request, in the order of the requests. Adds the statistics of
    each request to `totals`. Raises EdgechatError for errors of the engine.
    """
    while (request_event := await events.next()) is not None:
        first, event = request_event.request_index * n_sequences, request_event.event
        if isinstance(event, protocol.TokensGenerated):
            yield choices[first + event.sequence].feed(event)
        elif isinstance(event, protocol.SequenceFinished):
            yield choices[first + event.sequence].finish(event.finish_reason)
        elif isinstance(event, protocol.RequestFinished):
            totals.add(event.stats)
            for choice in choices[first : first + n_sequences]:
                if choice.finish_reason is None:
                    yield choice.finish(event.finish_reason)
        else:
            yield None
    if any(choice.finish_reason is None for choice in choices):
        raise EngineError("The engine ended a request without a final event.")


def finite_logprob(value: float) -> float:
    """Return a logprob that JSON can encode: -9999 instead of minus infinity."""
    return value if math.isfinite(value) else _MIN_LOGPROB


def chat_logprobs(logprobs: Sequence[protocol.TokenLogprobs]) -> list[dict[str, Any]]:
    """Convert logprobs to the response objects of chat completions."""

    def convert(text: bytes, value: float) -> dict[str, Any]:
        return {"token": text.decode("utf-8", "replace"), "logprob": finite_logprob(value), "bytes": list(text)}

    return [convert(t.text, t.logprob) | {"top_logprobs": [convert(*top) for top in t.top]} for t in logprobs]
