"""Patterns of .gitignore files, as gitignore(5) describes them.

Property tests compare the results with `git check-ignore`. Patterns become regular expressions without nested
repetition: the text after each `*` of a path component, and the components after each `**`, are matched at the first
place only, as in `fnmatch.translate`. So the time for a path is at most proportional to its length times the length of
the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

MAX_PATTERNS: Final = 10_000
"""Maximum number of patterns of one file; further lines are ignored."""
_MAX_PATTERN_CHARS: Final = 1000
_FOLDERS: Final = "(?:.*/)?"
_ESCAPE: Final = re.compile(r"\\(.)")
_POSIX_CLASSES: Final = {
    "alnum": "a-zA-Z0-9", "alpha": "a-zA-Z", "blank": " \\t", "cntrl": "\\x00-\\x1f\\x7f", "digit": "0-9",
    "graph": "!-~", "lower": "a-z", "print": " -~", "punct": "!-/:-@\\[-`{-~", "space": " \\t-\\r", "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}  # fmt: skip


class _Rule(NamedTuple):
    """One pattern of a .gitignore file."""

    regex: re.Pattern[str]
    """Matches the whole path relative to the folder of the file, with `/` between folders."""
    is_negated: bool
    is_for_folders: bool


class IgnoreFile:
    """Rules of one .gitignore file, for paths relative to its folder."""

    def __init__(self, text: str) -> None:
        rules = (_parse_line(line) for line in text.split("\n")[:MAX_PATTERNS])
        self._rules = [rule for rule in rules if rule is not None]
        self._rules.reverse()  # the last rule that matches decides
        self._any_rule = _join([rule.regex.pattern for rule in self._rules])

    def match(self, path: str, *, is_folder: bool) -> bool | None:
        """Return whether the rules ignore `path` (True) or include it (False); None if no rule matches."""
        if self._any_rule is None or self._any_rule.fullmatch(path) is None:
            return None
        for rule in self._rules:
            if (is_folder or not rule.is_for_folders) and rule.regex.fullmatch(path):
                return not rule.is_negated
        return None


def is_ignored(ignore_files: Sequence[tuple[str, IgnoreFile]], path: str, *, is_folder: bool) -> bool:
    """Return whether .gitignore files ignore `path`.

    `ignore_files` has pairs of a folder and its file, outermost folder first; folders and `path` have the same root,
    and folders end with `/` (the root is ""). The innermost file with a matching rule decides. A folder above `path`
    that is ignored must be checked before, because nothing in it can be included again.
    """
    for folder, ignore_file in reversed(ignore_files):
        verdict = ignore_file.match(path[len(folder) :], is_folder=is_folder)
        if verdict is not None:
            return verdict
    return False


def _join(patterns: list[str]) -> re.Pattern[str] | None:
    """Return an expression that matches if any of `patterns` does, with unique names of groups; None for no pattern."""
    if not patterns:
        return None
    unique = (re.sub(r"\(\?P([<=])g", rf"(?P\1p{i}_", pattern) for i, pattern in enumerate(patterns))
    return re.compile("|".join(f"(?:{pattern})" for pattern in unique), re.DOTALL)


def _parse_line(line: str) -> _Rule | None:
    """Return the rule of a line; None for a comment, an empty line or an invalid pattern."""
    line = _strip_trailing_spaces(line.removesuffix("\r"))
    if not line or line.startswith("#") or len(line) > _MAX_PATTERN_CHARS:
        return None
    is_negated = line.startswith("!")
    pattern = line[is_negated:]
    is_for_folders = pattern.endswith("/")
    pattern = _ESCAPE.sub(lambda match: "/" if match[1] == "/" else match[0], pattern.removesuffix("/"))
    if not pattern:
        return None
    is_anchored = "/" in pattern
    try:
        expression = _Translator(pattern.removeprefix("/")).translate()
        regex = re.compile(expression if is_anchored else f"{_FOLDERS}{expression}", re.DOTALL)
    except (ValueError, re.error):
        return None
    return _Rule(regex, is_negated, is_for_folders)


def _strip_trailing_spaces(line: str) -> str:
    stripped = line.rstrip(" ")
    n_backslashes = len(stripped) - len(stripped.rstrip("\\"))
    return f"{stripped} " if n_backslashes % 2 and stripped != line else stripped


class _Translator:
    """Translates a pattern without leading and trailing slash into a regular expression."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0
        self._n_groups = 0

    def translate(self) -> str:
        """Return the expression. Raises ValueError for a pattern that matches nothing."""
        finished: list[str] = []  # expressions up to the last `**`
        parts: list[str] = []  # text after it, up to the last `*`
        pending: list[str] | None = None  # text after a `*`, up to the next one
        is_after_folders = False
        while self._position < len(self._pattern):
            if double_star := self._read_double_star():
                slash = double_star[: double_star[0] == "/"]
                parts += [self._close(pending, is_last=True), slash]  # a slash ends the component
                finished.append(self._find("".join(parts)) if is_after_folders else "".join(parts))
                parts, pending = [], None
                is_after_folders = double_star.endswith(_FOLDERS)
                finished.append("" if is_after_folders else double_star.removeprefix("/"))
            elif self._pattern[self._position] == "*":
                parts.append(self._close(pending, is_last=False))
                pending = []
                while self._pattern.startswith("*", self._position):
                    self._position += 1
            else:
                (parts if pending is None else pending).append(self._read_character())
        folders = _FOLDERS if is_after_folders else ""
        return "".join((*finished, folders, *parts, self._close(pending, is_last=True)))

    def _find(self, components: str) -> str:
        """Return the expression for a `**` and the components up to the next one, at the first place in the path.

        If the rest of the path does not match after this place, it does not match after a later one.
        """
        self._n_groups += 1
        return f"(?=(?P<g{self._n_groups}>(?:.*?/)??{components}))(?P=g{self._n_groups})"

    def _close(self, pending: list[str] | None, *, is_last: bool) -> str:
        """Return the expression for a `*` and the text after it. Only the last `*` of a component may backtrack."""
        if pending is None:
            return ""
        text = "".join(pending)
        if is_last or "/" in pending:  # a slash ends the component
            return f"[^/]*{text}"
        self._n_groups += 1
        return f"(?=(?P<g{self._n_groups}>[^/]*?{text}))(?P=g{self._n_groups})"

    def _read_double_star(self) -> str:
        """Read `**` between slashes, where it matches any number of folders, and return its expression; "" if none."""
        rest, position = self._pattern[self._position :], self._position
        if position == 0 and rest.startswith("**/"):
            self._position += 3
            return _FOLDERS
        if rest == "/**":
            self._position += 3
            return "/.+"
        if rest.startswith("/**/"):
            self._position += 3  # the second slash can begin the next `/**/`
            while self._pattern.startswith("/**/", self._position):
                self._position += 3
            if self._pattern[self._position :] == "/**":
                self._position += 3
                return "/.+"
            self._position += 1
            return f"/{_FOLDERS}"
        if position == 0 and rest == "**":
            self._position += 2
            return ".+"
        return ""

    def _read_character(self) -> str:
        character = self._pattern[self._position]
        self._position += 1
        if character == "?":
            return "[^/]"
        if character == "[":
            return self._read_class()
        if character == "\\":
            if self._position == len(self._pattern):
                raise ValueError("backslash at the end")
            character = self._pattern[self._position]
            self._position += 1
        return re.escape(character)

    def _read_class(self) -> str:
        """Read a character class after its bracket. Raises ValueError if it has no end."""
        pattern, i = self._pattern, self._position
        is_negated = pattern[i : i + 1] in {"!", "^"}
        i += is_negated
        items: list[str] = []
        is_first = True
        while is_first or pattern[i : i + 1] != "]":
            is_first = False
            if named := re.compile(r"\[:([^\]\[]*):\]").match(pattern, i):
                if named[1] not in _POSIX_CLASSES:
                    raise ValueError("unknown class")
                items.append(_POSIX_CLASSES[named[1]])
                i = named.end()
                continue
            first, i = _read_class_character(pattern, i)
            if pattern[i : i + 1] == "-" and pattern[i + 1 : i + 2] not in {"]", ""}:
                last, i = _read_class_character(pattern, i + 1)
                if first <= last:  # git ignores an empty range
                    items.append(f"{re.escape(first)}-{re.escape(last)}")
            else:
                items.append(re.escape(first))
        self._position = i + 1
        if not items:
            return "[^/]" if is_negated else "(?!)"
        return f"(?!/)[{'^' if is_negated else ''}{''.join(items)}]"


def _read_class_character(pattern: str, i: int) -> tuple[str, int]:
    """Return the character of a class at `i`, and the position after it. Raises ValueError at the end of `pattern`."""
    if pattern[i : i + 1] == "\\":
        i += 1
    if i >= len(pattern):
        raise ValueError("class without an end")
    return pattern[i], i + 1
