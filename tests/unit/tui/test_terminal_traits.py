"""Questions to the terminal, and the charset of the locale."""

from __future__ import annotations

import sys

import pytest

from edgechat.tui.terminal_traits import has_utf8_locale, make_background_query


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such variables")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, True), ({"LANG": "C"}, False), ({"LANG": "POSIX"}, False), ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),
        ({"LC_ALL": "C", "LANG": "en_US.UTF-8"}, False), ({"LANG": "en_US.UTF-8"}, True),
        ({"LANG": "de_DE.utf8"}, True),
        ({"LANG": "de_DE"}, False), ({"LANG": "de_DE.ISO-8859-1"}, False), ({"LANG": "ja_JP.eucJP"}, False),
        ({"LC_CTYPE": "UTF-8"}, True), ({"LC_CTYPE": "en_US.UTF-8", "LANG": "C"}, True),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": ""}, True),
    ],
)  # fmt: skip
def test_charset_of_the_locale(variables: dict[str, str], *, expected: bool) -> None:
    """Python sets LC_CTYPE to C.UTF-8 if the locale is C, so that value says nothing about the terminal."""
    assert has_utf8_locale(variables) == expected


def test_background_query_has_both_forms_in_tmux() -> None:
    assert make_background_query({}) == "\x1b]11;?\x1b\\"
    query = make_background_query({"TMUX": "socket,1,0"})
    assert query == "\x1b]11;?\x1b\\\x1bPtmux;\x1b\x1b]11;?\x1b\x1b\\\x1b\\"
