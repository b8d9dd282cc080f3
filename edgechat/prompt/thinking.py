"""Limits of reasoning: the meaning of the setting `thinking`, and the tags with which the engine ends reasoning."""

from __future__ import annotations

from typing import Final, NamedTuple

from edgechat.engine.generation import ThinkingLimit
from edgechat.prompt.reasoning import ReasoningFormat, ReplyPhase
from edgechat.prompt.reply_format import ReplyFormat

AUTO_S: Final = 20.0
"""Time in seconds that `thinking = "auto"` allows; the measured decode speed converts it to tokens."""
THINKING_OFF: Final = frozenset({"off", "0", "0s"})
"""Values of the setting `thinking` that turn reasoning off."""
# With fewer tokens, `auto` turns reasoning off: a model only begins to think, and its reply gets no better.
_MIN_AUTO_TOKENS: Final = 100
# Share of the reply's tokens (up to its maximum length and the end of the context) that reasoning may take.
_MAX_REPLY_SHARE: Final = 0.75


class ThinkingLevel(NamedTuple):
    """Limits of a named level of reasoning; the first one that is reached ends the reasoning."""

    context_share: float
    """Share of the context length."""
    max_s: float


LEVELS: Final = {
    "low": ThinkingLevel(1 / 16, 15.0), "medium": ThinkingLevel(1 / 8, 60.0), "high": ThinkingLevel(1 / 4, 240.0),
}  # fmt: skip


class ThinkingBudget(NamedTuple):
    """Limits of the reasoning in a reply; the first one that is reached ends the reasoning."""

    max_tokens: int | None = None
    max_s: float | None = None


class ReplySpace(NamedTuple):
    """Length and speed on which a budget depends."""

    n_ctx: int
    """Longest length of the context, in tokens."""
    n_prompt: int
    """Number of tokens in the prompt."""
    max_tokens: int | None = None
    """Maximum length of the reply in tokens, with its reasoning; None if only the context limits it."""
    decode_tps: float | None = None
    """Measured decode speed of the model in tokens per second; None if it is unknown."""
    is_strict: bool = False
    """True if the reply must be reproducible, so that no measured time may decide about it."""

    @property
    def max_thinking_tokens(self) -> int:
        """Number of tokens that reasoning may take at most, so that the reply has space, too."""
        n_free = max(0, self.n_ctx - self.n_prompt)
        return int(_MAX_REPLY_SHARE * (n_free if self.max_tokens is None else min(n_free, self.max_tokens)))


def is_thinking_on(
    *, reasoning: bool | None, thinking: str | int | None, decode_tps: float | None
) -> bool | None:  # fmt: skip
    """Return whether the settings `reasoning` and `thinking` turn reasoning on; None if neither decides.

    `reasoning` takes precedence. `auto` turns reasoning off if the decode speed allows only a few tokens.
    """
    if reasoning is not None or thinking is None:
        return reasoning
    if thinking == "auto":
        return decode_tps is None or AUTO_S * decode_tps >= _MIN_AUTO_TOKENS
    return str(thinking) not in THINKING_OFF


def choose_budget(thinking: str | int | None, space: ReplySpace) -> ThinkingBudget | None:
    """Return the budget for a value of the setting `thinking`; None for unlimited reasoning.

    A budget leaves at least a quarter of the reply's tokens for the text after the reasoning. In strict mode, levels
    have no limit in seconds, and `auto` is the share of the context of `low`.
    """
    if thinking is None or thinking == "on":
        return None
    max_tokens, max_s = _find_limits(str(thinking), space)
    return ThinkingBudget(min(max_tokens, space.max_thinking_tokens), max_s)


def _find_limits(thinking: str, space: ReplySpace) -> tuple[int, float | None]:
    """Return the maximum number of tokens and seconds for a value of the setting `thinking`."""
    level = LEVELS.get("low" if thinking == "auto" and space.is_strict else thinking)
    if level is not None:
        return int(level.context_share * space.n_ctx), None if space.is_strict else level.max_s
    if thinking == "auto":
        return (space.n_ctx, AUTO_S) if space.decode_tps is None else (int(AUTO_S * space.decode_tps), None)
    if thinking.endswith("s"):
        return space.n_ctx, float(thinking[:-1])
    return 0 if thinking == "off" else int(thinking), None


def choose_reasoning_format(known_format: ReasoningFormat | None, reply_format: ReplyFormat) -> ReasoningFormat | None:
    """Return `known_format`, the template's reasoning format, unless llama.cpp found other tags in the template."""
    start_tag, end_tags = reply_format.thinking_start, reply_format.thinking_ends
    if not (start_tag and end_tags) or (known_format is not None and known_format.start_tag == start_tag.strip()):
        return known_format
    return ReasoningFormat(start_tag, end_tags[0], separator="")


def make_thinking_limit(
    known_format: ReasoningFormat | None, reply_format: ReplyFormat, phase: ReplyPhase,
    budget: ThinkingBudget | None = None, sentence: str = "",
) -> ThinkingLimit | None:  # fmt: skip
    """Return the tags of the reasoning in a reply, with `budget`; None if the model does not reason.

    `phase` is the one in which the reply begins, and `sentence` is written before the end tag when the budget ends.
    """
    tags = choose_reasoning_format(known_format, reply_format)
    if tags is None:
        return None
    budget = budget or ThinkingBudget()
    return ThinkingLimit(
        start_tags=tuple(dict.fromkeys(filter(None, (tags.start_tag, reply_format.thinking_start.strip())))),
        end_tags=tuple(dict.fromkeys((tags.end_tag, *filter(None, reply_format.thinking_ends)))),
        text_before_end=(f"\n\n{sentence}" if sentence else "") + tags.padding,
        text_after_end=tags.content_prefix + tags.separator, is_open=phase == "reasoning",
        max_tokens=budget.max_tokens, max_s=budget.max_s,
    )  # fmt: skip
