r"""Convert LaTeX formulas to one or more lines of Unicode: `\frac{x^2}{2} \leq \pi` becomes `x²/2 ≤ π`.

A formula with a command that has no Unicode form is left unchanged.
"""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pylatexenc.macrospec import LatexContextDb

# Converting a formula of this length takes up to 20 ms.
_MAX_CHARS: Final = 2000
_DELIMITERS: Final = (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)"))
_NEEDS_PARSER: Final = re.compile(r"[\\^_{}~&%]")
_NO_DELIMITER: Final = re.compile(r"\\(?:left|right)\s*\.")
# One letter with its superscripts and subscripts, a number, or a differential such as `dx` or `Δt`.
_SCRIPTS: Final = r"(?:[¹²³⁰-ₜʰ-ˤᴬ-ᵪⱼⱽ]|[_^](?:[^\s(]|\([^()]*\)))*"
_ATOM: Final = rf"(?:\d+(?:\.\d+)?|[d∂Δ]?[^\W\d_][\u0300-\u036f\u20d7]?['′]*){_SCRIPTS}"
_RADICAND: Final = re.compile(_ATOM)
_DENOMINATOR: Final = re.compile(f"√?{_ATOM}")
_NUMERATOR: Final = re.compile(rf"√?{_ATOM}|[∂∇-]?[^\W\d_]+!?|-?\d+(?:\.\d+)?!?|[^\W\d_]+\([^()]*\)")
_POWER_BASE: Final = re.compile(r"\d+|.", re.DOTALL)
_FRACTION_START, _RADICAL_START, _FRACTION_END = "\ue000", "\ue004", "\ue001"
"""Marks around a fraction or a radical; `_finish_fraction` replaces them with parentheses where these are needed."""
_SAFE_BEFORE: Final = re.compile(r"(?:^|[-−+=<>,;(\[{\n]|(?<![/÷!^_ ]) +)$")
_SAFE_AFTER: Final = re.compile(r" *(?:$|[-−+=<>,;)\]}\n]|[.:](?:\s|$))| +(?![/÷!^_])")
_NAME_START, _NAME_END = "\ue002", "\ue003"
"""Marks around the name of a function; `_end_name` puts a space between the name and a letter or digit after it."""
_FRACTION: Final = re.compile(f"([{_FRACTION_START}{_RADICAL_START}])([^{_FRACTION_END}]*){_FRACTION_END}")

_TEXT_MACROS: Final = frozenset({
    "text", "textrm", "textit", "textbf", "textsf", "texttt", "mbox", "mathrm", "mathbf", "mathit", "mathsf", "mathtt",
    "boldsymbol", "bm", "operatorname", "emph",
})  # fmt: skip
_IGNORED_MACROS: Final = frozenset({
    "left", "right", "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl",
    "Biggr", "displaystyle", "textstyle", "limits", "nolimits", "nonumber", "notag", "!",
})  # fmt: skip
_FUNCTIONS: Final = frozenset({
    "arccos", "arcsin", "arctan", "arg", "cos", "cosh", "cot", "coth", "csc", "deg", "det", "dim", "exp", "gcd", "hom",
    "inf", "ker", "lg", "lim", "liminf", "limsup", "ln", "log", "max", "min", "Pr", "sec", "sin", "sinh", "sup", "tan",
    "tanh",
})  # fmt: skip
_SYMBOLS: Final = {
    "ne": "≠", "iff": "⇔", "implies": "⇒", "impliedby": "⇐", "land": "∧", "lor": "∨", "lnot": "¬", "neg": "¬",
    "mapsto": "↦", "perp": "⊥", "lbrace": "{", "rbrace": "}", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉",
    "mid": "∣", "lbrack": "[", "rbrack": "]", "bmod": "mod", "colon": ":", "cdot": "·", "star": "⋆", "cdots": "⋯",
    "dots": "…", "ldots": "…", ",": " ", ":": " ", ";": " ", " ": " ", "quad": "  ", "qquad": "  ", "{": "{", "}": "}",
    "|": "‖", "vert": "|", "Vert": "‖", "circ": "∘", "prime": "′", "hbar": "ℏ", "%": "%", "$": "$", "&": "&", "_": "_",
    "#": "#", "longrightarrow": "⟶", "gets": "←", "triangle": "△", "square": "□", "blacksquare": "■", "checkmark": "✓",
}  # fmt: skip
_UNSPACED: Final = frozenset("∑∏∐∫∬∭∮√∂∇∞∀∃∄¬∅∠∁°∘")
_ACCENTS: Final = {
    "hat": "\u0302", "widehat": "\u0302", "bar": "\u0304", "overline": "\u0305", "underline": "\u0332", "vec": "\u20d7",
    "dot": "\u0307", "ddot": "\u0308", "tilde": "\u0303", "widetilde": "\u0303", "check": "\u030c", "acute": "\u0301",
}  # fmt: skip
_ALPHABETS: Final = {
    "mathbb": ("DOUBLE-STRUCK", "MATHEMATICAL DOUBLE-STRUCK"), "mathcal": ("SCRIPT", "MATHEMATICAL SCRIPT"),
    "mathscr": ("SCRIPT", "MATHEMATICAL SCRIPT"), "mathfrak": ("BLACK-LETTER", "MATHEMATICAL FRAKTUR"),
}  # fmt: skip
_FRACTIONS: Final = frozenset({"frac", "dfrac", "tfrac", "cfrac"})
_TEMPLATES: Final = {
    "binom": "({} choose {})", "dbinom": "({} choose {})", "tbinom": "({} choose {})", "boxed": "[{}]",
    "pmod": " (mod {})", "tag": "  ({})",
}  # fmt: skip
_LINE_ENVIRONMENTS: Final = frozenset({"align", "aligned", "alignat", "equation", "gather", "gathered", "split"})
_MATRICES: Final = {
    "matrix": "[]", "smallmatrix": "[]", "pmatrix": "()", "bmatrix": "[]", "Bmatrix": "{}", "vmatrix": "||",
    "Vmatrix": "‖‖", "array": "[]", "cases": "{}",
}  # fmt: skip


class _NoUnicodeError(Exception):
    """A part of the formula has no Unicode form."""


def remove_delimiters(formula: str) -> str | None:
    r"""Remove the delimiters of a formula such as `$x$` or `\[x\]`; None if it is not closed."""
    for start, end in _DELIMITERS:
        if formula.startswith(start):
            is_closed = formula.endswith(end) and len(formula) >= len(start) + len(end)
            return formula[len(start) : -len(end)].strip() if is_closed else None
    return formula if formula.startswith(r"\begin{") and formula.endswith("}") else None


@functools.lru_cache(1024)
def convert_formula(formula: str) -> str:
    """Convert a formula with delimiters to Unicode without them; return it unchanged if it has no Unicode form."""
    content = remove_delimiters(formula)
    if not content:
        return formula
    if not _NEEDS_PARSER.search(content):
        return content.replace("'", "′")
    if len(content) > _MAX_CHARS:
        return formula
    try:
        return _convert(content) or formula
    except Exception:  # noqa: BLE001  (if the library's parser fails for any reason, the source is shown)
        return formula


def _convert(content: str) -> str:
    from pylatexenc.latexwalker import LatexWalker

    logging.getLogger("pylatexenc").disabled = True  # its warnings would be written over the screen
    content = _NO_DELIMITER.sub("", content)
    walker = LatexWalker(content, latex_context=_make_context(), tolerant_parsing=False)
    text = _finish_marks(_join(walker.get_latex_nodes()[0]))
    lines = (re.sub(r"[ \t\r]+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(re.sub(r" (?=[,;)\]])|(?<=[(\[]) ", "", line) for line in lines if line)


@functools.cache
def _make_context() -> LatexContextDb:
    r"""Return pylatexenc's default commands and those of this module; `^` and `_` are commands with one argument."""
    from pylatexenc.latexwalker import get_default_latex_context_db
    from pylatexenc.macrospec import MacroStandardArgsParser, SpecialsSpec, std_macro

    database = get_default_latex_context_db()
    macros = [std_macro(name, "{") for name in (*_TEXT_MACROS - {"operatorname"}, *_ACCENTS, *_ALPHABETS)]
    macros += [std_macro(name, "{" * template.count("{}")) for name, template in _TEMPLATES.items()]
    macros += [std_macro("operatorname", "*{"), *(std_macro(name, "{{") for name in _FRACTIONS)]
    macros += [std_macro("sqrt", "[{"), *(std_macro(name, "") for name in _IGNORED_MACROS)]
    scripts = [SpecialsSpec(mark, args_parser=MacroStandardArgsParser("{")) for mark in "^_"]
    database.add_context_category("edgechat", macros=macros, specials=scripts, prepend=True)
    return database


@functools.cache
def _make_symbols() -> dict[str, str]:
    """Return the symbol of each command that stands for one, such as "π" for "pi"."""
    from pylatexenc.latex2text import get_default_latex_context_db

    database = get_default_latex_context_db()
    symbols: dict[str, str] = {}
    for category in ("advanced-symbols", "latex-base"):
        for name, spec in database.d[category]["macros"].items():
            text = spec.simplify_repl
            if isinstance(text, str) and text.strip() and "%" not in text and len(text) <= 2:  # noqa: PLR2004
                symbols[name] = text
    return {**symbols, **_SYMBOLS}


@functools.cache
def _make_scripts(kind: str) -> dict[int, str]:
    """Return a `str.translate` table from characters to superscripts (`kind` is "<super>") or subscripts ("<sub>")."""
    ranges = (
        range(0xB2, 0xBA), range(0x2B0, 0x2E5), range(0x1D2C, 0x1D6B), range(0x2070, 0x209D), range(0x2C7C, 0x2C7E),
    )  # fmt: skip
    scripts: dict[int, str] = {ord("-"): "⁻" if kind == "<super>" else "₋"}
    for number in (number for numbers in ranges for number in numbers):
        name, _, code = unicodedata.decomposition(chr(number)).partition(" ")
        if name == kind and " " not in code:
            scripts.setdefault(int(code, 16), chr(number))
    return scripts


def _join(nodes: Sequence[Any] | None) -> str:
    parts = []
    for node, following in zip(nodes or (), [*(nodes or ())[1:], None], strict=True):
        part = _format(node)
        if getattr(following, "specials_chars", "") == "^" and hasattr(node, "delimiters"):
            part = _group(part, _POWER_BASE)
        parts.append(part)
        text = getattr(following, "chars", "") or ""
        if getattr(node, "macro_post_space", "") and text and not text[0].isalnum():  # the space in `\pi = 3`
            parts.append(" ")
    return "".join(parts)


def _format(node: Any) -> str:
    """Convert a node of pylatexenc's syntax tree to text. Raises _NoUnicodeError if it has no Unicode form."""
    from pylatexenc import latexwalker as walker

    if node is None:
        return ""
    if isinstance(node, walker.LatexCharsNode):
        return str(node.chars).replace("'", "′").replace("\n", " ")
    if isinstance(node, walker.LatexGroupNode):
        return _join(node.nodelist)
    if isinstance(node, walker.LatexSpecialsNode):
        return _format_specials(node)
    if isinstance(node, walker.LatexEnvironmentNode):
        return _format_environment(node)
    if isinstance(node, walker.LatexMacroNode):
        arguments = node.nodeargd.argnlist if node.nodeargd is not None else []
        return _format_macro(node.macroname, arguments)
    raise _NoUnicodeError


def _format_specials(node: Any) -> str:
    mark = node.specials_chars
    if mark in ("&", "~"):
        return " "
    if mark not in ("^", "_"):
        return str(mark).replace("'", "′")
    text = _finish(_format(node.nodeargd.argnlist[0]))
    if mark == "^" and text in ("∘", "′", "′′"):
        return "°" if text == "∘" else text
    scripts = _make_scripts("<super>" if mark == "^" else "<sub>")
    compact = text.replace(" ", "")
    if compact and all(ord(char) in scripts for char in compact):
        return compact.translate(scripts)
    return f"{mark}{text}" if len(text) == 1 else f"{mark}({text})"


def _format_environment(node: Any) -> str:
    name = node.environmentname.removesuffix("*")
    nodes = list(node.nodelist)
    if name == "alignat" or (name == "array" and not node.nodeargd.argnlist):
        nodes = nodes[1:]
    text = _join(nodes)
    if name in _LINE_ENVIRONMENTS:
        return f"\n{text}\n"
    if name not in _MATRICES:
        raise _NoUnicodeError
    rows = "; ".join(" ".join(row.split()) for row in text.split("\n") if row.strip())
    return f"{_MATRICES[name][0]} {rows} {_MATRICES[name][1] if name != 'cases' else ''}"


def _format_macro(name: str, arguments: Sequence[Any]) -> str:
    if name == "\\":
        return "\n"
    if name in _FUNCTIONS:
        return f"{_NAME_START}{name}{_NAME_END}"
    texts = [_format(argument) for argument in arguments]
    if texts:
        return _format_command(name, texts)
    symbol = "" if name in _IGNORED_MACROS else _make_symbols().get(name)
    if symbol is None:
        raise _NoUnicodeError
    is_operator = symbol not in _UNSPACED and len(symbol) == 1 and unicodedata.category(symbol) == "Sm"
    is_operator = is_operator or symbol in ("·", "mod") or unicodedata.name(symbol[:1] or " ").endswith("ARROW")
    return f" {symbol} " if is_operator else symbol


def _format_command(name: str, texts: Sequence[str]) -> str:
    """Convert a command with arguments to text. Raises _NoUnicodeError if it has no Unicode form."""
    if name in _TEXT_MACROS:
        return texts[-1].replace("′", "'")
    if name in _ALPHABETS:
        return "".join(_find_letter(char, *_ALPHABETS[name]) for char in texts[0])
    if name in _ACCENTS and (len(texts[0]) == 1 or name in ("overline", "underline")):
        return "".join(char + _ACCENTS[name] for char in _finish(texts[0]))
    if name in _FRACTIONS:
        fraction = f"{_group(texts[0], _NUMERATOR)}/{_group(texts[1], _DENOMINATOR)}"
        return f"{_FRACTION_START}{fraction}{_FRACTION_END}"
    if name == "sqrt":
        return _format_radical(*texts)
    if name in _TEMPLATES:
        return _TEMPLATES[name].format(*map(_finish, texts))
    raise _NoUnicodeError


def _format_radical(index: str, radicand: str) -> str:
    """Convert a root to text. Raises _NoUnicodeError if a character of its index has no superscript."""
    scripts = _make_scripts("<super>")
    if not all(ord(char) in scripts for char in index):
        raise _NoUnicodeError
    start = _FRACTION_START if index else _RADICAL_START
    return f"{start}{index.translate(scripts)}√{_group(radicand, _RADICAND)}{_FRACTION_END}"


def _find_letter(char: str, *alphabets: str) -> str:
    for alphabet in alphabets:
        for kind in ("CAPITAL", "SMALL", "DIGIT"):
            name = unicodedata.name(char, "").replace(f"LATIN {kind} LETTER ", f"{alphabet} {kind} ")
            name = f"{alphabet} {name}" if char.isdigit() else name
            try:
                letter = unicodedata.lookup(name)
            except KeyError:
                continue
            if letter != char:
                return letter
    return char


def _finish(text: str) -> str:
    """Replace the marks in a part of a formula, and collapse its spaces."""
    return " ".join(_finish_marks(text).split())


def _group(text: str, pattern: re.Pattern[str]) -> str:
    """Put a part of a formula in parentheses, unless it is one character or matches `pattern`."""
    text = _finish(text)
    return text if len(text) == 1 or pattern.fullmatch(text) else f"({text})"


def _finish_marks(text: str) -> str:
    """Replace the marks around fractions, radicals and names with parentheses and spaces where these are needed."""
    text = _FRACTION.sub(_finish_fraction, text)
    text = re.sub(rf"(?<=[^\W_]|[)]){_NAME_START}", " ", text).replace(_NAME_START, "")
    scripts = "".join({*_make_scripts("<super>").values(), *_make_scripts("<sub>").values()})
    text = re.sub(rf"{_NAME_END}([{scripts}]+|(?:[_^](?:\([^()]*\)|\w+))+)?(?=([^\W_]|[\\√∑∏∫∂])?)", _end_name, text)
    return text.replace(_NAME_END, "")


def _end_name(match: re.Match[str]) -> str:
    return (match[1] or "") + (" " if match[2] else "")


def _finish_fraction(match: re.Match[str]) -> str:
    start, fraction = match.groups()
    is_separate = _SAFE_AFTER.match(match.string, match.end()) is not None
    if start == _FRACTION_START:  # text before a square root never belongs to it
        before = match.string[max(0, match.start() - 50) : match.start()]
        is_separate = is_separate and _SAFE_BEFORE.search(before) is not None
    return fraction if is_separate else f"({fraction})"
