"""Comparison of replies by a judge: the model itself compares them in pairs, in both orders."""

from __future__ import annotations

from collections.abc import Generator, Sequence
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

Tournament = Generator[tuple[int, int], bool, int]


def run_tournament(texts: Sequence[str], mean_logprobs: Sequence[float | None]) -> Tournament:
    """Compare replies in pairs; the winner of each pair meets the next reply. Returns the index of the best reply.

    Yields (first, second), the indexes of the replies to show as A and B, and expects whether A is better. Each pair is
    compared in both orders, because models prefer one position. If the verdicts contradict each other, the reply with
    the higher mean logprob wins, and the earlier one of two equals. Raises ValueError without replies.
    """
    if not texts:
        raise ValueError("no replies")
    best = 0
    for challenger in range(1, len(texts)):
        if texts[challenger].strip() == texts[best].strip():
            continue
        prefers_best = yield best, challenger
        prefers_challenger = yield challenger, best
        if prefers_best == prefers_challenger:
            is_likelier = rank_logprob(mean_logprobs[challenger]) > rank_logprob(mean_logprobs[best])
            best = challenger if is_likelier else best
        elif prefers_challenger:
            best = challenger
    return best


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
