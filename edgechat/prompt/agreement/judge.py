"""Comparison of replies by a judge: the model itself compares them in pairs, in both orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from edgechat.config import GREEDY
from edgechat.engine.protocol import Generate
from edgechat.prompt.agreement.vote import rank_logprob
from edgechat.prompt.renderer import PromptMessage

# Grammar of a verdict: the letter of the better reply.
_VERDICT_GRAMMAR: Final = 'start: "A" | "B"\n'
_MAX_VERDICT_TOKENS: Final = 4
# Maximum length of the texts in a comparison: the start of a question, and the end of a reply, which has its answer.
_MAX_CHARS: Final = 4_000


class Tournament:
    """Comparisons of replies in pairs; the winner of each pair meets the next reply.

    Iterate over the prompts, and set `verdict` to the output of the judge for each one, before the next.
    """

    def __init__(self, question: str, texts: Sequence[str], mean_logprobs: Sequence[float | None]) -> None:
        self.verdict = ""
        self.winner: int | None = None
        """Index of the best reply; None before the last comparison, or with fewer than two replies."""
        self.max_comparisons = 2 * max(0, len(texts) - 1)
        self._question = question
        self._texts = texts
        self._mean_logprobs = mean_logprobs

    def __iter__(self) -> Iterator[list[PromptMessage]]:
        """Yield the prompt of each comparison, and then set `winner`.

        Each pair is compared in both orders, because models prefer one position. If the verdicts contradict each other,
        the reply with the higher mean logprob wins, and the earlier one of two equals.
        """
        texts, best = self._texts, 0
        for challenger in range(1, len(texts)):
            if texts[challenger].strip() == texts[best].strip():
                continue
            yield make_comparison(self._question, texts[best], texts[challenger])
            prefers_best = is_first_better(self.verdict)
            yield make_comparison(self._question, texts[challenger], texts[best])
            prefers_challenger = is_first_better(self.verdict)
            if prefers_best == prefers_challenger:
                logprobs = self._mean_logprobs
                prefers_challenger = rank_logprob(logprobs[challenger]) > rank_logprob(logprobs[best])
            best = challenger if prefers_challenger else best
        self.winner = best if len(texts) > 1 else None


def make_comparison(question: str, first: str, second: str) -> list[PromptMessage]:
    """Return the messages that ask which of two replies to a question is better."""
    text = (
        f"Question:\n{question[:_MAX_CHARS]}\n\nReply A:\n{first[-_MAX_CHARS:]}\n\nReply B:\n{second[-_MAX_CHARS:]}\n\n"
        "Which reply is better: more correct, complete and helpful? Answer with one letter, A or B."
    )
    return [PromptMessage("user", text)]


def make_verdict_request(request_id: int, tokens: list[int]) -> Generate:
    """Return the request for a verdict; `tokens` is the prompt with the messages of `make_comparison`."""
    return Generate(
        id=request_id, tokens=tokens, max_tokens=_MAX_VERDICT_TOKENS, sampling=GREEDY, grammars=[_VERDICT_GRAMMAR],
        ephemeral=True,
    )  # fmt: skip


def is_first_better(verdict: str) -> bool:
    """Return whether a verdict prefers A."""
    return verdict.strip().upper().startswith("A")
