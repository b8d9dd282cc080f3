r"""Markdown of chat messages: formulas stay as they are written; money, code and links are no formulas."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgechat.markdown import Formulas, parse, render_html
from tests.hostile_texts import HOSTILE_TEXTS
from tests.time_limit import ends_within

FORMULAS = [
    r"$x$", r"$a_1*b_2*c$", r"$\{x\}$", r"$f(x)\\g$", r"$ a_1 * b_2 $", r"$\$5$", r"$x|y$", r"$-1$", r"$5x + 3*y*2$",
    r"$$a_1*b$$", r"$$ x \\ y $$", "$$\na\n\n- b\n= c\n$$", r"\(x\)", r"\( a_1*b*c \)", "\\(a\nb\\)",
    r"\[ a & b \\ c & d \]", "\\[\na\n+ b\n= c\n\\]", "\\begin{align}\na&=b\\\\\nc&=d\n\\end{align}",
    r"\begin{pmatrix} a & *b* \\ c & d \end{pmatrix}",
]  # fmt: skip
PROSE = [
    "costs $5 and $10", "$5, $10 or *x* 20$.", "US$5 and A$6", "$HOME and $PATH", "$PATH:$HOME", "5 $ and 6 $", "$",
    "$$", "from $5 to **$10**", "**$5** and **$6**", r"\$5 *x* \$6", "a $ b", "$5 million and *more* than 3$",
    "价格$5和$6", "花了$5，他又花了10$", "$5美元和*20*$", "US$5 *or* 6 A$",  # noqa: RUF001
    "5 $ and *6*$", "$5 *now* ($x", "$5 *now*, `$c", "$A:$B and $PATH/bin:$HOME",
]  # fmt: skip


def find(source: str) -> list[str]:
    formulas = Formulas(source)
    return formulas.split(formulas.text)[1::2]


@pytest.mark.parametrize("formula", FORMULAS)
def test_formula_is_found_as_it_is_written(formula: str) -> None:
    assert find(formula) == [formula]
    if "\n\n" not in formula:
        assert find(f"word {formula} *word*, {formula}.") == [formula, formula]
    html = render_html(f"Text {formula} *word*")
    assert "<em>word</em>" in html
    assert html.count('class="math"') == 1


@pytest.mark.parametrize(
    "text",
    [
        "设{}为常数", "그{}는", "для{}где", "“{}”", "the {}th term", "{}'s", "all {}s", "({})", "x{}y", "**{}**",
    ],
)  # fmt: skip
@pytest.mark.parametrize("formula", ["$a_1*b_2*c$", r"$\{x\} *y*$", "$ a*b*c$", r"$\sin x*y*z $", r"\(a*b*c\)"])
def test_formula_is_found_beside_letters(text: str, formula: str) -> None:
    assert find(text.format(formula)) == [formula]


@pytest.mark.parametrize("formula", ["A$^*B^*$", "C$_2*x*$ and D$_3*y*$", "$x^*$y$^*$"])
def test_formula_can_be_a_part_of_a_word(formula: str) -> None:
    assert "<em>" not in render_html(formula)
    assert find(formula)


@pytest.mark.parametrize(("start", "end"), [("$", "$"), (r"\(", r"\)"), ("$$", "$$"), (r"\[", r"\]")])
def test_formula_has_any_length(start: str, end: str) -> None:
    formula = f"{start}{'a_1*b*' * 5000}c{end}"
    assert find(f"word {formula} *word*") == [formula]


@pytest.mark.parametrize("text", PROSE)
def test_money_and_variables_are_no_formulas(text: str) -> None:
    assert find(f"It {text}") == []


@pytest.mark.parametrize(
    "text",
    [
        "`$a_1$` and ``\\(x`\\)``", "```\n$a$\n\\[x\\]\n```", "~~~tex\n$$x$$\n~~~", "https://example.com/$a$/\\(b\\)",
        "[text](http://x/$a$)", "\\\\(x\\\\)", "> ```\n> $a$\n> ```", "```\n$a$",
    ],
)  # fmt: skip
def test_code_and_links_contain_no_formulas(text: str) -> None:
    assert find(text) == []


def test_braces_and_brackets_keep_their_backslash() -> None:
    assert find(r"a set \{x\}, a match of \) and \]") == [r"\{", r"\}", r"\)", r"\]"]
    assert find("still growing \\(a_1") == ["\\("]
    assert find("Text\n\\[ a \\\\ b\nc") == ["\\[ a \\\\ b\nc"]
    assert find("$$ x\n\nText") == ["$$ x"]


def test_formula_in_a_quote_or_list_loses_the_marks_of_later_lines() -> None:
    assert find("> \\[\n> a*b*\n> \\]") == ["\\[\na*b*\n\\]"]
    assert find("- $$\n  x\n  $$") == ["$$\nx\n$$"]


def test_formula_does_not_swallow_a_code_block() -> None:
    assert find("$$ open\n```\n$$\n```\n") == ["$$"]


def test_html_keeps_lines_and_signs_of_a_formula() -> None:
    html = render_html("| a | b |\n|-|-|\n| $x|y$ | `p|q` |\n\n\\[ <x> \\\\ y \\]")
    assert '<td><span class="math">$x|y$</span></td>\n<td><code>p|q</code></td>' in html
    assert '<span class="math">\\[ &lt;x&gt; \\\\ y \\]</span>' in html
    assert "<script" not in render_html("$<script>$ <script> `<script>`")


def test_html_shows_cells_without_a_column() -> None:
    assert "<td>2 | 3 | <strong>4</strong></td>" in render_html("|a|b|\n|-|-|\n|1|2|3|**4**|")


def test_private_characters_of_the_text_are_kept() -> None:
    text = "a \U00100000 $x$ \U00100001 \U0010fffd"
    formulas = Formulas(text)
    assert formulas.restore(formulas.text) == text
    assert "\U00100000" in render_html(text)


@given(
    st.lists(
        st.sampled_from(
            [
                "$",
                "$$",
                "\\(",
                "\\)",
                "\\[",
                "\\]",
                "\\",
                "`",
                "```\n",
                "a",
                " ",
                "\n",
                "> ",
                "5",
                "|",
                "*",
                "\\begin{x}",
                "\\end{x}",
                "\U00100000",
            ]
        ),
        max_size=40,
    ).map("".join)
)
@example("\\(`\U00100000`")
@example("$x$ \U00100000 $y$")
def test_formulas_are_restored_in_any_text(text: str) -> None:
    formulas = Formulas(text)
    if "> " not in text and "\n" not in text:
        assert formulas.restore(formulas.text) == text
    assert parse(text) is not None
    render_html(text)


HOSTILE = [
    *HOSTILE_TEXTS, "[" * 1_000_000, "![[" * 300_000, "\\(" * 500_000, "\\[" * 500_000, "$" * 1_000_000,
    "$a " * 300_000, "`a``b" * 200_000, "$$\n" * 300_000, "\\begin{a}" * 100_000, "*a " * 300_000, "**a" * 300_000,
    "_a" * 500_000, "a " * 500_000, "| a " * 200_000 + "\n" + "|-" * 200_000,
    "\n\n".join("a" * 50 for _ in range(20_000)),
    "> " * 10_000 + "deep", ">" * 100_000, "- " * 10_000 + "deep", "\n".join("  " * i + "- a" for i in range(1_000)),
    "```\n" * 100_000, "&amp;" * 200_000, "<" * 1_000_000, "[a](" * 250_000, "[a]" * 300_000, " " * 1_000_000 + "a",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_html_of_a_megabyte_takes_seconds_at_most(number: int) -> None:
    with ends_within():
        render_html(HOSTILE[number])
