r"""Formulas as Unicode: meaning is kept, everything else stays as it is written, hostile input costs little."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.tui.render.formulas import convert_formula
from edgechat.tui.render.palette import ASCII_GLYPHS, Palette
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
        r"\left(", "^", r"\verb|x|", "",
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
    started_at = time.process_time()
    assert convert_formula(f"$${HOSTILE[number]}$$")
    assert time.process_time() - started_at < 1  # under 0.03 s alone


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
    assert not set(shown) & set("\ue000\ue001\ue002\ue003")


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
