r"""Formulas as Unicode: meaning is kept, everything else stays as it is written, hostile input costs little."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.tui.render.formulas import convert_formula
from edgechat.tui.render.palette import ASCII_GLYPHS, Palette
from tests.time_limit import ends_within
from tests.unit.tui.layouts import PALETTE, make_entry


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (r"x^2 + y_{ij}^{n+1}", "x² + yᵢⱼⁿ⁺¹"),
        (r"\frac{a+b}{2c}", "(a+b)/(2c)"),
        (r"\frac{1}{2}x", "(1/2)x"),
        (r"\frac{dy}{dx} = \frac12", "dy/dx = 1/2"),
        (r"x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}", "x = (-b ± √(b² - 4ac))/(2a)"),
        (r"\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}", "∫₀^∞e^(-x²) dx = √π/2"),
        (r"\sum_{k=0}^{n} \binom{n}{k}", "∑ₖ₌₀ⁿ (n choose k)"),
        (r"A^T, 10^{-3}, 90^\circ, f''(x)", "Aᵀ, 10⁻³, 90°, f′′(x)"),
        (r"\left\{ x \in \mathbb{R} \mid x\geq0 \right\}", "{ x ∈ ℝ ∣ x ≥ 0 }"),
        (r"\log_2 n \leq \cos^2\theta", "log₂ n ≤ cos² θ"),
        (r"\lim_{x\to 0} \frac{\sin x}{x}", "lim_(x → 0) (sin x)/x"),
        (r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}", "(a b; c d)"),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", "a = b\n= c"),
        (r"\begin{cases} 1 & \text{if } x>0 \\ 0 & \text{else} \end{cases}", "{ 1 if x>0; 0 else"),
        (r"\hat{x} \cdot \mathrm{H_2O}", "x̂ · H₂O"),
        (r"\boxed{42}", "[42]"),
        (r"2^k \cdot \frac{n}{2^k}", "2ᵏ · n/2ᵏ"),
        (r"\operatorname*{argmax}_x P(A|B)", "argmaxₓ P(A|B)"),
        (r"\left. x \right|_0^1", "x |₀¹"),
        (r"\frac{a}{b}\frac{c}{d}", "(a/b)(c/d)"),
        (r"\frac{1}{2}\frac{3}{4}", "(1/2)(3/4)"),
        (r"a/\frac{b}{c}", "a/(b/c)"),
        (r"\frac{a}{b} / \frac{c}{d}", "(a/b) / (c/d)"),
        (r"\frac{1}{n(n+1)}", "1/(n(n+1))"),
        (r"\frac{1}{\alpha\beta}", "1/(αβ)"),
        (r"\frac{1}{\sqrt{2}}, \frac{\partial f}{\partial x}, \frac{1}{10^{-3}}", "1/√2, ∂f/∂x, 1/10⁻³"),
        (r"\sqrt{ab}c, \sqrt{ab}, \sqrt{a}b, \sqrt{2}\pi", "(√(ab))c, √(ab), (√a)b, (√2)π"),
        (r"\sqrt{x^2}, \sqrt{x}^2, {x^a}^2", "√x², (√x)², (xᵃ)²"),
        (r"y\sqrt[3]{x}", "y(³√x)"),
        (r"e^{i\pi}x, e^{i\pi x}, e^\pi x", "e^(iπ)x, e^(iπx), e^πx"),
        (r"v_{avg}t, v_{avgt}", "v_(avg)t, v_(avgt)"),
        (r"\frac{a}{b}!", "(a/b)!"),
        (r"\sin\frac{a}{b} + \sum\frac{1}{n}.", "sin(a/b) + ∑(1/n)."),
        (r"x = \frac{a}{b}.", "x = a/b."),
        (r"100\% \$5", "100% $5"),
        ("x", "x"),
    ],
)
def test_formula_has_a_unicode_form(source: str, shown: str) -> None:
    assert convert_formula(rf"\({source}\)") == convert_formula(f"$${source}$$") == shown


@pytest.mark.parametrize(
    "source",
    [
        r"\nosuch{a}", r"\underbrace{a}_{b}", r"\ce{H2O}", r"\input{/etc/passwd}", r"\includegraphics{x.png}",
        r"\frac{a}", "{a", "a}", r"\begin{tikzpicture}\draw (0,0);\end{tikzpicture}", "a % comment", r"\vec{AB}",
        r"\left(", "^", r"\verb|x|", "", r"\sqrt[\alpha]{x}",
    ],
)  # fmt: skip
def test_what_has_no_unicode_form_stays_as_it_is(source: str) -> None:
    formula = rf"\({source}\)"
    assert convert_formula(formula) == formula or (source == r"\left(" and convert_formula(formula) == "(")


@pytest.mark.parametrize("formula", [r"\[ x", "$$", r"\{", "|", r"\begin{align} x", "$x"])
def test_incomplete_formula_and_other_marks_stay_as_they_are(formula: str) -> None:
    assert convert_formula(formula) == formula


HOSTILE = [
    "{" * 500_000 + "}" * 500_000, "^" * 1_000_000, r"\frac" * 200_000, r"\left(" * 100_000, r"\begin{a}" * 100_000,
    "{" * 900 + "}" * 900, "x^" * 999, r"\frac" * 390, r"\sqrt{" * 270 + "}" * 270, r"\begin{matrix}" * 130,
    r"\frac{" * 150 + "}{b}" * 150, "x^{" * 490 + "}" * 490, "\\\\" * 999, "&" * 1999, r"\hat" * 480, r"\text{$" * 200,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_formula_takes_little_time(number: int) -> None:
    with ends_within():  # takes less than 0.03 s
        assert convert_formula(f"$${HOSTILE[number]}$$")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([
            "\\frac", "\\sqrt", "{", "}", "^", "_", "&", "\\\\", "\\left(", "\\right)", "\\text{a b}", "x", "1", " ",
            "\\alpha", "\\begin{matrix}", "\\end{matrix}", "[", "]", "\\lim", "\\mathbb", "%", "~", "'", "\n",
        ]), max_size=20,
    ).map("".join)
)  # fmt: skip
def test_any_formula_is_converted_without_marks_of_its_own(source: str) -> None:
    shown = convert_formula(f"$${source}$$")
    assert shown
    assert not set(shown) & set("\ue000\ue001\ue002\ue003\ue004")


def test_formulas_in_code_are_never_changed_and_ascii_mode_shows_the_source() -> None:
    text = "Sum $x^2$ and `$x^2$`\n\n```tex\n\\frac{a}{b} $x^2$\n```\n"
    entry = make_entry(text)
    ascii_palette = Palette({"background": "#000000"}, dark=True, ansi=False, ascii_only=True)
    assert ascii_palette.glyphs is ASCII_GLYPHS
    rows = {}
    for palette in (PALETTE, ascii_palette):
        for block in entry.blocks:
            block.lay_out(60, palette)
        rows[palette] = [block.row(i).text.strip() for block in entry.blocks for i in range(block.height(60))]
    assert rows[PALETTE][0] == "Sum x² and $x^2$"
    assert rows[ascii_palette][0] == "Sum $x^2$ and $x^2$"
    for shown in rows.values():
        assert shown[2] == r"\frac{a}{b} $x^2$"
        assert entry.text == text


Tree = tuple[Any, ...]
"""An expression: the kind ("letter", "frac", "sqrt", "^", "product" or "+") and its parts."""


def _make_list(kind: str, parts: list[Tree]) -> Tree:
    """Return a sum or a product without sums in a sum, or products in a product."""
    flat = [inner for part in parts for inner in (part[1:] if part[0] == kind else (part,))]
    return (kind, *flat)


TREES = st.recursive(
    st.sampled_from("abdnx\u03b1\u03c0").map(lambda letter: ("letter", letter)),
    lambda trees: st.one_of(
        st.tuples(st.just("frac"), trees, trees),
        st.tuples(st.just("sqrt"), trees),
        st.tuples(st.just("^"), trees, trees),
        st.lists(trees, min_size=2, max_size=3).map(lambda parts: _make_list("product", parts)),
        st.lists(trees, min_size=2, max_size=3).map(lambda parts: _make_list("+", parts)),
    ),
    max_leaves=8,
)


def write_latex(tree: Tree) -> str:
    kind, *parts = tree
    if kind == "letter":
        return {"\u03b1": "{\\alpha}", "\u03c0": "{\\pi}"}.get(parts[0], str(parts[0]))
    texts = [write_latex(part) for part in parts]
    if kind == "product":
        return "".join(f"({text})" if part[0] == "+" else text for text, part in zip(texts, parts, strict=True))
    if kind == "^":
        base = {"+": f"({texts[0]})", "product": f"{{{texts[0]}}}", "^": f"{{{texts[0]}}}"}.get(parts[0][0], texts[0])
        return f"{base}^{{{texts[1]}}}"
    return "+".join(texts) if kind == "+" else f"\\{kind}" + "".join(f"{{{text}}}" for text in texts)


SUPERSCRIPTS = dict(zip("\u1d43\u1d47\u1d48\u207f\u02e3\u207a\u207d\u207e", "abdnx+()", strict=True))


class _Reader:
    """Reads a shown formula as a person does: a radical and a slash apply to one letter or one pair of parentheses."""

    def __init__(self, text: str) -> None:
        self.text = text

    def take(self, chars: str) -> str:
        """Return the next character and go past it if it is one of `chars`; otherwise return an empty text."""
        char = self.text[:1]
        if not char or char not in chars:
            return ""
        self.text = self.text[1:]
        return char

    def sum(self) -> Tree:
        parts = [self.product()]
        while self.take("+"):
            parts.append(self.product())
        return _make_list("+", parts) if len(parts) > 1 else parts[0]

    def product(self) -> Tree:
        parts = [self.factor()]
        while self.text and self.text[0] not in "+)/":
            assert parts[-1][0] != "sqrt" or self.was_enclosed, "text after a radical"
            parts.append(self.factor())
        numerator = _make_list("product", parts) if len(parts) > 1 else parts[0]
        if not self.take("/"):
            return numerator
        fraction = ("frac", numerator, self.operand())
        assert not self.text or self.text[0] in "+)", "text after a fraction"
        return fraction

    def factor(self) -> Tree:
        self.was_enclosed = False
        if self.take("\u221a"):
            root = ("sqrt", self.operand())
            self.was_enclosed = False
            return root
        base = self.atom()
        if self.take("^"):
            base = ("^", base, self.atom())
        script = ""
        while char := self.take("".join(SUPERSCRIPTS)):
            script += SUPERSCRIPTS[char]
        return ("^", base, _Reader(script).sum()) if script else base

    def operand(self) -> Tree:
        """Return what a radical or a slash applies to: one factor, or a differential such as `dx`."""
        factor = self.factor()
        is_differential = factor == ("letter", "d") and self.text[:1].isalpha() and not self.was_enclosed
        return _make_list("product", [factor, self.factor()]) if is_differential else factor

    def atom(self) -> Tree:
        if self.take("("):
            tree = self.sum()
            assert self.take(")")
            self.was_enclosed = True
            return tree
        letter = self.take("abdnx\u03b1\u03c0")
        assert letter
        return ("letter", letter)


@settings(max_examples=400)
@given(TREES)
def test_shown_formula_has_the_meaning_of_its_source(tree: Tree) -> None:
    shown = convert_formula(f"$${write_latex(tree)}$$")
    reader = _Reader(shown)
    assert (reader.sum(), reader.text) == (tree, ""), shown
