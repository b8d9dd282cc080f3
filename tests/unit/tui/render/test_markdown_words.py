"""Every word of a reply is on the screen: tables, images, links, formulas, deep nesting, and any mixture of them."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile_texts import HOSTILE_TEXTS
from tests.time_limit import ends_within
from tests.unit.tui.layouts import PALETTE, make_entry, rendered_rows

URL = "https://huggingface.co/bartowski/SmolLM2-135M-Instruct-GGUF/resolve/main/model.gguf"
WIDE_TABLE = (
    "| alpha | bravo | charlie | delta | echo | foxtrot | golf | hotel | india | juliet |\n" + "|-" * 10 + "|\n"
    "| kilometres | limestone | microphone | november | oscillator | papers | quebecois | romeos | sierras | tangos |\n"
)
LINK_TABLE = f"| Name | Link |\n|---|---|\n| SmolLM | {URL} |\n| Qwen | short |\n"


def show(source: str, width: int) -> list[str]:
    return [row.rstrip() for row in rendered_rows(make_entry(source), width)]


def words_of(source: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}", html.unescape(source)))


def assert_all_words_shown(source: str, width: int) -> None:
    rows = show(source, width)
    assert all(len(row) <= width for row in rows)
    shown = words_of(" ".join(rows))
    joined = "".join(row.strip("▌ ") for row in rows)  # a word that is longer than a row is continued in the next one
    missing = {word for word in words_of(source) if word not in shown and word not in joined}
    assert not missing, "\n".join(rows)


@pytest.mark.parametrize("width", [20, 40, 64, 80, 120])
@pytest.mark.parametrize("table", [WIDE_TABLE, LINK_TABLE], ids=["ten columns", "link"])
def test_every_word_of_every_cell_is_readable(table: str, width: int) -> None:
    assert_all_words_shown(table, width)
    assert "…" not in "".join(show(table, width))


def test_table_with_room_has_columns_and_a_narrow_one_has_records() -> None:
    assert show("|Name|Size|\n|-|-|\n|one|two words|\n", 40) == [" Name  Size", " ───────────────", " one   two words"]
    assert show("|Name|Size|\n|-|-|\n|one|two words|\n|three|four|\n", 14) == [
        " Name   Size", " ────────────", " one    two", "        words", " three  four",
    ]  # fmt: skip
    assert show("|Name|Size|\n|-|-|\n|one|two words|\n|three|four|\n", 10) == [
        "Name: one", "Size: two", "words", "", "Name:", "three", "Size: four"
    ]  # fmt: skip
    rows = show(LINK_TABLE, 64)
    assert rows[0] == "Name: SmolLM"
    assert "".join(rows[2:4]) == URL
    assert rows[-2:] == ["Name: Qwen", "Link: short"]


def test_table_of_chinese_text_keeps_its_columns() -> None:
    rows = show("|\u540d|\u8bf4\u660e|\n|-|-|\n|\u4e00|" + "\u4e2d\u6587\u8bf4\u660e" * 20 + "|\n", 40)
    assert rows[0].split() == ["\u540d", "\u8bf4\u660e"]
    assert "".join(rows[2:]).replace(" ", "") == "\u4e00" + "\u4e2d\u6587\u8bf4\u660e" * 20


def test_cells_without_a_column_are_shown() -> None:
    assert "2 | extra cell" in "\n".join(show("|a|b|\n|-|-|\n|1|2|extra **cell**|\n", 40))


def test_bars_in_code_and_formulas_do_not_divide_cells() -> None:
    rows = show("|a|b|\n|-|-|\n|`p|q`|$x|y$|\n", 40)
    assert rows[2].split() == ["p|q", "x|y"]


def test_image_keeps_its_place_and_links_show_target_and_title() -> None:
    assert show('First ![a picture](http://x/p.png "Title") then *more*.', 80) == [
        'First [image] a picture (http://x/p.png "Title") then more.'
    ]
    assert show('See [text](http://x/\u00e4 "Title"), <http://y/\u00e4> and [![badge](b.svg)](http://z).', 80) == [
        'See text (http://x/\u00e4 "Title"), http://y/\u00e4 and [image] badge (b.svg) (http://z).'
    ]  # fmt: skip
    assert show("[1]: http://example.com/page 'Unused'", 80) == ["[1]: http://example.com/page 'Unused'"]


def test_formulas_are_unicode_while_prices_and_code_stay_as_they_are() -> None:
    source = (
        r"Let \(x\), \[ a & b \\ c & d \], $a_1*b_2*c$, $$\{x\}$$ and \{y\}; **$z*2$** costs $5 and $10 *now*, `$c$`."
    )
    assert (
        " ".join(show(source, 200))
        == "Let x, a b c d, a\u2081*b\u2082*c, {x} and \\{y\\}; z*2 costs $5 and $10 now, $c$."
    )
    display = "Text\n\\[\na\n+ b \\\\\n= c\n\\]\nmore\n\n$$\nx_1*y\n\n- z\n$$\n"
    assert show(display, 40) == ["Text", "a + b", "= c", "more", "", "x\u2081*y - z"]
    unknown = "\\[\n\\nosuch{a}\n+ b\n\\]\n"
    assert show(unknown, 40) == unknown.rstrip("\n").split("\n")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), max_size=40))
def test_formulas_look_the_same_while_streaming(sizes: list[int]) -> None:
    source = (
        "Text \\(a_1*b*c\\)\n\\[\na\n+ b \\\\\n\n- c\n\\]\n"
        "| a | $x|y$ |\n|-|-|\n| `p|q` | $$*x*$$ |\n\n$5 and $6 *em*\n"
    )
    entry = make_entry("")
    entry.start_streaming()
    rest = source
    for size in [*sizes, len(source)]:
        entry.append(rest[:size], "")
        rendered_rows(entry, 50)
        rest = rest[size:]
    entry.finish(make_entry(source).message)
    assert [row.rstrip() for row in rendered_rows(entry, 50)] == show(source, 50)


WORDS = st.sampled_from(["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet"])
INLINE = st.one_of(
    WORDS, WORDS.map("**{}**".format), WORDS.map("*{}*".format), WORDS.map("`{}`".format), WORDS.map("${}_1$".format),
    WORDS.map("\\({}*x\\)".format), WORDS.map("![{} picture](http://img/src)".format), WORDS.map("~~{}~~".format),
    WORDS.map("[{}](http://host/path 'title')".format), WORDS.map("<b>{}</b>".format), WORDS.map("{}&amp;".format),
    st.sampled_from(["[", "]", "*", "_", "`", "$", "|", "\\", "<", "#", "> ", "- ", "1. ", "  ", "$$", "\\["]),
)  # fmt: skip
LINE = st.tuples(
    st.sampled_from(["", "", "# ", "- ", "  - ", "1. ", "> ", ">> ", "| ", "    ", "\t", "[ref]: http://x ", "$$ "]),
    st.lists(INLINE, max_size=6).map(" ".join),
).map("".join)
CELLS = st.lists(st.lists(INLINE, max_size=3).map(" ".join), min_size=1, max_size=6).map(" | ".join)
TABLE = st.lists(CELLS, min_size=1, max_size=4).map(
    lambda rows: "\n".join([rows[0], "|".join("-" for _ in rows[0].split(" | ")), *rows[1:]])
)
DOCUMENTS = st.lists(st.one_of(LINE, TABLE, st.just("")), max_size=12).map("\n".join)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS, st.integers(12, 100))
def test_every_word_of_any_markdown_is_shown(source: str, width: int) -> None:
    assert_all_words_shown(source, width)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS, st.integers(1, 12))
def test_every_letter_is_shown_on_the_narrowest_screens(source: str, width: int) -> None:
    letters = re.sub(r"[\W\d_]", "", "".join(show(source, width)))
    for letter in set(re.sub(r"[\W\d_]", "", source.replace("&amp;", ""))):
        assert letters.count(letter) >= source.replace("&amp;", "").count(letter)


HOSTILE = [
    *HOSTILE_TEXTS, "> " * 10_000 + "deep", ">" * 10_000 + "deep", "- " * 10_000 + "deep", "1. " * 5_000 + "deep",
    "\n".join("> " * i + "quote" for i in range(200)), "\n".join("  " * i + "- item" for i in range(200)),
    "long " * 200_000, "run" * 350_000, "[" * 1_000_000, "![" * 200_000, "\\[" * 100_000, "$" * 200_000,
    "**a" * 100_000, "|" * 100_000, "|a" * 2000 + "\n" + "|-" * 2000 + "\n" + "|b" * 2000, "\u4e2d" * 300_000,
    "\u0e01\u0e47" * 100_000, "| " + " | ".join("c" * 40 for _ in range(40)) + " |\n" + "|-" * 40 + "|\n",
    "$$\n" * 50_000,
    "\\begin{a}\n" * 50_000,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_layout_of_hostile_text_is_fast_and_complete(number: int) -> None:
    source = HOSTILE[number]
    entry = make_entry(source)
    with ends_within():
        blocks = entry.blocks
    shown_words: set[str] = set()
    for block in blocks[:40]:
        with ends_within():  # takes less than 0.2 s
            block.lay_out(80, PALETTE)
        rows = [block.row(i).text for i in range(block.height(80))]
        shown_words |= words_of("".join(rows)) | words_of(" ".join(rows))
    if len(blocks) <= 40:
        assert {word for word in words_of(source) if len(word) <= 40} <= shown_words | {"lt", "amp"}
