"""Variants of conversations: none loses a text, and each step changes only what a template may reject."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.omissions import find_omitted
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.variants import iterate_variants, split_texts
from tests.unit.prompt.test_roles import make


@given(st.lists(st.tuples(st.sampled_from("suat"), st.text("xyz", min_size=1, max_size=3)), max_size=6))
def test_no_variant_loses_a_content(parts: list[tuple[str, str]]) -> None:
    messages = make(*(f"{role} {text}" for role, text in parts))
    for variant in iterate_variants(messages):
        text = "\n\n".join(m.content for m in variant)
        assert find_omitted(messages, text) is None
        assert all(m.content in text for m in messages)


def test_text_beside_a_call_becomes_a_reply_of_its_own() -> None:
    calls = {"tool_calls": [{"id": "1"}]}
    result = PromptMessage("tool", "sunny")
    messages = [PromptMessage("assistant", "I look.", "Hmm", calls), result, PromptMessage("assistant", "", "", calls)]
    assert split_texts(messages) == [
        PromptMessage("assistant", "I look.", "Hmm"), PromptMessage("assistant", "", "", calls), *messages[1:]
    ]  # fmt: skip
