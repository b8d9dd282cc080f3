"""Message tree: the active path through branches, and removal of subtrees."""

from __future__ import annotations

import pytest

from edgechat.chat.messages import Message
from edgechat.chat.tree import MessageTree
from edgechat.errors import UsageError


@pytest.fixture
def tree() -> MessageTree:
    """Return root - (a - a2, b): two alternatives below a root, the newer one active."""
    tree = MessageTree()
    for message_id, parent_id in (("root", None), ("a", "root"), ("a2", "a"), ("b", "root")):
        tree.add(Message(id=message_id, parent_id=parent_id, role="user"))
    return tree


def active_ids(tree: MessageTree) -> list[str]:
    return [m.id for m in tree.path]


def test_added_message_becomes_the_head(tree: MessageTree) -> None:
    assert active_ids(tree) == ["root", "b"]
    assert tree.alternatives("b") == ["a", "b"]


def test_selected_branch_continues_to_its_last_active_leaf(tree: MessageTree) -> None:
    tree.select_branch("a")
    assert active_ids(tree) == ["root", "a", "a2"]
    tree.set_head("a")
    assert active_ids(tree) == ["root", "a"]


def test_removing_the_active_branch_activates_the_newest_alternative(tree: MessageTree) -> None:
    tree.select_branch("a2")
    assert [m.id for m in tree.remove("a")] == ["a", "a2"]
    assert active_ids(tree) == ["root", "b"]
    tree.remove("b")
    assert active_ids(tree) == ["root"]
    tree.remove("root")
    assert (len(tree), tree.head) == (0, None)


def test_missing_message_raises_usage_error(tree: MessageTree) -> None:
    assert tree.message_or_head(None).id == "b"
    assert tree.message_or_head("a").id == "a"
    for message_id, empty_or_full in (("x", tree), (None, MessageTree())):
        with pytest.raises(UsageError, match="has no message"):
            empty_or_full.message_or_head(message_id)
