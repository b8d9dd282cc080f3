"""What clients get: answers put together from the engine's events, whole or as a stream."""

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
_LEAST_LOGPROB: Final = -9999.0


class ChoiceDelta(NamedTuple):
    """What is new of one choice."""

    choice_index: int
    """Of the choice."""
    content: str = ""
    reasoning: str = ""
    calls: Sequence[ParsedToolCall] = ()
    n_calls_before: int = 0
    logprobs: Sequence[protocol.TokenLogprobs] = ()
    finish_reason: FinishReason | None = None


class Choice:
    """One of the answers to a request."""

    def __init__(
        self, index: int, form: ReasoningFormat | None = None, place: ReplyPhase = "content", *, tools: ToolFormat | None = None,
        must_call: bool = False,
    ) -> None:  # fmt: skip
        """`form` tells thoughts from the answer, `tools` calls from its text."""
        self.content = ""
        self.reasoning = ""
        self.calls: list[ParsedToolCall] = []
        self.logprobs: list[protocol.TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self._index = index
        self._held = ""
        self._splitter = ReasoningSplitter(form, place)
        self._reader = ToolCallParser(tools, must_call=must_call)

    def feed(self, event: protocol.TokensGenerated) -> ChoiceDelta:
        """More of it."""
        return self._append(*self._splitter.feed(event.text), logprobs=event.logprobs)

    def finish(self, reason: protocol.FinishReason) -> ChoiceDelta:
        """Its end."""
        last = self._append(*self._splitter.finish())
        rest = self._reader.finish()
        self.content += rest
        # What was cut off by a limit and what was cut off by us are the same to a client: there would be more.
        self.finish_reason = "length" if reason != "stop" else "tool_calls" if self.calls else "stop"
        return last._replace(content=last.content + rest, finish_reason=self.finish_reason)

    def _append(self, reasoning: str, text: str, logprobs: Sequence[protocol.TokenLogprobs] = ()) -> ChoiceDelta:
        n_before = len(self.calls)
        # New lines at the end of thoughts only set them off from what follows.
        reasoning = self._held + reasoning
        reasoning, self._held = reasoning.rstrip("\n"), reasoning[len(reasoning.rstrip("\n")) :]
        content, calls = self._reader.feed(text)
        self.content += content
        self.reasoning += reasoning
        self.calls += calls
        self.logprobs += logprobs
        return ChoiceDelta(self._index, content, reasoning, calls, n_before, logprobs)


class UsageTotals:
    """What all requests of an answer cost."""

    def __init__(self) -> None:
        self._stats: list[protocol.GenerationStats] = []

    def add(self, stats: protocol.GenerationStats) -> None:
        """One more of them ended."""
        self._stats.append(stats)

    def _sum(self, name: str) -> Any:
        return sum(getattr(stats, name) for stats in self._stats)

    def usage(self) -> dict[str, Any]:
        """The OpenAI shape; drafts are counted as predictions that were accepted or not."""
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
        """The shape of llama-server's; of several requests, the times are added up."""
        n_cached, n_prompt = self._sum("cached_tokens"), self._sum("prompt_tokens") - self._sum("cached_tokens")
        n_predicted = self._sum("completion_tokens")
        prompt_s = sum(
            (s.prompt_tokens - s.cached_tokens) / s.prefill_tps for s in self._stats if s.prefill_tps
        )  # fmt: skip
        predicted_s = sum(s.completion_tokens / s.decode_tps for s in self._stats if s.decode_tps)
        return {
            "cache_n": n_cached, "prompt_n": n_prompt, **_timing_fields("prompt", n_prompt, prompt_s),
            "predicted_n": n_predicted, **_timing_fields("predicted", n_predicted, predicted_s),
            "draft_n": self._sum("n_drafted"), "draft_n_accepted": self._sum("n_accepted"),
        }  # fmt: skip

    @property
    def stats(self) -> list[protocol.GenerationStats]:
        """Of each request that ended."""
        return self._stats


def _timing_fields(name: str, n_tokens: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_ms": 1000 * seconds, f"{name}_per_token_ms": 1000 * seconds / n_tokens if n_tokens else 0.0,
        f"{name}_per_second": n_tokens / seconds if seconds else 0.0,
    }  # fmt: skip


async def stream_deltas(
    answer: EventStream, choices: Sequence[Choice], n_samples: int, totals: UsageTotals
) -> AsyncIterator[ChoiceDelta | None]:
    """What is said, as it comes; None for what is heard of the prompt only. Raises what the engine reports.

    The choices of the first request come first, then those of the next one.
    """
    while (heard := await answer.next()) is not None:
        first, event = heard.request_index * n_samples, heard.event
        if isinstance(event, protocol.TokensGenerated):
            yield choices[first + event.sequence].feed(event)
        elif isinstance(event, protocol.SequenceFinished):
            yield choices[first + event.sequence].finish(event.finish_reason)
        elif isinstance(event, protocol.RequestFinished):
            totals.add(event.stats)
            for choice in choices[first : first + n_samples]:
                if choice.finish_reason is None:
                    yield choice.finish(event.finish_reason)
        else:
            yield None
    if any(choice.finish_reason is None for choice in choices):
        raise EngineError("the engine ended a request without a last word")


def finite_logprob(value: float) -> float:
    """As JSON can hold it: what cannot be at all is very unlikely."""
    return value if math.isfinite(value) else _LEAST_LOGPROB


def chat_logprobs(found: Sequence[protocol.TokenLogprobs]) -> list[dict[str, Any]]:
    """The OpenAI shape for chat."""

    def one(text: bytes, value: float) -> dict[str, Any]:
        return {"token": text.decode("utf-8", "replace"), "logprob": finite_logprob(value), "bytes": list(text)}

    return [one(t.text, t.logprob) | {"top_logprobs": [one(*top) for top in t.top]} for t in found]
