"""Doubts about a reply, for which a route asks a larger model: low mean logprob, other answers, or "I don't know"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from edgechat.lazy_pattern import LazyPattern
from edgechat.prompt.agreement.answers import extract_answer

DoubtKind = Literal["empty", "dont_know", "logprob", "disagreement"]
# Words of a model that cannot answer. They count only at the start of a reply, because later they can be a quotation.
_DONT_KNOW: Final = LazyPattern(
    r"(?i)(?:i'?m|i am)?\W*(?:sorry|unfortunately|apologies)?\W*(?:but)?\W*"
    r"(?:i (?:do not|don'?t|really don'?t) (?:know|have (?:access|(?:any |enough |the )?(?:\w+ )?"
    r"(?:information|knowledge|data)))"
    r"|i(?:'?m| am) (?:not sure|unsure|not certain|unable to (?:answer|help|assist|provide))"
    r"|i (?:cannot|can'?t|can not) (?:answer|help|assist|provide|say|tell)"
    r"|(?:as an ai|as a language model)[^.!?\n]{0,80}(?:cannot|can'?t|don'?t|do not|unable))"
)
_MAX_CHECKED_CHARS: Final = 300


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """Reason to ask another model."""

    kind: DoubtKind
    value: float | None = None
    """Mean natural logprob of the reply; None for another kind."""
    threshold: float | None = None
    """Least mean logprob without a doubt; None for another kind."""

    def describe(self) -> str:
        """Describe the doubt in a few words, such as "mean log probability -1.20 below -0.80"."""
        if self.kind == "logprob" and self.value is not None and self.threshold is not None:
            return f"mean log probability {self.value:.2f} below {self.threshold:.2f}"
        texts = {"empty": "its reply is empty", "dont_know": "it does not know", "disagreement": "its replies disagree"}
        return texts.get(self.kind, "low log probability")


def is_dont_know(text: str) -> bool:
    """Return whether a reply begins with words such as "I don't know" or "I'm sorry, but I cannot answer"."""
    start = text.strip()[:_MAX_CHECKED_CHARS].replace("\u2019", "'")
    return _DONT_KNOW.compiled.match(start) is not None


def find_doubt(
    texts: Sequence[str], mean_logprob: float | None, *, min_logprob: float | None, dont_know: bool, agree: bool
) -> Doubt | None:
    """Return the first doubt about the reply `texts[0]`; None if there is none.

    `mean_logprob` is that of the reply; None, for a remote model, is no doubt. The other `texts` are further replies to
    the same message. With `agree`, two final answers that differ are a doubt; a reply without a final answer that can
    be compared is none. An empty reply is always a doubt.
    """
    if not texts[0].strip():
        return Doubt(kind="empty")
    if dont_know and is_dont_know(texts[0]):
        return Doubt(kind="dont_know")
    if min_logprob is not None and mean_logprob is not None and not mean_logprob >= min_logprob:
        return Doubt(kind="logprob", value=mean_logprob, threshold=min_logprob)
    if agree:
        answers = {answer for answer in map(extract_answer, texts) if answer is not None}
        if len(answers) > 1:
            return Doubt(kind="disagreement")
    return None
