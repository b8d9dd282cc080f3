"""Functions, classes and headings of a text: where they begin, and their names.

Definitions are found by regular expressions, not by parsers: a wrong boundary only moves the border of a chunk. All
expressions begin with a line feed, which `re` searches about five times as fast as the beginning of a line (`^`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_PYTHON: Final = r"(?:async[ \t]+)?(?:def|class)[ \t]+(?P<name>\w+)"
_SCRIPT: Final = (
    r"(?:export[ \t]+)?(?:default[ \t]+)?(?:declare[ \t]+)?(?:abstract[ \t]+)?(?:async[ \t]+)?"
    r"(?:(?:function\b(?:[ \t]*\*)?|class|interface|enum|namespace|module)[ \t]+(?P<name>[\w$]+)"
    r"|type[ \t]+(?P<name2>[\w$]+)[ \t]*[=<]"
    r"|(?:const|let|var)[ \t]+(?P<name3>[\w$]+)[ \t]*=[ \t]*(?:async[ \t]*)?"
    r"(?:function\b|\([^()\n]*\)[ \t]*=>|[\w$]+[ \t]*=>)"
    r"|(?:(?:static|async|get|set|public|private|protected|readonly|override)[ \t]+){0,8}"
    r"(?!(?:if|for|while|switch|catch|return)\b)"
    r"(?P<name4>[\w$#]+)[ \t]*\([^()\n]*\)[ \t]*(?::[^{\n]*)?\{)"
)
_RUST: Final = (
    r"(?:pub(?:\([^()\n]*\))?[ \t]+)?(?:(?:async|unsafe|const|default|extern(?:[ \t]+\"[^\"\n]*\")?)[ \t]+){0,8}"
    r"(?:(?:fn|struct|enum|trait|mod|union|type|macro_rules!)[ \t]+(?P<name>\w+)|impl\b(?P<name2>[^{;\n]*))"
)
_GO: Final = r"func[ \t]+(?:\([^()\n]*\)[ \t]*)?(?P<name>\w+)|type[ \t]+(?P<name2>\w+)"
_WORDS: Final = (
    r"(?:public|private|protected|internal|static|final|abstract|virtual|override|sealed|partial|async|readonly|open"
    r"|data|inline|suspend|fileprivate|mutating|case|implicit|native|synchronized|default|extern|constexpr)"
)
_TEMPLATE: Final = r"(?:template[ \t]*<[^\n]{0,300}>[ \t]+)?"
# Not a statement such as `return f(x) {`, and not a call that ends with a semicolon. A lookahead that reads the whole
# line is before the repetition that would otherwise run it again for each character.
_C_LIKE: Final = (
    rf"{_TEMPLATE}(?:{_WORDS}[ \t]+){{0,8}}(?=[A-Za-z_])"
    r"(?:(?:class|interface|enum(?:[ \t]+class)?|struct|union|namespace|record|trait|object"
    r"|protocol|extension|fun|func|def)[ \t]+(?=[\w.:<>])(?![^\n]*;[ \t]*$)(?P<name>[\w.:<>]+)"
    r"|(?=[^\n(;={}]*\()(?!(?:return|else|if|for|while|switch|catch|throw|new|case|delete|using|goto|do)\b)"
    r"(?:[\w:<>,.\[\]?]+[ \t*&]+){1,5}(?P<name2>[A-Za-z_~][\w:~]*)[ \t]*"
    r"\((?:[^;={}\n]{0,300}\{|(?=[^;={}\n]{0,600}$)(?:[^\n]{0,300}\)|[^\n]{0,300},[ \t]*$)))"
)
_RUBY: Final = r"(?:def|class|module)[ \t]+(?P<name>[\w.:?!=]+)"
_PHP: Final = rf"(?:{_WORDS}[ \t]+){{0,8}}(?:function|class|interface|trait|enum|namespace)[ \t]+&?(?P<name>[\w\\]+)"
_SHELL: Final = r"(?:function[ \t]+(?P<name>[\w:-]+)|(?P<name2>[\w:-]+)[ \t]*\([ \t]*\))"
_LUA: Final = r"(?:local[ \t]+)?function[ \t]+(?P<name>[\w.:]+)"
_SQL: Final = (
    r"(?i:create)[ \t]+(?i:or[ \t]+replace[ \t]+|temp(?:orary)?[ \t]+|unique[ \t]+){0,4}"
    r"(?i:table|view|index|function|procedure|trigger|type)[ \t]+"
    r"(?i:if[ \t]+not[ \t]+exists[ \t]+)?(?P<name>[\w.\"`\[\]]+)"
)
_INI: Final = r"\[\[?(?P<name>[^\[\]\n]+)\]\]?[ \t]*$"
_TEX: Final = r"\\(?:part|chapter|(?:sub)*section|paragraph)\*?\{(?P<name>[^{}\n]*)"
_PATTERNS: Final = {
    **dict.fromkeys(("py", "pyi", "pyx"), _PYTHON),
    **dict.fromkeys(("js", "jsx", "mjs", "cjs", "ts", "tsx", "vue", "svelte"), _SCRIPT),
    **dict.fromkeys((
        "c", "cc", "cpp", "cxx", "cu", "h", "hh", "hpp", "hxx", "m", "mm", "java", "cs", "kt", "kts", "scala", "swift",
        "dart", "groovy",
    ), _C_LIKE),
    **dict.fromkeys(("sh", "bash", "zsh"), _SHELL),
    **dict.fromkeys(("ini", "cfg", "conf", "toml"), _INI),
    "rs": _RUST, "go": _GO, "rb": _RUBY, "php": _PHP, "lua": _LUA, "sql": _SQL, "tex": _TEX,
}  # fmt: skip
CODE_EXTENSIONS: Final = frozenset(_PATTERNS)
"""Lower-case extensions of files whose definitions `find_definitions` knows."""
# The lookahead ends the search of a line of spaces at once, instead of at each of them.
_INDENT: Final = r"(?P<indent>[ \t]{0,200})(?![ \t])"
# Lines above a definition that belong to it: comments, decorators, attributes, annotations.
_LEADING_LINE: Final = re.compile(r"[ \t]*(?:#(?!(?:if|else|elif|endif|include|define)\b)|@|//|/\*|\*|--(?!-)|\[\w)")
_MAX_LEADING_LINES: Final = 50
_MAX_NAME_CHARS: Final = 100
_FENCE_OR_HEADING: Final = re.compile(
    r"\n(?: {0,3}(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)|(?P<marks>\#{1,6})[ \t]+(?P<title>[^\n]+)"
    r"|(?<=\n\n)(?P<line_title>[^\s#\-=>|*+`~][^\n]{0,200})\n(?P<line>={3,}|-{3,})[ \t]*(?=\n|\Z))"
)
_UNDERLINED: Final = re.compile(
    r"\n(?<=\n\n)(?:(?P<over>[=\-~^\"'#*+`:.])(?P=over){2,}[ \t]*\n)?(?P<title>[^\s][^\n]{0,200})\n"
    r"(?P<mark>[=\-~^\"'#*+`:.])(?P=mark){2,}[ \t]*(?=\n|\Z)"
)
_MAX_LEVELS: Final = 6


def find_definitions(text: str, extension: str) -> Iterator[tuple[int, str]]:
    """Yield the start of each definition in source code, and its qualified name, such as `Class.method`.

    A start is the beginning of a line; comments and decorators above the definition belong to it. Nesting is determined
    by indentation.
    """
    pattern = _compile(extension)
    outer: list[tuple[int, str]] = []
    last_start = 0
    for match in pattern.finditer(f"\n{text}"):
        name = _name_of(match)
        if not name:
            continue
        indent = len(match["indent"].expandtabs(4))
        while outer and outer[-1][0] >= indent:
            outer.pop()
        outer.append((indent, name))
        last_start = _include_leading_lines(text, match.start(), last_start)
        yield last_start, ".".join(name for _, name in outer)


_COMPILED: Final[dict[str, re.Pattern[str]]] = {}


def _compile(extension: str) -> re.Pattern[str]:
    if extension not in _COMPILED:
        _COMPILED[extension] = re.compile(rf"\n{_INDENT}(?:{_PATTERNS[extension]})", re.MULTILINE)
    return _COMPILED[extension]


def _name_of(match: re.Match[str]) -> str:
    names = match.groupdict()
    name = next((names[group] for group in names if group != "indent" and names[group]), "")
    return " ".join(name.split())[:_MAX_NAME_CHARS]


def _include_leading_lines(text: str, start: int, minimum: int) -> int:
    """Return the start of the comments and decorators directly above the line at `start`, but at least `minimum`."""
    for _ in range(_MAX_LEADING_LINES):
        line_start = text.rfind("\n", minimum, start - 1) + 1 if start > minimum else 0
        if line_start <= minimum or line_start >= start or not _LEADING_LINE.match(text, line_start, start):
            break
        start = line_start
    return start


def find_headings(text: str) -> Iterator[tuple[int, str]]:
    """Yield the start of each heading in Markdown outside of fenced code, and the path of headings to it."""
    outer: list[tuple[int, str]] = []
    fence = ""
    for match in _FENCE_OR_HEADING.finditer(f"\n\n{text}"):
        if mark := match["fence"]:
            if not fence:
                fence = mark
            elif mark.startswith(fence) and not match["info"].strip():
                fence = ""
            continue
        if fence:
            continue
        if match["marks"]:
            level, title = len(match["marks"]), match["title"].rstrip("# \t")
        else:
            level, title = 1 + (match["line"][0] == "-"), match["line_title"]
        yield max(match.start() - 1, 0), _enter(outer, level, title)


def find_underlined_headings(text: str) -> Iterator[tuple[int, str]]:
    """Yield the start of each heading in reStructuredText, and the path of headings to it.

    Levels are in the order in which their styles occur first.
    """
    outer: list[tuple[int, str]] = []
    styles: list[tuple[str | None, str]] = []
    for match in _UNDERLINED.finditer(f"\n\n{text}"):
        style = (match["over"], match["mark"])
        if style not in styles:
            if len(styles) == _MAX_LEVELS:
                continue
            styles.append(style)
        yield max(match.start() - 1, 0), _enter(outer, styles.index(style), match["title"])


def _enter(outer: list[tuple[int, str]], level: int, title: str) -> str:
    """Replace the headings of `level` and below it in `outer` by `title`, and return the path."""
    while outer and outer[-1][0] >= level:
        outer.pop()
    outer.append((level, " ".join(title.split())[:_MAX_NAME_CHARS]))
    return " > ".join(title for _, title in outer if title)
