"""Choices of a response, assembled from engine events, and the usage and timings of the response."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from edgechat.engine import protocol
from edgechat.engine.generation import CacheMiss, GenerationStats, TokenLogprobs
from edgechat.engine.overflow import format_growth_refusal
from edgechat.errors import EngineError
from edgechat.prompt.reply_parser import ParsedToolCall, ReplyDelta, ReplyParser, ToolCallDelta
from edgechat.serve.event_stream import EventStream

FinishReason = Literal["stop", "length", "tool_calls"]
_log: Final = logging.getLogger("edgechat.serve")
_MIN_LOGPROB: Final = -9999.0


class ChoiceDelta(NamedTuple):
    """New output of one choice, for the next chunks of a stream."""

    choice_index: int
    content: str = ""
    reasoning: str = ""
    calls: Sequence[ToolCallDelta] = ()
    logprobs: Sequence[TokenLogprobs] = ()
    finish_reason: FinishReason | None = None
    prompt_logprobs: Sequence[TokenLogprobs] = ()
    stop_reason: str | None = None
    stop_string: str = ""
    """The stop string that ended the reply; "" if none did."""


class PromptProgress(NamedTuple):
    """Prefill progress of one prompt, in tokens."""

    choice_index: int
    """Index of the first choice of the prompt."""
    n_total: int
    n_cached: int
    n_processed: int
    """Number of prompt tokens that are already in the context, including `n_cached`."""
    elapsed_s: float
    """Time since the prefill began."""

    def as_object(self) -> dict[str, int]:
        """Return the progress in the format of llama-server's `prompt_progress` object."""
        return {
            "total": self.n_total, "cache": self.n_cached, "processed": self.n_processed,
            "time_ms": round(1000 * self.elapsed_s),
        }  # fmt: skip


Delta = ChoiceDelta | PromptProgress | None
"""New output of a choice, prefill progress, or None for an event without either."""


class Choice:
    """One alternative reply to a request, extended by the output of each engine event."""

    def __init__(self, index: int, parser: ReplyParser | None = None) -> None:
        """Create an empty choice. If `parser` is None, the whole output is content."""
        self.content = ""
        self.reasoning = ""
        self.calls: list[ParsedToolCall] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | None = None
        """`repetition_detected` (the value of vLLM) for a reply that was stopped because it repeated itself."""
        self.stop_string = ""
        """The stop string that ended the reply; "" if none did."""
        self.pick: dict[str, object] | None = None
        """How the choice was picked from several replies, as an object of the response; None if it was not."""
        self._index = index
        self._parser = parser

    def feed_prompt(self, event: protocol.PromptLogprobs) -> ChoiceDelta:
        """Append logprobs of the prompt, and return them as a delta."""
        self.prompt_logprobs += event.logprobs
        return ChoiceDelta(self._index, prompt_logprobs=event.logprobs)

    def feed(self, event: protocol.TokensGenerated) -> ChoiceDelta:
        """Append generated text; return the new output, without text that the parser cannot classify yet.

        May wait for the render process, up to the time limit of that process.
        """
        self.logprobs += event.logprobs
        delta = self._parser.feed(event.text) if self._parser is not None else ReplyDelta(content=event.text)
        return self._append(delta, event.logprobs)

    def finish(self, reason: protocol.FinishReason, stop_string: str = "") -> ChoiceDelta:
        """Finish the reply; return the output that `feed` held back, and the finish reason."""
        self.stop_string = stop_string
        delta = self._append(self._parser.finish() if self._parser is not None else ReplyDelta())
        if self._parser is not None:
            reply = self._parser.reply
            self.reasoning, self.content, self.calls = reply.reasoning, reply.content, list(reply.calls)
        # The API has no finish reason for a reply that was cancelled or that repeats itself, but "length" tells clients
        # that the text is incomplete.
        self.finish_reason = "length" if reason != "stop" else "tool_calls" if self.calls else "stop"
        self.stop_reason = "repetition_detected" if reason == "repetition" else None
        return delta._replace(finish_reason=self.finish_reason, stop_reason=self.stop_reason, stop_string=stop_string)

    def _append(self, delta: ReplyDelta, logprobs: Sequence[TokenLogprobs] = ()) -> ChoiceDelta:
        self.content += delta.content
        self.reasoning += delta.reasoning
        return ChoiceDelta(self._index, delta.content, delta.reasoning, delta.calls, logprobs)


class UsageTotals:
    """Token counts and times, summed over the engine requests of one response."""

    def __init__(self) -> None:
        self.stats: list[GenerationStats] = []
        """Statistics of each finished engine request."""
        self._cache_miss: CacheMiss | None = None

    def add(self, stats: GenerationStats, cache_miss: CacheMiss | None = None) -> None:
        """Add the statistics of a finished engine request, and why more of its prompt was not cached."""
        self.stats.append(stats)
        self._cache_miss = self._cache_miss or cache_miss

    def _sum_field(self, name: str) -> Any:
        return sum(getattr(stats, name) for stats in self.stats)

    def usage(self) -> dict[str, Any]:
        """Return the `usage` object of the OpenAI API, with draft tokens as prediction tokens."""
        n_prompt, n_completion, n_accepted = (
            self._sum_field(n) for n in ("prompt_tokens", "completion_tokens", "n_accepted")
        )
        return {
            "prompt_tokens": n_prompt, "completion_tokens": n_completion, "total_tokens": n_prompt + n_completion,
            "prompt_tokens_details": {"cached_tokens": self._sum_field("cached_tokens"), **self.cache_miss_fields()},
            "completion_tokens_details": {
                "reasoning_tokens": sum(stats.reasoning_tokens or 0 for stats in self.stats),
                "accepted_prediction_tokens": n_accepted,
                "rejected_prediction_tokens": self._sum_field("n_drafted") - n_accepted,
            },
        }  # fmt: skip

    def cache_miss_fields(self) -> dict[str, Any]:
        """Return the extension field of the usage that explains why more of the prompt was not cached; {} for none."""
        miss = self._cache_miss
        if miss is None:
            return {}
        return {"cache_miss": msgspec.structs.asdict(miss) | {"explanation": miss.describe()}}

    def timings(self) -> dict[str, Any]:
        """Return the token counts and times in the format of the `timings` object of llama-server."""
        n_cached = self._sum_field("cached_tokens")
        n_prompt = self._sum_field("prompt_tokens") - n_cached
        n_predicted = self._sum_field("completion_tokens")
        prompt_s = sum((s.prompt_tokens - s.cached_tokens) / s.prefill_tps for s in self.stats if s.prefill_tps)
        predicted_s = sum(s.completion_tokens / s.decode_tps for s in self.stats if s.decode_tps)
        return {
            "cache_n": n_cached, "prompt_n": n_prompt, **_make_timing_fields("prompt", n_prompt, prompt_s),
            "predicted_n": n_predicted, **_make_timing_fields("predicted", n_predicted, predicted_s),
            "draft_n": self._sum_field("n_drafted"), "draft_n_accepted": self._sum_field("n_accepted"),
        }  # fmt: skip


def _make_timing_fields(name: str, n_tokens: int, duration_s: float) -> dict[str, float]:
    return {
        f"{name}_ms": 1000 * duration_s, f"{name}_per_token_ms": 1000 * duration_s / n_tokens if n_tokens else 0.0,
        f"{name}_per_second": n_tokens / duration_s if duration_s else 0.0,
    }  # fmt: skip


async def stream_deltas(
    events: EventStream, choices: Sequence[Choice], n_sequences: int, totals: UsageTotals
) -> AsyncIterator[Delta]:
    """Feed engine events to `choices`; yield their new output, prefill progress, and None for other events.

    `choices` has `n_sequences` choices for each engine request, in the order of the requests. Adds the statistics of
    each request to `totals`. Raises EdgechatError if the engine reports an error.
    """
    prefill_started_at: dict[int, float] = {}
    while (request_event := await events.next()) is not None:
        first_index, event = request_event.request_index * n_sequences, request_event.event
        if isinstance(event, protocol.PrefillProgressed):
            started_at = prefill_started_at.setdefault(first_index, time.monotonic())
            yield PromptProgress(
                first_index, event.total_tokens, event.cached_tokens, event.done_tokens, time.monotonic() - started_at
            )
            continue
        if isinstance(event, protocol.ContextGrowthRefused):
            _log.warning("%s", format_growth_refusal(event))
        if isinstance(event, protocol.RequestFinished):
            totals.add(event.stats, event.cache_miss)
        request_choices = choices[first_index : first_index + n_sequences]
        # In a thread, because parsing may wait for the render process.
        for delta in await asyncio.to_thread(lambda: list(feed_choices(request_choices, event))):  # noqa: B023
            yield delta
    if any(choice.finish_reason is None for choice in choices):
        raise EngineError("The engine ended a request without a final event. Send the request again.")


def feed_choices(choices: Sequence[Choice], event: protocol.AnyEvent | None) -> Iterator[Delta]:
    """Feed an event of an engine request to the choices of that request; yield their new output."""
    if isinstance(event, protocol.TokensGenerated):
        yield choices[event.sequence].feed(event)
    elif isinstance(event, protocol.SequenceFinished):
        yield choices[event.sequence].finish(event.finish_reason, event.stop_string)
    elif isinstance(event, protocol.PromptLogprobs):
        yield from [choice.feed_prompt(event) for choice in choices]
    elif isinstance(event, protocol.RequestFinished):
        unfinished = [choice for choice in choices if choice.finish_reason is None]
        yield from [choice.finish(event.finish_reason, event.stop_string) for choice in unfinished]
    else:
        yield None


def make_stop_fields(stop_reason: str | None) -> dict[str, str]:
    """Return the extension field of a choice that names what ended the reply; {} if its finish reason does."""
    return {} if stop_reason is None else {"stop_reason": stop_reason}


def clamp_logprob(value: float) -> float:
    """Return `value`, or -9999 if it is minus infinity, which JSON cannot encode."""
    return value if math.isfinite(value) else _MIN_LOGPROB


def make_chat_logprobs(logprobs: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """Convert logprobs to the response objects of chat completions."""

    def convert_token(token_bytes: bytes, value: float) -> dict[str, Any]:
        text = token_bytes.decode("utf-8", "replace")
        return {"token": text, "logprob": clamp_logprob(value), "bytes": list(token_bytes)}

    return [
        convert_token(token.token_bytes, token.logprob)
        | {"top_logprobs": [convert_token(*top) for top in token.top_logprobs]}
        for token in logprobs
    ]
