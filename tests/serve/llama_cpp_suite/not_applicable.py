"""Read the list of llama.cpp's tests that do not apply to edgechat, each with a reason."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tomlkit

LIST = Path(__file__).with_name("not_applicable.toml")


def read() -> dict[str, str]:
    """Return the reason for each entry: a file, a test (with all its parameters), or one case of a test."""
    groups = tomlkit.parse(LIST.read_text("utf-8")).unwrap()["group"]
    return {entry: group["reason"] for group in groups for entry in group["tests"]}


def read_words() -> frozenset[str]:
    """Return the regular expressions for words that only llama.cpp's own models write."""
    return frozenset(tomlkit.parse(LIST.read_text("utf-8")).unwrap()["words"])


def find(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the reasons for those of the tests `names` that do not apply, and the entries that match no test."""
    entries = read()
    reasons: dict[str, str] = {}
    matched: set[str] = set()
    for name in names:
        for entry in (name, name.partition("[")[0], name.partition("::")[0]):
            if entry in entries:
                reasons.setdefault(name, entries[entry])
                matched.add(entry)
    return reasons, sorted(set(entries) - matched)
