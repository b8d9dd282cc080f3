"""Stop strings in streamed text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.engine.stop_strings import StopStringFilter, find_partial_match_length


@given(st.lists(st.text("\nUser: x", max_size=4)))
def test_output_ends_before_the_stop_string(pieces: list[str]) -> None:
    stop_filter = StopStringFilter(["\nUser:"])
    text = "".join(stop_filter.feed(piece) for piece in pieces) + stop_filter.flush()
    whole = "".join(pieces)
    assert text == whole.split("\nUser:")[0]
    assert stop_filter.is_stopped == ("\nUser:" in whole)


def test_filter_tells_which_stop_string_appeared_first() -> None:
    stop_filter = StopStringFilter(["end", "b", "never"])
    assert stop_filter.stop_string == ""
    assert stop_filter.feed("a b end") == "a "
    assert stop_filter.stop_string == "b"


def test_partial_match_is_the_longest_prefix_at_the_end_of_the_text() -> None:
    texts = ("", "a", "a\n", "a\nUs", "\nUser")
    assert [find_partial_match_length(text, "\nUser:") for text in texts] == [0, 0, 1, 3, 5]
