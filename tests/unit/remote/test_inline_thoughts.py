"""Reasoning in the text of a reply, which a server did not separate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.remote.inline_thoughts import InlineThoughts


def split(parts: list[str], *, is_content: bool = False) -> tuple[str, str]:
    thoughts = InlineThoughts(is_content=is_content)
    pairs = [*(thoughts.feed(part) for part in parts), thoughts.finish()]
    return "".join(reasoning for reasoning, _ in pairs), "".join(content for _, content in pairs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nHm.</think>\n\nYes.", ("Hm.", "Yes.")),
        ("\n<think>Hm", ("Hm", "")),
        ("<think>a < b </thin", ("a < b </thin", "")),
        ("Use <think> tags.", ("", "Use <think> tags.")),
        ("<thi", ("", "<thi")),
        (" Yes", ("", " Yes")),
        ("", ("", "")),
        ("[THINK]x[/THINK]y<think>z</think>", ("x", "y<think>z</think>")),
    ],
)
def test_reasoning_is_separated_however_the_text_is_cut(text: str, expected: tuple[str, str]) -> None:
    assert split([text]) == split(list(text)) == expected


def test_continued_reply_has_no_reasoning() -> None:
    assert split(["<think>x"], is_content=True) == ("", "<think>x")


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "a", "\n", " "]), max_size=12))
def test_no_text_is_lost(parts: list[str]) -> None:
    reasoning, content = split(parts)
    text = "".join(parts)
    if not text.lstrip().startswith("<think>"):
        assert (reasoning, content) == ("", text)
    else:
        rest = text.replace("<think>", "", 1).replace("</think>", "", 1)
        assert "".join((reasoning + content).split()) == "".join(rest.split())
    assert split(list(text)) == (reasoning, content)
