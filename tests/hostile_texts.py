"""Texts that break renderers without protection: escape sequences, markup, long lines, deep nesting, rare Unicode."""

from __future__ import annotations

HOSTILE_TEXTS = [
    "\x1b[2J\x1b]0;title\x07 escape", "[bold]markup[/bold] [/] [link=x]", "\u202eright to left\u202c \u2066x\u2069",
    "a\u200d\u200b\u0301b 👨‍👩‍👧‍👦 é", "x" * 1_000_000, "`" * 1_000_000,
    "\ufffd\udcff".encode("utf-8", "replace").decode(),
    "> " * 3000 + "deep", "* " * 3000, "|" * 5000 + "\n" + "|-" * 2500, "\t" * 100 + "tabs", "\r\rprogress\r",
    "\0\x7f\x9b31m", "#" * 2000, "<script>alert(1)</script><b>bold</b>",
    "![image](file:///etc/passwd) [link](javascript:x)", "\n" * 5000, "", "```" + "x" * 300 + "\ncode", "1. " * 2000,
    "**" * 3000, "&amp;&#27;[31m&#x9b;", "中" * 3000,
]  # fmt: skip
