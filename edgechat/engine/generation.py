"""The decode loop: prefill what the context does not hold, then one token after another."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from typing import Literal

from edgechat.engine.protocol import (
    Generate,
    GenerationStats,
    PrefillProgressed,
    TokensGenerated,
    TurnFinished,
)
from edgechat.errors import ContextOverflowError, EngineError
from edgechat.runtime.context import Context, DecodeAborted
from edgechat.runtime.sampler import PENALTY_LAST_N, Sampler

# Events wake the client, which then competes with the compute threads; people read no faster than twelve times a second.
FLUSH_S = 0.08

Send = Callable[[PrefillProgressed | TokensGenerated], None]
FinishReason = Literal["stop", "length", "cancelled"]


class Generation:
    """One answer. Leaves the context holding exactly the tokens that were decoded."""

    def __init__(self, context: Context, request: Generate, prompt: list[int], send: Send, arrived_s: float) -> None:
        """`arrived_s` is the monotonic time at which the request came in.

        Raises ContextOverflowError if the prompt leaves no room for an answer.
        """
        if not prompt:
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) >= context.n_ctx:
            raise ContextOverflowError(
                f"the prompt has {len(prompt)} tokens, but the context holds {context.n_ctx}: "
                "shorten it, or ask for a larger context with --ctx"
            )
        self._context = context
        self._request = request
        self._prompt = prompt
        self._send = send
        self._arrived_s = arrived_s
        self._first_token_s = self._last_token_s = 0.0
        self._prefill_s = 0.0
        self._cached_tokens = 0
        self._n_tokens = 0
        self._text = _TextStream(request.id, send)

    def run(self) -> TurnFinished:
        """Generate to the end. Raises EngineError if llama.cpp fails."""
        reason: FinishReason = "cancelled"
        try:
            self._prefill()
            reason = self._decode()
        except DecodeAborted:
            pass
        self._text.flush(final=True)
        return TurnFinished(
            id=self._request.id,
            finish_reason=reason,
            stats=self._stats(),
            context_tokens=len(self._context.tokens),
        )

    def _prefill(self) -> None:
        context, prompt = self._context, self._prompt
        # The last token is computed again even if it is there: its logits are not kept.
        shared = min(_common_prefix(context.tokens, prompt), len(prompt) - 1)
        self._cached_tokens = context.rewind(shared) if shared < len(context.tokens) else shared
        started = time.monotonic()
        for start in range(self._cached_tokens, len(prompt), context.n_batch):
            context.decode(prompt[start : start + context.n_batch])
            self._send(PrefillProgressed(
                id=self._request.id, done_tokens=len(context.tokens), total_tokens=len(prompt)
            ))  # fmt: skip
        context.synchronize()
        self._prefill_s = time.monotonic() - started

    def _decode(self) -> FinishReason:
        context, request = self._context, self._request
        sampler = Sampler(context.model, request.sampling)
        for token in self._prompt[-PENALTY_LAST_N:]:
            sampler.accept(token)
        control = context.model.control_tokens
        shown = {control[text] for text in request.shown_tokens if text in control}
        for token in self._draws(sampler):
            self._n_tokens += 1
            self._last_token_s = time.monotonic()
            if self._n_tokens == 1:
                self._first_token_s = self._last_token_s
            if context.model.is_eog(token) and not request.ignore_eog:
                return "stop"
            self._text.add(token, context.model.piece(token, special=token in shown), self._last_token_s)
        return "length"

    def _draws(self, sampler: Sampler) -> Iterator[int]:
        """Sampled tokens, each decoded before the next; ends at a length limit."""
        context, limit = self._context, self._request.max_tokens
        if limit == 0:
            return
        token = sampler.sample(context)
        while True:
            yield token
            if self._n_tokens == limit or len(context.tokens) >= context.n_ctx:
                return
            context.decode((token,))
            token = sampler.sample(context)

    def _stats(self) -> GenerationStats:
        computed = len(self._prompt) - self._cached_tokens
        decode_s = self._last_token_s - self._first_token_s
        return GenerationStats(
            prompt_tokens=len(self._prompt),
            cached_tokens=self._cached_tokens,
            completion_tokens=self._n_tokens,
            ttft_s=max(0.0, self._first_token_s - self._arrived_s),
            prefill_tps=computed / self._prefill_s if self._prefill_s > 0 else 0.0,
            decode_tps=(self._n_tokens - 1) / decode_s if decode_s > 0 else 0.0,
        )


class _TextStream:
    """Bytes of tokens in, whole characters out, a few times a second."""

    def __init__(self, request_id: int, send: Send) -> None:
        self._id = request_id
        self._send = send
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._tokens: list[int] = []
        self._flushed_s = 0.0

    def add(self, token: int, piece: bytes, now_s: float) -> None:
        self._tokens.append(token)
        self._text += self._decoder.decode(piece)
        if self._text and now_s - self._flushed_s >= FLUSH_S:
            self.flush(final=False)
            self._flushed_s = now_s

    def flush(self, *, final: bool) -> None:
        """Send what is there; at the end also bytes that never became a character, as U+FFFD."""
        if final:
            self._text += self._decoder.decode(b"", final=True)
        if self._text or (final and self._tokens):
            self._send(TokensGenerated(id=self._id, text=self._text, tokens=self._tokens))
            self._text, self._tokens = "", []


def _common_prefix(a: list[int], b: list[int]) -> int:
    """How many tokens `a` and `b` share from the start."""
    for i, (x, y) in enumerate(zip(a, b)):  # noqa: B905  (they may differ in length)
        if x != y:
            return i
    return min(len(a), len(b))
