"""Doubts about a reply: low mean logprob, different answers, "I don't know", and nothing else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.agreement.doubts import Doubt, find_doubt, is_dont_know


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I don\u2019t know who that is.",
        "  I'm sorry, but I don't know the answer.",
        "Sorry, I cannot answer that.",
        "I am not sure what you mean.",
        "I'm sorry, but I can't assist with that.",
        "Unfortunately, I do not have enough information to say.",
        "I don't have access to the internet.",
        "As an AI language model, I cannot tell the future.",
    ],
)
def test_reply_that_does_not_know_is_recognized(text: str) -> None:
    assert is_dont_know(text)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 42.",
        "Whether I don't know it or not, it is 42.",
        "She said: I don't know.",
        "I know that the answer is 3.",
        "I am sure that it is Paris.",
        "Sorry is an English word.",
        "I think so. I don't know why.",
        "",
    ],
)
def test_other_replies_are_not(text: str) -> None:
    assert not is_dont_know(text)


def _find(texts: list[str], mean_logprob: float | None = None, **checks: object) -> Doubt | None:
    values: dict[str, object] = {"min_logprob": None, "dont_know": False, "agree": False, **checks}
    return find_doubt(texts, mean_logprob, **values)  # type: ignore[arg-type]


def test_low_logprob_is_a_doubt_with_its_numbers() -> None:
    doubt = _find(["Paris"], -1.204, min_logprob=-0.8)
    assert doubt == Doubt(kind="logprob", value=-1.204, threshold=-0.8)
    assert doubt.describe() == "mean log probability -1.20 below -0.80"
    assert _find(["Paris"], -0.8, min_logprob=-0.8) is None
    assert _find(["Paris"], None, min_logprob=-0.8) is None, "a remote model reports no logprob"
    assert _find(["Paris"], math.nan, min_logprob=-0.8) is not None


def test_different_answers_are_a_doubt() -> None:
    assert _find(["The answer is 4.", "The answer is 5."], agree=True) == Doubt(kind="disagreement")
    assert _find(["The answer is 4.", "So: the answer is 4."], agree=True) is None
    assert _find(["The answer is 4.", "The answer is 5."]) is None


def test_free_text_cannot_disagree() -> None:
    poems = [
        f"The {word} is wide, and nobody ever knows how far it goes or where it ends" * 3 for word in ("sea", "sky")
    ]
    assert _find(poems, agree=True) is None


def test_empty_reply_is_a_doubt() -> None:
    assert _find([" \n"]) == Doubt(kind="empty")


def test_unknown_answer_is_a_doubt_only_if_it_is_checked() -> None:
    assert _find(["I don't know."], dont_know=True) == Doubt(kind="dont_know")
    assert _find(["I don't know."]) is None


@given(st.floats(-10, 0), st.floats(-10, 0), st.floats(-10, 0))
def test_higher_threshold_never_removes_a_doubt(value: float, low: float, high: float) -> None:
    low, high = sorted((low, high))
    if _find(["x"], value, min_logprob=low) is not None:
        assert _find(["x"], value, min_logprob=high) is not None


@given(st.text(max_size=400), st.text(max_size=400))
def test_any_text_can_be_checked(text: str, other: str) -> None:
    doubt = _find([text, other], -0.5, min_logprob=-1.0, dont_know=True, agree=True)
    assert doubt is None or doubt.describe()
