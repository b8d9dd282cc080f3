"""Time of a typical turn: the prefill of a prompt, reasoning if it is on, and a reply."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from edgechat.planner.throughput import PredictedSpeed

PROMPT_TOKENS: Final = 600
"""Number of new tokens in a typical prompt: a question with a pasted page of text."""
REPLY_TOKENS: Final = 300
"""Number of tokens in a typical reply."""
THINKING_TOKENS: Final = 800
"""Number of tokens of typical reasoning before a reply. This is an estimate: no count for chats is published for the
models of the catalogue. It follows from one reply of Qwen3-30B-A3B to a question (1,116 tokens with its reasoning,
ggml-org/llama.cpp#13427). The hard questions of a benchmark take several times as many."""
MIN_THINKING_TPS: Final = 60.0
"""Minimum decode speed, in tokens per second, at which reasoning is on by default. At this speed, typical reasoning and
a reply take 18 s, and a prompt, which is never slower than decoding, at most 10 s."""

ReasoningSupport = Literal["no", "toggle", "always"]
"""Whether a model reasons before it replies: never, only if the user turns reasoning on, or always."""


class TypicalTurn(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted time of a typical turn, by part."""

    prompt_s: float
    thinking_s: float
    """Time of the reasoning in seconds; 0.0 if reasoning is off."""
    reply_s: float

    @property
    def total_s(self) -> float:
        """Time from the question to the end of the reply, in seconds."""
        return self.prompt_s + self.thinking_s + self.reply_s


def is_thinking_default(decode_tps: float | None) -> bool:
    """Return whether reasoning is on by default for a model with this decode speed; None means unknown."""
    return decode_tps is not None and decode_tps >= MIN_THINKING_TPS


def predict_turn(speed: PredictedSpeed, *, thinks: bool) -> TypicalTurn:
    """Return the time of a typical turn of a model; `thinks` is True if the model reasons before it replies."""
    return TypicalTurn(
        prompt_s=PROMPT_TOKENS / speed.prefill_tps, thinking_s=THINKING_TOKENS / speed.decode_tps if thinks else 0.0,
        reply_s=REPLY_TOKENS / speed.decode_tps,
    )  # fmt: skip


def predict_shortest_turn(speed: PredictedSpeed, thinking: ReasoningSupport, *, think: bool | None) -> TypicalTurn:
    """Predict the shortest turn that the settings allow; its time determines the rank of a model.

    `think` is the user's setting: True and False turn reasoning on and off, and with None, the speed of the model
    decides. With None, a model that can reply without reasoning ranks by its time without reasoning, even if it is fast
    enough to reason by default. Otherwise, more speed would make such a model rank as slower.
    """
    return predict_turn(speed, thinks=thinking == "always" or (thinking == "toggle" and think is True))


def predict_default_turn(speed: PredictedSpeed, thinking: ReasoningSupport, *, think: bool | None) -> TypicalTurn:
    """Predict the turn that a user gets with the settings; see `predict_shortest_turn` for the arguments."""
    is_on = is_thinking_default(speed.decode_tps) if think is None else think
    return predict_turn(speed, thinks=thinking == "always" or (thinking == "toggle" and is_on))
