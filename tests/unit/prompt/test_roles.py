"""Roles: merging of consecutive messages, and system prompts for templates that refuse them."""

from __future__ import annotations

import pytest

from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.roles import fold_system_prompt, merge_consecutive, order_roles
from tests.time_limit import ends_within


def test_consecutive_messages_of_a_role_become_one() -> None:
    merged = merge_consecutive(
        [
            PromptMessage("system", ""),
            PromptMessage("system", "Be brief."),
            PromptMessage("user", "One"),
            PromptMessage("user", "Two"),
            PromptMessage("user", "Three"),
            PromptMessage("assistant", "A", "first thought"),
            PromptMessage("assistant", "B", "second thought"),
        ]
    )
    assert merged == [
        PromptMessage("system", "Be brief."),
        PromptMessage("user", "One\n\nTwo\n\nThree"),
        PromptMessage("assistant", "A\n\nB", "second thought"),
    ]


def test_only_the_requested_roles_are_merged() -> None:
    messages = [PromptMessage(role, text) for role, text in (("assistant", "A"), ("assistant", "B"), ("tool", "1"))]
    assert merge_consecutive(messages, roles=("system", "user")) == messages


def test_merging_takes_linear_time() -> None:
    with ends_within():  # joining one message after the other takes minutes
        [merged] = merge_consecutive([PromptMessage("user", "x" * 100) for _ in range(100_000)])
    assert len(merged.content) == 100_000 * 102 - 2


def test_system_prompt_is_folded_into_the_first_user_message() -> None:
    system, user, reply = (PromptMessage(role, role.title()) for role in ("system", "user", "assistant"))
    assert fold_system_prompt([system, user, reply]) == [PromptMessage("user", "System\n\nUser"), reply]
    assert fold_system_prompt([system]) is fold_system_prompt([user, reply]) is fold_system_prompt([]) is None


def make(*messages: str) -> list[PromptMessage]:
    """Return messages of "role text" strings."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [PromptMessage(roles[text[0]], text[2:]) for text in messages]


@pytest.mark.parametrize(
    ("messages", "ordered"),
    [
        (make("s S", "u U", "a A", "u V"), make("s S", "u U", "a A", "u V")),
        (make("u U", "a A", "s S", "u V"), make("u U", "a A", "u S\n\nV")),
        (make("u U", "a A", "s S"), make("u U", "a A", "u S")),
        (make("u U", "a A", "s S", "t T", "u V"), make("u U", "a A", "t T", "u S\n\nV")),
        (make("a A", "u U"), make("u (start)", "a A", "u U")),
        (make("s S", "a A", "u U"), make("s S", "u (start)", "a A", "u U")),
        (make("u U", "a A", "a B"), make("u U", "a A\n\nB")),
        (make("s S"), make("u S")),
        ([], make("u (start)")),
        (make("s S", "s T"), make("s S", "u T")),
    ],
)
def test_roles_are_ordered_as_templates_expect_them(
    messages: list[PromptMessage], ordered: list[PromptMessage]
) -> None:
    assert order_roles(messages) == ordered
