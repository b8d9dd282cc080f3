"""Variants of conversations: none loses a text, and each step changes only what a template may reject."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.omissions import find_omitted
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.variants import alternate_roles, iterate_variants, move_results, split_calls, split_texts
from tests.step_count import takes_linear_time
from tests.unit.prompt.test_roles import make


def call(*ids: str) -> PromptMessage:
    return PromptMessage("assistant", "", extra_fields={"tool_calls": [{"id": call_id} for call_id in ids]})


def result(call_id: str, text: str = "sunny") -> PromptMessage:
    return PromptMessage("tool", text, extra_fields={"tool_call_id": call_id})


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


def test_parallel_calls_become_replies_with_their_results() -> None:
    several = msgspec.structs.replace(call("1", "2"), content="I look.", reasoning="Hmm")
    first = msgspec.structs.replace(call("1"), content="I look.", reasoning="Hmm")
    user = PromptMessage("user", "Hi")
    assert split_calls([several, result("2"), result("1"), user]) == [first, result("1"), call("2"), result("2"), user]
    assert split_calls([several, result("1")]) == [first, result("1"), call("2")]
    assert split_calls([call("1"), result("1"), result("1")]) == [call("1"), result("1"), result("1")]
    # Without IDs, the order counts.
    results = [result("", text) for text in "abc"]
    assert split_calls([call("", ""), *results]) == [call(""), results[0], call(""), results[1], results[2]]


def test_results_move_behind_their_calls() -> None:
    user, system = PromptMessage("user", "Hi"), PromptMessage("system", "Be brief.")
    assert move_results([call("1"), call("2"), user, result("2"), result("1")]) == [
        call("1"), result("1"), call("2"), result("2"), user
    ]  # fmt: skip
    again = [call("1"), result("1"), call("1"), result("1")]
    assert move_results(again) == again  # many clients number the calls of each reply
    orphan = PromptMessage("user", "<tool_response>\na\n</tool_response>")
    assert move_results([system, result("1", "a")]) == [system, orphan]
    assert move_results([call("1"), result("1"), result("2", "a")]) == [call("1"), result("1"), orphan]


def test_roles_alternate_around_calls() -> None:
    user, text, other = PromptMessage("user", "Hi"), PromptMessage("assistant", "A"), PromptMessage("assistant", "B")
    turn = [call("1"), result("1")]
    interrupted = PromptMessage("assistant", "(interrupted)")
    assert alternate_roles([user, *turn, user]) == [user, *turn, interrupted, user]
    assert alternate_roles([user, text, *turn, other, user]) == [
        user, *turn, PromptMessage("assistant", "A\n\nB"), user
    ]  # fmt: skip
    assert alternate_roles([user, *turn, text, *turn]) == [user, text, *turn, *turn]
    assert alternate_roles([user, text, user, text]) == [user, text, user, text]


def test_variants_of_long_conversations_take_linear_time() -> None:
    def make_turns(ids: list[str]) -> list[PromptMessage]:
        return [message for i in ids for message in (PromptMessage("user", i), call(i), result(i))]

    def make_many_calls(ids: list[str]) -> list[PromptMessage]:
        return [call(*ids), *map(result, reversed(ids))]

    def prepare(n_turns: int) -> Callable[[], object]:
        messages = make_messages([str(i) for i in range(n_turns)])
        return lambda: function(messages)

    for make_messages in (make_turns, make_many_calls):
        for function in (move_results, split_calls, split_texts, alternate_roles):
            assert takes_linear_time(prepare), (make_messages, function)
