"""One output sequence of a request: its sampler, its stop conditions, and its text events."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from edgechat.engine.generation import TokenLogprobs, are_drafts_noticeable
from edgechat.engine.protocol import FinishReason, Generate, ResumedReply, SequenceFinished, TokensGenerated
from edgechat.engine.repetition import RepetitionDetector
from edgechat.engine.stop_strings import StopStringFilter
from edgechat.engine.thinking import ThoughtTracker
from edgechat.runtime.context import Context
from edgechat.runtime.sampler import Sampler, count_penalty_tokens
from edgechat.speculation.speculator import Speculator

if TYPE_CHECKING:
    from edgechat.runtime.grammar import Grammar
    from edgechat.runtime.triggered_grammar import TriggeredGrammar

# Minimum time between two text events. Each event wakes the client, which competes with the compute threads for cores.
# Text that appears 12 times per second looks continuous.
FLUSH_INTERVAL_S: Final = 0.08

SendText = Callable[[TokensGenerated | SequenceFinished], None]


def compute_logprobs(context: Context, token: int, index: int, n_top: int) -> TokenLogprobs:
    """Compute the logprobs of a token and the `n_top` most likely tokens, from the logits at `index` of the batch."""
    token_to_piece = context.model.token_to_piece
    logprob, top_tokens = context.logprobs(token, index, n_top)
    return TokenLogprobs(
        token_bytes=token_to_piece(token, special=True),
        logprob=logprob,
        top_logprobs=[(token_to_piece(t, special=True), value) for t, value in top_tokens],
    )


class MeanLogprob:
    """Mean of the logprobs of one reply's tokens."""

    def __init__(self) -> None:
        self._sum_before_last = self._last = 0.0
        self._n_tokens = 0

    def add(self, logprob: float) -> None:
        self._sum_before_last += self._last
        self._last = logprob
        self._n_tokens += 1

    def resume(self, total: float, n_tokens: int) -> None:
        """Replace the logprobs so far by `n_tokens` logprobs with the sum `total`."""
        self._sum_before_last, self._last, self._n_tokens = total, 0.0, n_tokens

    def remove_last(self) -> None:
        """Remove the last logprob, of the token that ends the reply; a second call without `add` is an error."""
        self._last = 0.0
        self._n_tokens -= 1

    @property
    def total(self) -> float:
        """Sum of the logprobs."""
        return self._sum_before_last + self._last

    @property
    def value(self) -> float | None:
        """The mean; None for a reply without tokens."""
        return self.total / self._n_tokens if self._n_tokens else None


class OutputSequence:
    """Samples the tokens of one reply and sends their text as events."""

    def __init__(
        self, context: Context, params: Generate, index: int, seq: int, prompt: list[int], send: SendText,
        grammar: Grammar | TriggeredGrammar | None = None, speculator: Speculator | None = None,
    ) -> None:  # fmt: skip
        """Start a reply after `prompt`, which sequence `seq` of the context already holds.

        `index` is the number of the reply in its request, and is added to the seed. The sampler takes ownership of
        `grammar`. `speculator` is None to disable drafts.
        """
        self.seq = seq
        self.index = index
        self.speculator = speculator
        self.tokens: list[int] = []
        self.next_token = -1
        """The last sampled token, which the next step decodes; -1 before the first sample."""
        self.first_token_at = self.last_token_at = 0.0
        """Times of the first and of the last token that this process has sampled; 0 before the first one."""
        self.n_resumed_tokens = 0
        """Number of tokens that another engine process has sampled."""
        self._n_unknown_tokens = 0
        """Number of them that it has not sent: the token that ended the reply."""
        self.finish_reason: FinishReason | None = None
        self._context = context
        self._params = params
        self._n_prompt = len(prompt)
        self._send = send
        sampling = params.sampling
        if sampling.seed is not None:
            sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + index) % (1 << 32))
        self._sampler = Sampler(context.model, sampling, params.logit_bias, grammar)
        for token in prompt[-count_penalty_tokens(sampling) :]:
            self._sampler.accept(token)
        control_tokens = context.model.control_tokens
        self._visible_tokens = {
            control_tokens[text] for text in params.visible_control_tokens if text in control_tokens
        }
        self._thoughts = ThoughtTracker(params.thinking) if params.thinking is not None else None
        self._closing_tokens: list[int] = []
        """Tokens that end the reasoning and follow the last output token; the sampler is not used for them."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop_filter = StopStringFilter(params.stop)
        self._repetition_detector = RepetitionDetector(self.tokens) if params.stop_repetition else None
        self._unsent_text = ""
        self._unsent_tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._score = MeanLogprob() if params.mean_logprob else None
        self._flushed_at = 0.0
        self._n_sent_chars: int | None = None
        """Number of characters that another engine process has sent, while their tokens are added; otherwise None."""

    def resume(self, reply: ResumedReply) -> None:
        """Continue after the tokens of `reply`, which another engine process has sampled and sent.

        The sampler, the stop conditions and the tracking of the reasoning advance as if this process had sampled the
        tokens, but their text is not sent. The caller decodes them. Raises GrammarError.
        """
        if self._score is not None:
            self._score.resume(reply.logprob_sum, len(reply.tokens))
        if reply.finish_reason is not None:
            self.tokens += reply.tokens
            if self._thoughts is not None:
                for token in reply.tokens:
                    self._thoughts.feed(self._context.model.token_to_piece(token, special=True), 0.0)
            self._n_unknown_tokens = max(0, reply.completion_tokens - len(reply.tokens))
            self.n_resumed_tokens, self.finish_reason = self.n_tokens, reply.finish_reason
            return
        self._n_sent_chars = reply.n_chars
        for token in reply.tokens:
            if self.closing_tokens:
                self.closing_tokens.pop(0)
            self._sampler.accept_output(token)
            if not self.accept(token):
                break
        self._skip_sent_text()
        if self._thoughts is not None:
            self._thoughts.resume(reply.thinking_s)
        self.n_resumed_tokens, self.first_token_at = self.n_tokens, 0.0

    @property
    def n_tokens(self) -> int:
        """Number of sampled tokens."""
        return len(self.tokens) + self._n_unknown_tokens

    @property
    def stop_string(self) -> str:
        """The stop string that ended the reply; "" if none did."""
        return self._stop_filter.stop_string

    @property
    def n_reasoning_tokens(self) -> int:
        """Number of tokens of reasoning."""
        return self._thoughts.n_tokens if self._thoughts is not None else 0

    @property
    def is_thinking(self) -> bool:
        """True if the next token belongs to reasoning that no limit and no `end_thinking` has ended yet."""
        return self._thoughts is not None and self._thoughts.is_thinking and not self.closing_tokens

    def end_thinking(self) -> None:
        """End the reasoning after the last output token; if the sequence is not reasoning, end all later reasoning."""
        if self._thoughts is not None:
            self._thoughts.end()

    @property
    def closing_tokens(self) -> list[int]:
        """The next output tokens, if the reasoning must end here: they end it, and are not sampled. Otherwise empty."""
        thoughts = self._thoughts
        if not self._closing_tokens and thoughts is not None and thoughts.must_end:
            tokenizations = map(self._context.model.tokenize_continuation, thoughts.closing_texts())
            self._closing_tokens = next((t for t in tokenizations if len(self.find_allowed_prefix(t)) == len(t)), [])
            if not self._closing_tokens:
                thoughts.give_up()
        return self._closing_tokens

    @property
    def max_draft(self) -> int:
        """Maximum number of drafted tokens in the next step; negative if the sequence is at its length limit."""
        n_free_cells = self._context.max_n_ctx - self._n_prompt - self.n_tokens
        max_tokens = self._params.max_tokens
        return n_free_cells if max_tokens is None else min(n_free_cells, max_tokens - self.n_tokens - 1)

    def find_allowed_prefix(self, draft: list[int]) -> list[int]:
        """Return the longest prefix of `draft` that the grammar allows."""
        return draft[: self._sampler.count_allowed(draft)] if draft else draft

    def sample(self, index: int) -> int:
        """Sample a token from the logits at `index` of the last batch.

        If the reasoning must end, return the next closing token instead. Raises GrammarError if the grammar allows no
        token.
        """
        forced_tokens = self._params.forced_tokens
        if self.closing_tokens:
            token = self.closing_tokens.pop(0)
            self._sampler.accept_output(token)
        else:
            token = self._sampler.sample(self._context, index)
            if forced_tokens is not None and self.n_tokens < len(forced_tokens):
                token = forced_tokens[self.n_tokens]
        if self._params.n_logprobs is not None:
            self._logprobs.append(compute_logprobs(self._context, token, index, self._params.n_logprobs))
        if self._score is not None:
            self._score.add(self._context.logprob(token, index))
        return token

    def accept(self, token: int) -> bool:
        """Append a sampled token and send its text. Return whether the sequence continues after the token."""
        self.tokens.append(token)
        self.last_token_at = time.monotonic()
        self.first_token_at = self.first_token_at or self.last_token_at
        model = self._context.model
        if self._thoughts is not None:
            self._thoughts.feed(model.token_to_piece(token, special=True), self.last_token_at)
        if model.is_eog(token) and not self._params.ignore_eog:
            del self._logprobs[-1:]
            if self._score is not None:
                self._score.remove_last()
            self.finish("stop")
            return False
        self._append_text(token, model.token_to_piece(token, special=token in self._visible_tokens))
        if self._stop_filter.is_stopped or self._sampler.is_complete:
            # A stop string can end the output before the grammar is complete; such output counts as cut off ("length").
            self.finish("stop" if self._sampler.can_end else "length")
            return False
        if self.max_draft < 0:
            self.finish("length")
            return False
        if self._repeats_itself():
            if not self.is_thinking:
                self.finish("repetition")
                return False
            self.end_thinking()
        self.next_token = token
        return True

    def _repeats_itself(self) -> bool:
        """Return whether the output ends with a loop that no grammar and no closing tokens of the reasoning require.

        A grammar can require a loop, such as an array of equal values, in the reply, but not in the reasoning.
        """
        detector = self._repetition_detector
        if detector is None or self._closing_tokens or (self._sampler.is_constrained and not self.is_thinking):
            return False
        return detector.check()

    def _append_text(self, token: int, piece: bytes) -> None:
        self._unsent_text += self._stop_filter.feed(self._decoder.decode(piece))
        if self._n_sent_chars is not None:
            return
        self._unsent_tokens.append(token)
        if self._unsent_text and self.last_token_at - self._flushed_at >= FLUSH_INTERVAL_S:
            self._flush()
            self._flushed_at = self.last_token_at

    def _skip_sent_text(self) -> None:
        if self._n_sent_chars is not None:
            self._unsent_text, self._n_sent_chars = self._unsent_text[self._n_sent_chars :], None

    def send_rest(self) -> None:
        """Send the tokens that were not sent yet, so that another engine process can resume the reply after them."""
        if self.finish_reason is None and self._unsent_tokens:
            self._flush()

    def _flush(self) -> None:
        drafts = self.speculator.stats if self.speculator is not None else None
        is_noticeable = drafts is not None and are_drafts_noticeable(drafts.n_accepted, drafts.n_tokens)
        self._send(TokensGenerated(
            id=self._params.id, text=self._unsent_text, tokens=self._unsent_tokens, sequence=self.index,
            logprobs=self._logprobs, draft_gain=drafts.gain if drafts is not None else 1.0,
            draft_source=drafts.main_source if drafts is not None and is_noticeable else "",
            logprob_sum=self._score.total if self._score is not None else 0.0,
            thinking_s=self._thoughts.elapsed_s if self._thoughts is not None else 0.0,
        ))  # fmt: skip
        self._unsent_text, self._unsent_tokens, self._logprobs = "", [], []

    def finish(self, reason: FinishReason) -> None:
        """End the sequence and send the remaining text, with U+FFFD for incomplete UTF-8. Later calls do nothing."""
        if self.finish_reason is not None:
            return
        self.finish_reason = reason
        self._unsent_text += self._stop_filter.feed(self._decoder.decode(b"", final=True)) + self._stop_filter.flush()
        self._skip_sent_text()
        if self._unsent_text or self._unsent_tokens:
            self._flush()
        if self._params.n_sequences > 1 or self._score is not None:
            self._send(SequenceFinished(
                id=self._params.id, sequence=self.index, finish_reason=reason, completion_tokens=self.n_tokens,
                stop_string=self.stop_string, mean_logprob=self._score.value if self._score is not None else None,
            ))  # fmt: skip
