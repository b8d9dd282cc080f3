"""Rounds of replies, early decisions, and the chosen reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.agreement.judge import Tournament, is_first_better, make_comparison
from edgechat.prompt.agreement.picker import PICK_METHODS, PickMethod, ReplyPicker


def run(picker: ReplyPicker, answers: str) -> list[int]:
    """Finish the replies of all rounds with `answers` ("-" for an incomplete reply); return the sizes of the rounds."""
    sizes = []
    while indexes := picker.start_round():
        sizes.append(len(indexes))
        for index in indexes:
            if picker.is_decided:
                picker.finish_reply(index, "", None, "cancelled")
            else:
                answer = answers[index]
                picker.finish_reply(index, answer, -1.0 - index, "cancelled" if answer == "-" else "stop")
    return sizes


def test_vote_starts_only_the_replies_that_can_decide_it() -> None:
    picker = ReplyPicker("agree", 5, 8)
    assert run(picker, "777") == [3]
    assert picker.pick().describe() == "3 of 3 agree"
    assert picker.pick().index == 0


def test_vote_that_is_not_decided_gets_further_rounds() -> None:
    picker = ReplyPicker("agree", 5, 8)
    assert run(picker, "78777") == [3, 1]
    pick = picker.pick()
    assert (pick.index, pick.n_agreeing, pick.n_counted, pick.n_started) == (0, 3, 4, 4)
    assert pick.describe() == "3 of 4 agree"
    assert run(ReplyPicker("agree", 5, 8), "78978") == [3, 2]
    assert run(ReplyPicker("agree", 5, 8), "78788") == [3, 1, 1]
    assert run(ReplyPicker("agree", 9, 16), "777787777") == [5, 2]
    for answers in ("712345678", "771234567", "778899123", "778787878"):
        assert len(run(ReplyPicker("agree", 9, 16), answers)) <= 4


def test_rounds_are_limited_by_the_number_of_parallel_replies() -> None:
    assert run(ReplyPicker("agree", 9, 4), "777777777") == [4, 2]
    assert run(ReplyPicker("likely", 9, 4), "777777777") == [4, 4, 1]
    assert run(ReplyPicker("judge", 3, 8), "123") == [3]


def test_without_votes_the_most_likely_reply_is_picked() -> None:
    picker = ReplyPicker("agree", 3, 8)
    for index in picker.start_round():
        picker.finish_reply(index, "word " * 100, [-2.0, -1.0, -3.0][index], "stop")
    for index in picker.start_round():
        picker.finish_reply(index, "word " * 99, -2.5, "stop")
    assert picker.pick().index == 1
    assert picker.pick().describe() == "most likely of 3, no answers to compare"


def test_replies_that_all_differ_are_no_agreement() -> None:
    picker = ReplyPicker("agree", 3, 8)
    run(picker, "123")
    assert picker.pick().describe() == "most likely of 3, no two agree"
    single = ReplyPicker("agree", 3, 8)
    run(single, "1--")
    assert single.pick().describe() == "1 of 1 agree"


def test_cut_replies_have_no_vote() -> None:
    picker = ReplyPicker("agree", 3, 8)
    assert run(picker, "-77") == [2, 1]
    assert picker.pick().index == 1
    nothing = ReplyPicker("agree", 2, 8)
    run(nothing, "--")
    assert nothing.pick().index == 0
    assert nothing.pick().describe() == "no reply is complete"


def test_cut_replies_can_be_compared_but_have_no_answer() -> None:
    for method in PICK_METHODS:
        picker = ReplyPicker(method, 2, 8)
        for index in picker.start_round():
            picker.finish_reply(index, "The answer is 7", -2.0 + index, "length")
        assert picker.list_complete() == ([] if method == "agree" else [0, 1])
        assert not any(candidate and candidate.answer for candidate in picker.candidates)
        assert picker.pick().index == (0 if method == "agree" else 1)


@pytest.mark.parametrize("method", ["likely", "judge"])
def test_replies_that_are_not_cut_are_preferred(method: PickMethod) -> None:
    picker = ReplyPicker(method, 3, 8)
    picker.start_round()
    for index, reason in enumerate(["length", "stop", "length"]):
        picker.finish_reply(index, f"reply {index}", -1.0 - (index == 1), reason)
    assert picker.list_complete() == [0, 1, 2]
    assert list(picker.start_tournament("Why?")) == []
    assert (picker.pick().index, picker.pick().n_counted) == (1, 3)


def test_stopped_picker_picks_from_the_replies_so_far() -> None:
    picker = ReplyPicker("likely", 4, 4)
    picker.start_round()
    picker.finish_reply(2, "seven", -1.5, "stop")
    picker.finish_reply(3, "eight", -0.5, "cancelled")
    assert picker.candidates[0] is None
    assert picker.pick().index == 2
    assert picker.pick().describe() == "most likely of 1"


def judge(texts: list[str], logprobs: list[float | None], *, prefers: str, always_first: bool = False) -> int | None:
    tournament = Tournament("Why?", texts, logprobs)
    assert tournament.winner is None
    for n_comparisons, [message] in enumerate(tournament, 1):
        assert n_comparisons <= tournament.max_comparisons
        tournament.verdict = "A" if always_first or f"Reply A:\n{prefers}\n" in message.content else "B"
    return tournament.winner


def test_judge_finds_the_preferred_reply_wherever_it_is() -> None:
    for position in range(4):
        texts = ["x", "y", "z"]
        texts.insert(position, "best")
        assert judge(texts, [None] * 4, prefers="best") == position


def test_contradicting_verdicts_leave_the_choice_to_the_mean_logprob() -> None:
    assert judge(["a", "b", "c"], [-2.0, -1.0, -3.0], prefers="", always_first=True) == 1
    assert judge(["a", "a"], [-2.0, -1.0], prefers="") == 0
    assert judge(["a"], [None], prefers="a") is None


def test_judge_compares_complete_replies_only() -> None:
    picker = ReplyPicker("judge", 3, 8)
    run(picker, "1-3")
    tournament = picker.start_tournament("Why?")
    [message] = next(iter(tournament))
    assert "Reply A:\n1\n\nReply B:\n3\n" in message.content
    assert picker.list_complete() == [0, 2]
    assert picker.pick(1).index == 2
    assert picker.pick().index == 0


def test_comparison_contains_question_and_replies() -> None:
    [message] = make_comparison("Why?" * 3000, "first", "x" * 9000 + "second")
    assert "Reply A:\nfirst" in message.content
    assert "second" in message.content
    assert len(message.content) < 9000
    assert is_first_better(" A")
    assert not is_first_better("B")


@given(
    method=st.sampled_from(PICK_METHODS),
    n_replies=st.integers(1, 12),
    max_parallel=st.integers(1, 8),
    answers=st.text("123-", min_size=12, max_size=12),
)
def test_every_picker_ends_with_a_valid_pick(
    method: PickMethod, n_replies: int, max_parallel: int, answers: str
) -> None:
    picker = ReplyPicker(method, n_replies, max_parallel)
    sizes = run(picker, answers)
    assert max(sizes) <= max_parallel
    assert picker.n_started == sum(sizes) <= n_replies
    pick = picker.pick()
    assert 0 <= pick.index < picker.n_started
    assert pick.n_agreeing <= pick.n_counted <= pick.n_started
    if method == "agree":  # the early end does not change the answer
        full = [answer for answer in answers[:n_replies] if answer != "-"]
        votes = {answer: full.count(answer) for answer in full}
        if full and list(votes.values()).count(max(votes.values())) == 1:
            assert answers[pick.index] == max(votes, key=lambda answer: votes[answer])
