"""Rounds of parallel replies to one prompt, and the choice between them."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from edgechat.prompt.agreement.answers import Answer, extract_answer
from edgechat.prompt.agreement.judge import Tournament
from edgechat.prompt.agreement.vote import (
    Ballot,
    can_change,
    choose_most_likely,
    count_deciding_votes,
    count_votes,
    elect,
)

PickMethod = Literal["agree", "likely", "judge"]
"""How a reply is chosen: the most frequent answer, the highest mean logprob, or the model's own comparison."""
PICK_METHODS: Final[tuple[PickMethod, ...]] = get_args(PickMethod)
MAX_PICKED_REPLIES: Final = 64
"""Maximum number of replies from which one is chosen."""


class ReplyCandidate(msgspec.Struct, frozen=True):
    """One generated reply, with the facts that decide whether it is picked."""

    text: str
    is_complete: bool
    """False if the reply was ended early; it can then not be picked, unless no reply is complete."""
    is_cut: bool
    """True for a complete reply that reached its length limit; it can only be picked if all complete ones did."""
    mean_logprob: float | None
    answer: Answer | None


class ReplyPick(msgspec.Struct, frozen=True, kw_only=True):
    """Chosen reply."""

    method: PickMethod
    index: int
    """Index of the reply, in the order in which the replies were started."""
    n_agreeing: int
    """Number of complete replies with its answer, including itself; 0 if the answer cannot be compared."""
    n_counted: int
    """Number of complete replies."""
    n_started: int
    """Number of replies that were generated, at least in part."""
    n_requested: int

    def describe(self) -> str:
        """Describe the choice in a few words, such as "4 of 5 agree"."""
        if not self.n_counted:
            return "no reply is complete"
        if self.method == "agree":
            if not self.n_agreeing:
                return f"most likely of {self.n_counted}, no answers to compare"
            if self.n_agreeing == 1 < self.n_counted:
                return f"most likely of {self.n_counted}, no two agree"
            return f"{self.n_agreeing} of {self.n_counted} agree"
        return f"{'most likely' if self.method == 'likely' else 'best'} of {self.n_counted}"


class ReplyPicker:
    """Decides how many replies to generate at a time, when they suffice, and which of them to choose.

    Call `start_round` until it returns an empty range; generate the replies of each range in parallel, and pass each
    one that ends to `finish_reply`. When `is_decided` becomes true, the other replies of the round can be ended.
    """

    def __init__(self, method: PickMethod, n_replies: int, max_parallel: int) -> None:
        """Choose one of up to `n_replies` replies, of which at most `max_parallel` are generated at a time."""
        self.method = method
        self.n_replies = n_replies
        self._max_parallel = max(1, max_parallel)
        self._n_started = 0
        self._candidates: dict[int, ReplyCandidate] = {}

    @property
    def n_started(self) -> int:
        """Number of replies in all rounds so far."""
        return self._n_started

    @property
    def n_finished(self) -> int:
        """Number of replies that have ended."""
        return len(self._candidates)

    @property
    def candidates(self) -> list[ReplyCandidate | None]:
        """The replies in the order in which they were started; None for a reply that has not ended."""
        return [self._candidates.get(index) for index in range(self._n_started)]

    def start_round(self) -> range:
        """Return the indexes of the replies to generate next; an empty range if no more are needed.

        A vote generates as many as can decide it, so that replies that agree cost no more than necessary. Further
        rounds have at least half of the replies that are left, which limits their number.
        """
        n_left = self.n_replies - self._n_started
        n_round = n_left
        if self.method == "agree":
            n_round = count_deciding_votes(count_votes(self._ballots), n_left)
            if n_round and self._n_started:
                n_round = max(n_round, n_left // 2)
        start = self._n_started
        self._n_started += min(n_round, n_left, self._max_parallel)
        return range(start, self._n_started)

    def plan_rounds(self, votes: str) -> list[int]:
        """Return the sizes of all rounds if the replies have the answers in `votes`, one digit each, over and over.

        A vote takes longest if two answers alternate.
        """
        picker, sizes = ReplyPicker(self.method, self.n_replies, self._max_parallel), []
        while indexes := picker.start_round():
            sizes.append(len(indexes))
            for index in indexes:
                picker.finish_reply(index, votes[index % len(votes)], None, "stop")
        return sizes

    def finish_reply(self, index: int, text: str, mean_logprob: float | None, finish_reason: str) -> None:
        """Add the text, without reasoning, of a reply that has ended for a reason of `engine.protocol.FinishReason`.

        A reply that reached its length limit has no final answer. It is compared in other ways if all replies did.
        """
        is_complete = finish_reason == "stop" or (finish_reason == "length" and self.method != "agree")
        answer = extract_answer(text) if finish_reason == "stop" else None
        self._candidates[index] = ReplyCandidate(text, is_complete, finish_reason == "length", mean_logprob, answer)

    @property
    def is_decided(self) -> bool:
        """True if no further reply can change the choice."""
        n_left = self.n_replies - len(self._candidates)
        return n_left <= 0 or (self.method == "agree" and not can_change(count_votes(self._ballots), n_left))

    @property
    def _complete(self) -> list[tuple[int, ReplyCandidate]]:
        return [(i, c) for i, c in sorted(self._candidates.items()) if c.is_complete]

    @property
    def _eligible(self) -> list[tuple[int, ReplyCandidate]]:
        """The complete replies that can be picked: those that are not cut, if there are any."""
        complete = self._complete
        return [(i, c) for i, c in complete if not c.is_cut] or complete

    @property
    def _ballots(self) -> list[Ballot]:
        return [Ballot(candidate.answer, candidate.mean_logprob) for _, candidate in self._eligible]

    def start_tournament(self, question: str) -> Tournament:
        """Return the comparisons of the replies to `question` that can be picked; none for another method."""
        eligible = self._eligible if self.method == "judge" else []
        return Tournament(question, [c.text for _, c in eligible], [c.mean_logprob for _, c in eligible])

    def list_complete(self) -> list[int]:
        """Return the indexes of the complete replies."""
        return [index for index, _ in self._complete]

    def pick(self, tournament_winner: int | None = None) -> ReplyPick:
        """Choose a reply. `tournament_winner` is the result of the tournament, if there was one.

        Without a complete reply, the first one is chosen. Without a tournament, "judge" chooses the most likely reply.
        """
        eligible, ballots = self._eligible, self._ballots
        winner = n_agreeing = 0
        method: PickMethod = self.method
        if method == "judge" and tournament_winner is None and len(ballots) > 1:
            method = "likely"  # the comparison was stopped, or not possible
        if ballots:
            counts = count_votes(ballots)
            winner = choose_most_likely([ballot.mean_logprob for ballot in ballots])
            if method == "agree":
                winner = elect(ballots).winner
            elif tournament_winner is not None:
                winner = tournament_winner
            answer = ballots[winner].answer
            n_agreeing = counts[answer] if answer is not None else 0
        return ReplyPick(
            method=method, index=eligible[winner][0] if eligible else 0, n_agreeing=n_agreeing,
            n_counted=len(self._complete), n_started=self._n_started, n_requested=self.n_replies,
        )  # fmt: skip
