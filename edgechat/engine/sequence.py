"""One answer while it grows: its sampler, its text, and how it ended."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from edgechat.engine.protocol import FinishReason, Generate, SequenceFinished, TokenLogprobs, TokensGenerated
from edgechat.engine.stop_strings import StopStringFilter
from edgechat.runtime.context import Context
from edgechat.runtime.sampler import PENALTY_LAST_N, Sampler

if TYPE_CHECKING:
    from edgechat.runtime.grammar import Grammar

# Events wake the client, which then competes with the compute threads; people read no faster than twelve times a second.
FLUSH_S: Final = 0.08

Send = Callable[[TokensGenerated | SequenceFinished], None]


class OutputSequence:
    """Draws the tokens of one answer, and sends their text."""

    def __init__(
        self, context: Context, request: Generate, number: int, seq: int, prompt: list[int], send: Send,
        grammar: Grammar | None = None,
    ) -> None:  # fmt: skip
        """`seq` holds `prompt`; answers with other numbers draw with other seeds, and all as `grammar` allows."""
        self.seq = seq
        self.tokens: list[int] = []
        self.next_token = -1
        """The token that was drawn last, if it is to be decoded."""
        self.first_token_s = self.last_token_s = 0.0
        self.finish_reason: FinishReason | None = None
        self._context = context
        self._request = request
        self._number = number
        self._n_prompt = len(prompt)
        self._send = send
        sampling = request.sampling
        if sampling.seed is not None:
            sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + number) % (1 << 32))
        self._sampler = Sampler(context.model, sampling, request.logit_bias, grammar)
        for token in prompt[-PENALTY_LAST_N:]:
            self._sampler.accept(token)
        control = context.model.control_tokens
        self._shown = {control[text] for text in request.visible_control_tokens if text in control}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = StopStringFilter(request.stop)
        self._text = ""
        self._unsent: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._flushed_s = 0.0

    @property
    def n_tokens(self) -> int:
        """How many were drawn."""
        return len(self.tokens)

    @property
    def max_draft(self) -> int:
        """How many tokens may be tried with the last drawn one; negative if the answer must end with that one."""
        room = self._context.n_ctx - self._n_prompt - self.n_tokens
        most = self._request.max_tokens
        return room if most is None else min(room, most - self.n_tokens - 1)

    def allowed_prefix(self, draft: list[int]) -> list[int]:
        """What of a draft a grammar allows."""
        return draft[: self._sampler.count_allowed(draft)] if draft else draft

    def sample(self, index: int) -> int:
        """The next token, from the logits at `index` of the last batch. Raises GrammarError if there can be none."""
        token = self._sampler.sample(self._context, index)
        forced = self._request.forced_tokens
        if forced is not None and self.n_tokens < len(forced):
            token = forced[self.n_tokens]
        if self._request.n_logprobs is not None:
            self._logprobs.append(self._logprobs_of(token, index, self._request.n_logprobs))
        return token

    def _logprobs_of(self, token: int, index: int, n_top: int) -> TokenLogprobs:
        piece = self._context.model.token_to_piece
        chosen, top = self._context.logprobs(token, index, n_top)
        return TokenLogprobs(
            text=piece(token, special=True), logprob=chosen, top=[(piece(t, special=True), value) for t, value in top]
        )

    def accept(self, token: int) -> bool:
        """Count a drawn token and send its text; True if it is to be decoded, because the answer goes on."""
        self.tokens.append(token)
        self.last_token_s = time.monotonic()
        if self.n_tokens == 1:
            self.first_token_s = self.last_token_s
        model, request = self._context.model, self._request
        if model.is_eog(token) and not request.ignore_eog:
            del self._logprobs[-1:]
            self.finish("stop")
            return False
        self._add(token, model.token_to_piece(token, special=token in self._shown))
        if self._stop.is_stopped or self._sampler.is_complete:
            # What a stop text cut off in the middle of a grammar is not what was asked for.
            self.finish("stop" if self._sampler.can_end else "length")
            return False
        if self.max_draft < 0:
            self.finish("length")
            return False
        self.next_token = token
        return True

    def _add(self, token: int, piece: bytes) -> None:
        self._unsent.append(token)
        self._text += self._stop.feed(self._decoder.decode(piece))
        if self._text and self.last_token_s - self._flushed_s >= FLUSH_S:
            self._flush()
            self._flushed_s = self.last_token_s

    def _flush(self) -> None:
        self._send(TokensGenerated(
            id=self._request.id, text=self._text, tokens=self._unsent, sequence=self._number, logprobs=self._logprobs
        ))  # fmt: skip
        self._text, self._unsent, self._logprobs = "", [], []

    def finish(self, reason: FinishReason) -> None:
        """The answer has ended; bytes that never became a character are sent as U+FFFD. A second call does nothing."""
        if self.finish_reason is not None:
            return
        self.finish_reason = reason
        self._text += self._stop.feed(self._decoder.decode(b"", final=True)) + self._stop.flush()
        if self._text or self._unsent:
            self._flush()
        if self._request.n_sequences > 1:
            self._send(SequenceFinished(
                id=self._request.id, sequence=self._number, finish_reason=reason, completion_tokens=self.n_tokens
            ))  # fmt: skip
