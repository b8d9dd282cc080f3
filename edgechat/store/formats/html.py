"""Export of a conversation as one self-contained HTML page without scripts."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Final

from edgechat.chat.messages import Message
from edgechat.markdown import render_html
from edgechat.store.formats.cited_places import PassageLines, describe_passages
from edgechat.store.formats.edgechat_json import ConversationRecord
from edgechat.store.formats.markdown import active_path, make_heading

_STYLE: Final = """
body { max-width: 48rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222; }
article { margin: 1.5rem 0; padding: 0 1rem; border-left: 3px solid #ccc; overflow-wrap: break-word; }
article.user { border-color: #2a7ae2; }
header, footer { color: #666; font-size: .85rem; }
footer ul { margin: 0; list-style: none; padding-left: 1rem; }
pre { overflow-x: auto; padding: .75rem; background: #f4f4f4; }
.math, .plain { white-space: pre-wrap; }
.math { font-family: ui-monospace, monospace; }
table { border-collapse: collapse; } td, th { border: 1px solid #ccc; padding: .2rem .6rem; }
@media (prefers-color-scheme: dark) { body { background: #1a1a1a; color: #ddd; } pre { background: #262626; } }
"""
# The page contains text that a model generated, so this policy blocks scripts and network requests.
_CONTENT_SECURITY_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def render(record: ConversationRecord, read_attachment: Callable[[str], bytes] | None = None) -> str:
    """Render the active path of a conversation, without other branches, as an HTML page.

    `read_attachment` returns the bytes of an attachment by SHA-256 hash, or raises StoreError; without it, the places
    in documents that replies cite are left out.
    """
    title = escape(record.conversation.title or "Conversation")
    path = active_path(record)
    passage_lines = describe_passages(path, read_attachment) if read_attachment is not None else {}
    body = "\n".join(
        _render_article(message, render_html(message.text), passage_lines.get(message.id, PassageLines()))
        for message in path
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_SECURITY_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def _render_article(message: Message, html: str, lines: PassageLines) -> str:
    heading = escape(make_heading(message))
    names = [f"Attached: {a.name} ({a.size_bytes} bytes)" for a in message.attachments if not a.is_passages]
    files = "".join(f"<p>{escape(name)}</p>" for name in [*names, *filter(None, [lines.description])])
    cited_lines = [*lines.cited_places, *(f"To check: {problem}" for problem in lines.problems)]
    items = "".join(f"<li>{escape(line)}</li>" for line in cited_lines)
    cited = f"<footer>Cited documents<ul>{items}</ul></footer>" if items else ""
    reasoning = (
        f"<details><summary>Reasoning</summary><pre>{escape(message.reasoning)}</pre></details>"
        if message.reasoning else ""
    )  # fmt: skip
    return f'<article class="{message.role}"><header>{heading}</header>{files}{reasoning}{html}{cited}</article>'
