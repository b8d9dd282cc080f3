"""Record of the tokens and states that an engine has sent for a request, from which another process resumes it."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from edgechat.engine import protocol

RequestT = TypeVar("RequestT", bound=protocol.Request)


class RequestRecord(Generic[RequestT]):
    """Record of a request and of its events so far."""

    def __init__(self, request: RequestT) -> None:
        self._request = request
        n_replies = request.n_sequences if isinstance(request, protocol.Generate) else 0
        self._tokens: list[list[int]] = [[] for _ in range(n_replies)]
        self._n_chars = [0] * n_replies
        self._logprob_sums = [0.0] * n_replies
        self._thinking_s = [0.0] * n_replies
        self._completion_tokens = [0] * n_replies
        self._is_thinking_ended = False
        self._finish_reasons: list[protocol.FinishReason | None] = [None] * n_replies
        self._n_prompt_logprobs = 0

    def add(self, event: protocol.AnyEvent) -> None:
        """Add an event of the request."""
        if isinstance(event, protocol.TokensGenerated):
            self._tokens[event.sequence] += event.tokens
            self._n_chars[event.sequence] += len(event.text)
            self._logprob_sums[event.sequence] = event.logprob_sum
            self._thinking_s[event.sequence] = event.thinking_s
        elif isinstance(event, protocol.SequenceFinished):
            self._finish_reasons[event.sequence] = event.finish_reason
            self._completion_tokens[event.sequence] = event.completion_tokens
        elif isinstance(event, protocol.PromptLogprobs):
            self._n_prompt_logprobs += len(event.logprobs)

    def end_thinking(self) -> None:
        """Record an EndThinking request for the request, which later processes follow, too."""
        self._is_thinking_ended = True

    @property
    def has_replies(self) -> bool:
        """True if the engine has sent a part of a reply."""
        return any(self._tokens) or any(self._finish_reasons)

    def make_request(self) -> RequestT:
        """Return the request for another engine process, with the same ID; it continues the replies after their tokens.

        A request without replies starts again.
        """
        request = self._request
        if not isinstance(request, protocol.Generate):
            return request
        replies = [
            protocol.ResumedReply(
                tokens=self._tokens[i], n_chars=self._n_chars[i], finish_reason=self._finish_reasons[i],
                logprob_sum=self._logprob_sums[i], thinking_s=self._thinking_s[i],
                completion_tokens=self._completion_tokens[i],
            )
            for i in range(request.n_sequences)
        ]  # fmt: skip
        return msgspec.structs.replace(
            request, resumed=replies if self.has_replies else [], n_sent_prompt_logprobs=self._n_prompt_logprobs,
            is_thinking_ended=request.is_thinking_ended or self._is_thinking_ended,
        )  # fmt: skip
