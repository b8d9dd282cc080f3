r"""Parse the Markdown of chat messages without changing formulas, such as `$a_1*b$` and `\[ x \\ y \]`.

Formulas are found before Markdown is parsed, and each is replaced by one character of a private range. So escapes,
emphasis, table cells and lists cannot split a formula.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it import MarkdownIt
    from markdown_it.token import Token

MAX_NESTING: Final = 50
"""Maximum depth of quotes and lists. The parser drops deeper parts, so a text that has them is shown as plain text."""
# Maximum number of brackets. The parser takes quadratic time for brackets without a link: 0.2 s for 4,000, but 3 ms
# for 500.
_MAX_BRACKETS: Final = 500
_MAX_PARAGRAPH_CHARS: Final = 8192

# Private characters that stand for formulas, unless the text itself contains them.
_PLACEHOLDERS: Final = range(0x100000, 0x10FFFE)
_PRIVATE_CHARACTER: Final = re.compile("[\U00100000-\U0010fffd]")
# Maximum length of a display formula with blank lines; other formulas end at the next blank line.
_MAX_DISPLAY_CHARS: Final = 4096
_MAX_PREFIX_CHARS: Final = 200

_SCAN: Final = re.compile(
    r"""
      ^[ \t>]*(?P<fence>`{3,}|~{3,})[^\n]*$
    | (?P<code>`+)
    | (?P<skipped>https?://[^\s<>`]+ | \]\([^()\s]*\) | \\[\\$`])
    | (?P<literal>\\[{}\])])
    | (?P<opening>\\\[ | \\\( | \$\$ | \$ | \\begin\{(?P<name>[A-Za-z]{1,30}\*?)\})
    """,
    re.VERBOSE | re.MULTILINE,
)
_FENCE: Final = re.compile(r"^[ \t>]*(?P<fence>`{3,}|~{3,})[^\n]*$", re.MULTILINE)
_UNESCAPED_BAR: Final = re.compile(r"(?<!\\)\|")
_CLOSING_DOLLAR: Final = re.compile(r"(?<!\\)\$")
_CLOSING_PARENTHESIS: Final = re.compile(r"\\\)")
_BLANK_LINE: Final = re.compile(r"\n[ \t>]*(?:\n|\Z)")
_FENCE_IN_FORMULA: Final = re.compile(r"\n[ \t>]*(?:```|~~~)")
_LINE_PREFIX: Final = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])?[ \t]*")
_QUOTE_PREFIX: Final = re.compile(r"\n[ \t]*(?:>[ \t]?)+")
# A formula with spaces directly inside its dollars must contain a mathematical character, unlike "5 $ and 6 $".
_MATH_SIGN: Final = re.compile(r"[\\^_=+<>{|*/-]|\A\s*\w\s*\Z")
# A formula directly before or after a letter, such as "A$^*B^*$" and "$a*b$th", must contain a character that Markdown
# would interpret, unlike "$A:$B".
_MARKDOWN_SIGN: Final = re.compile(r"[\\^_*{}]")
_OPENING_SIGNS: Final = "([{<=:,;|"
_WORD: Final = re.compile(r"(?<!\\)(?<![^\W\d_])[^\W\d_]{2,}")
"""Word of prose; does not match the name of a command such as `\\sin`."""
_PRICE: Final = re.compile(
    r"\d[\d.,]*[kKmMbB]?(?:[\s,;:.!?()–—-]+[^\W\d_]{2,}|\s*[\u2e80-\U0003ffff])"  # noqa: RUF001  (dashes of prose)
)


class Formulas:
    """A Markdown text with a placeholder for each formula, and the formulas."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._by_placeholder: dict[int, str] = {}
        self._code_runs: dict[int, list[int]] | None = None
        self._next_matches: dict[str, int] = {}
        parts = []
        position = 0
        private_characters = set(map(ord, _PRIVATE_CHARACTER.findall(source)))
        placeholders = (number for number in _PLACEHOLDERS if number not in private_characters)
        for (start, end), placeholder in zip(self._find(), placeholders, strict=False):
            self._by_placeholder[placeholder] = _unindent(source, start, end)
            parts += [source[position:start], chr(placeholder)]
            position = end
        self.text = "".join([*parts, source[position:]])

    def restore(self, text: str) -> str:
        """Replace the placeholders in `text` with their formulas."""
        return text.translate(self._by_placeholder) if self._by_placeholder and not text.isascii() else text

    @property
    def by_placeholder(self) -> Mapping[int, str]:
        """The formulas by the code points of their placeholders, and other marks that Markdown must not change."""
        return self._by_placeholder

    def split(self, text: str) -> list[str]:
        """Split `text` at its placeholders; every second part is a formula."""
        if not self._by_placeholder or text.isascii():
            return [text]
        parts = re.split(f"([{''.join(map(chr, self._by_placeholder))}])", text)
        parts[1::2] = map(self.restore, parts[1::2])
        return parts

    def _find(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of each formula outside of code and link targets, and of each bar in a code span."""
        position = 0
        while match := _SCAN.search(self._source, position):
            position = match.end()
            if match["fence"]:
                position = _find_fence_end(self._source, match["fence"], position)
            elif match["code"]:
                code_end = self._find_code_end(len(match["code"]), position)
                for bar in _UNESCAPED_BAR.finditer(self._source, position, code_end):
                    yield bar.span()  # this bar does not separate table cells
                position = code_end
            elif match["literal"]:
                yield match.start(), position
            elif match["opening"]:
                end = self._find_end(match)
                if end is not None:
                    yield match.start(), end
                    position = end

    def _find_code_end(self, n_marks: int, start: int) -> int:
        """Return the end of a code span whose opening marks end at `start`; `start` itself if it is not closed."""
        if self._code_runs is None:
            self._code_runs = defaultdict(list)
            for run in re.finditer("`+", self._source):
                self._code_runs[len(run[0])].append(run.end())
        ends = self._code_runs[n_marks]
        index = bisect.bisect_right(ends, start)
        return ends[index] if index < len(ends) else start

    def _find_end(self, match: re.Match[str]) -> int | None:
        """Return the end of the formula that begins with `match`; None if there is no formula."""
        opening = match[0]
        if opening == "$":
            return self._find_dollar_end(match.start())
        if opening == r"\(":
            end = self._find_next(_CLOSING_PARENTHESIS, match.end()) + len(r"\)")
            is_closed = end <= self._find_next(_BLANK_LINE, match.end())
            return end if is_closed else match.end()  # if it is not closed, keep at least the backslash
        closing = rf"\end{{{match['name']}}}" if match["name"] else opening.replace("[", "]")
        max_end = max(match.end() + _MAX_DISPLAY_CHARS, self._find_next(_BLANK_LINE, match.end()))
        end = self._find_next(re.compile(re.escape(closing)), match.end()) + len(closing)
        if end <= min(max_end, len(self._source)) and not _FENCE_IN_FORMULA.search(self._source, match.end(), end):
            return end if end > match.end() + len(closing) else None
        # The formula has no end, perhaps because it is still being generated. At the start of a line, it is a formula
        # up to the next blank line.
        if _read_line_start(self._source, match.start()).strip(" \t>"):
            return match.end() if opening == r"\[" else None
        end = self._find_next(_BLANK_LINE, match.end())
        return end if not _FENCE_IN_FORMULA.search(self._source, match.end(), end) else match.end()

    def _find_next(self, pattern: re.Pattern[str], start: int) -> int:
        """Return the start of the next match; the length of the source if there is none.

        The last result is cached. As the positions only grow, all searches together take linear time.
        """
        index = self._next_matches.get(pattern.pattern, -1)
        if index < start:
            match = pattern.search(self._source, start)
            index = self._next_matches[pattern.pattern] = match.start() if match is not None else len(self._source)
        return index

    def _find_dollar_end(self, start: int) -> int | None:
        """Return the end of a formula between single dollars. Amounts of money and shell variables are not formulas."""
        source = self._source
        end = self._find_next(_CLOSING_DOLLAR, start + 1)
        if end > self._find_next(_BLANK_LINE, start + 1) or end == len(source):
            return None
        content, before, after = source[start + 1 : end], source[max(0, start - 1) : start], source[end + 1 : end + 2]
        stripped = content.strip()
        if not stripped or after == "$" or after.isdigit() or "`" in content or _PRICE.match(stripped):
            return None
        is_before_word = after.isascii() and after.isalpha()
        if is_before_word and (_WORD.search(content) or content[-1] in _OPENING_SIGNS):  # a price: "$5 *now* ($x$"
            return None
        if (is_before_word or (before.isascii() and before.isalnum())) and (
            stripped[0].isdigit() or not _MARKDOWN_SIGN.search(content)  # a price, such as "US$5"
        ):
            return None
        has_blank_start, has_blank_end = content[0].isspace(), content[-1].isspace()
        if (has_blank_start or has_blank_end) and not _MATH_SIGN.search(content):
            return None
        return end + 1 if has_blank_start == has_blank_end or not _WORD.search(content) else None


def _find_fence_end(source: str, fence: str, start: int) -> int:
    """Return the end of the code block whose opening fence ends at `start`."""
    closing = re.compile(rf"^[ \t>]*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$", re.MULTILINE)
    match = closing.search(source, start)
    return match.end() if match is not None else len(source)


def _unindent(source: str, start: int, end: int) -> str:
    """Return a formula, without the indent or quote marks at the start of its second and later lines."""
    formula = source[start:end]
    if "\n" not in formula:
        return formula
    prefix = _read_line_start(source, start)
    if ">" in prefix:
        return _QUOTE_PREFIX.sub("\n", formula)
    indent = _LINE_PREFIX.match(prefix)
    return re.sub(rf"\n[ \t]{{1,{len(indent[0])}}}", "\n", formula) if indent is not None and indent[0] else formula


def _read_line_start(source: str, end: int) -> str:
    """Return the text of a line before `end`; only its last characters if the text is long."""
    start = max(0, end - _MAX_PREFIX_CHARS)
    newline = source.rfind("\n", start, end)
    return source[max(start, newline + 1) : end]


class Document(NamedTuple):
    """Parsed Markdown text: its tokens and its formulas."""

    tokens: list[Token]
    """Tokens with a placeholder for each formula."""
    formulas: Formulas


def parse(source: str) -> Document | None:
    """Parse Markdown for a terminal; return None if it is nested too deeply, or has too many brackets, to be parsed."""
    if source.count("[") > _MAX_BRACKETS:
        return None
    formulas = Formulas(source)
    tokens = _parse_tokens(_make_parser(), formulas.text)
    return Document(tokens, formulas) if tokens is not None else None


def _parse_tokens(parser: MarkdownIt, text: str) -> list[Token] | None:
    """Return the tokens of `text`; None if it is nested more deeply than the parser allows.

    The parser drops the extra cells of a table row that has more cells than the heading; this function appends them to
    the last cell.
    """
    from markdown_it.token import Token

    tokens = parser.parse(text)
    if any(token.level >= MAX_NESTING for token in tokens):
        return None
    lines = text.split("\n") if any(token.type == "tr_open" for token in tokens) else []
    n_columns = 0
    row: list[Token] = []
    for token in tokens:
        if token.type == "thead_open":
            n_columns = 0
        elif token.type == "th_open":
            n_columns += 1
        elif token.type == "tr_open":
            row = [token]
        elif token.type == "inline":
            row.append(token)
        elif token.type == "tr_close" and row[0].map:
            extra_cells = split_row(lines[row[0].map[0]])[n_columns:]
            if extra_cells:
                [extra] = parser.parseInline(" | ".join(extra_cells))
                children = row[-1].children or []
                row[-1].children = [*children, Token("text", "", 0, content=" | "), *(extra.children or [])]
    return tokens


def split_row(line: str) -> list[str]:
    """Split a table row into cells in the same way as the parser."""
    from markdown_it.rules_block.table import escapedSplit

    cells = escapedSplit(line.lstrip(" \t>").rstrip())
    return [cell.strip() for cell in cells[not cells[0] : len(cells) - (not cells[-1])]]


@functools.cache
def _make_parser() -> MarkdownIt:
    """Return a parser that leaves URLs unchanged and ignores link references, whose definitions would not be shown."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.deflist import deflist_plugin

    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_NESTING + 1})
    parser.enable(["strikethrough", "table"]).disable("reference").use(deflist_plugin)
    parser.normalizeLink = lambda url: url  # type: ignore[method-assign]
    return parser


def render_html(source: str) -> str:
    """Render Markdown as HTML, without images, because a browser would request them. HTML in `source` is escaped."""
    return "\n".join(
        f'<p class="plain">{escape(part)}</p>' if is_plain else _render_html_part(part)
        for part, is_plain in _split_long_paragraphs(source)
    )


def _render_html_part(source: str) -> str:
    formulas = Formulas(source)
    parser = _make_html_parser()
    tokens = _parse_tokens(parser, formulas.text)
    if tokens is None:
        return f"<pre>{escape(source)}</pre>\n"
    for token in tokens:
        token.content = formulas.restore(token.content)
        token.children = list(_restore_children(token.children, formulas)) if token.children else token.children
    html: str = parser.renderer.render(tokens, parser.options, {})
    return html


def _restore_children(children: Sequence[Token], formulas: Formulas) -> Iterator[Token]:
    """Yield inline tokens with a token of the type `math` for each formula in a text."""
    from markdown_it.token import Token

    for child in children:
        for name, value in child.attrs.items():
            child.attrs[name] = formulas.restore(str(value))
        if child.type != "text":
            child.content = formulas.restore(child.content)
            yield child
            continue
        for index, part in enumerate(formulas.split(child.content)):
            yield Token("math" if index % 2 else "text", "", 0, content=part)


@functools.cache
def _make_html_parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_NESTING + 1})
    parser.enable(["strikethrough", "table"]).disable("image")
    parser.add_render_rule("math", _render_formula)
    return parser


def _render_formula(_renderer: object, tokens: Sequence[Token], index: int, *_: object) -> str:
    return f'<span class="math">{escape(tokens[index].content)}</span>'


def _split_long_paragraphs(source: str) -> list[tuple[str, bool]]:
    """Split `source` into parts, each with True if it is a paragraph that would take long to parse.

    The parser takes quadratic time for long paragraphs of marks.
    """
    parts: list[tuple[str, bool]] = []
    start = position = 0
    fence, blank_line = _FENCE.search(source), _BLANK_LINE.search(source)
    while position < len(source):
        if fence is not None and fence.start() < position:
            fence = _FENCE.search(source, position)
        if blank_line is not None and blank_line.start() < position:
            blank_line = _BLANK_LINE.search(source, position)
        end = blank_line.end() if blank_line is not None else len(source)
        if fence is not None and fence.start() < end:
            position = _find_fence_end(source, fence["fence"], fence.end())
            continue
        paragraph = source[position:end]
        if len(paragraph) > _MAX_PARAGRAPH_CHARS or paragraph.count("[") > _MAX_BRACKETS:
            parts += [(source[start:position], False), (paragraph, True)]
            start = end
        position = end
    return [(part, is_plain) for part, is_plain in [*parts, (source[start:], False)] if part.strip() or not parts]
