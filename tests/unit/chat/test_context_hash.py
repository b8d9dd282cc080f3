"""Hash of the instructions of a reply."""

from __future__ import annotations

from edgechat.chat.context_hash import hash_context


def test_hash_differs_with_each_part_and_is_empty_without_any() -> None:
    hashes = [hash_context("a"), hash_context("b"), hash_context("", "a"), hash_context("a", "b"), hash_context("ab")]
    assert hash_context("") == ""
    assert len(set(hashes)) == len(hashes)
    assert all(len(text) == 16 for text in hashes)


def test_text_with_a_lone_surrogate_has_a_hash() -> None:
    assert hash_context("\udcff") != hash_context("\udcfe")
