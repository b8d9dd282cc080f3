"""Prompt rules: remove volatile text (hashes, the time, request ids) from system prompts, for example of agents.

A changed character in a system prompt makes the whole prompt after it new: it must be processed again, which takes a
minute for an agent's 15,000 tokens on a laptop. Each rule has a name, by which `edgechat serve` can turn it off.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Collection, Sequence
from typing import Final

from msgspec import structs

from edgechat.prompt.renderer import PromptMessage

# The rules change only the beginning of a system prompt, so that a huge one takes no time.
_MAX_CHARS: Final = 1 << 17
# Claude Code sends the header as a block of its own, which the next block follows without a newline.
_BILLING_HEADER: Final = re.compile(
    r"(?m)^(?:x-anthropic-billing-header:(?:[ \t]*[\w.-]{1,64}=[^;\s]{0,200}(?:;|(?=\n|\Z)))+[ \t]*\n?)+"
)
_DATED_TIME: Final = re.compile(
    r"\b(\d{4}-\d\d-\d\d)([T ,]{1,3})([01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:[.,]\d{1,9})?(?![\d:])"
)
_CURRENT_TIME: Final = re.compile(
    r"(?i)\b(current (?:local |utc )?(?:date and |date/)?time\b[^\n\d]{0,20})([01]\d|2[0-3]):[0-5]\d:[0-5]\d"
    r"(?:[.,]\d{1,9})?(?![\d:])"
)
_MAX_DAYS: Final = 1
_REQUEST_ID: Final = re.compile(
    r"(?im)^([ \t>*-]{0,20}(?:request|trace|correlation|message|turn)[-_ ]?id[\"'`]?[ \t]*[:=][ \t]*[\"'`]?)"
    r"(?=[a-z_-]{0,20}\d|[0-9a-f-]{1,20}\d)(?:[a-z]{2,6}_[0-9a-z]{12,64}|[0-9a-f]{8}-[0-9a-f-]{4,40}|[0-9a-f]{12,64})\b"
)


def _round_times(text: str) -> str:
    today = dt.datetime.now(dt.timezone.utc).date()

    def round_time(match: re.Match[str]) -> str:
        try:
            is_current = abs((dt.date.fromisoformat(match[1]) - today).days) <= _MAX_DAYS
        except ValueError:
            is_current = False
        return f"{match[1]}{match[2]}{match[3]}:00:00" if is_current else match[0]

    return _CURRENT_TIME.sub(r"\1\2:00:00", _DATED_TIME.sub(round_time, text))


PROMPT_RULES: Final[dict[str, tuple[str, Callable[[str], str]]]] = {
    "billing-header": (
        "Remove `x-anthropic-billing-header: ...`, whose hash changes in each request of Claude Code.",
        lambda text: _BILLING_HEADER.sub("", text),
    ),
    "seconds": ("Round the current time down to the hour if it has seconds.", _round_times),
    "request-id": (
        "Replace ids of requests, traces, messages and turns at the start of a line by 0.",
        lambda text: _REQUEST_ID.sub(r"\g<1>0", text),
    ),
}
"""Description and function of each rule, by its name."""


def apply_prompt_rules(messages: Sequence[PromptMessage], names: Collection[str]) -> list[PromptMessage]:
    """Return `messages` with the rules `names` applied to the system messages."""
    return [structs.replace(m, content=_apply(m.content, names)) if m.role == "system" else m for m in messages]


def _apply(text: str, names: Collection[str]) -> str:
    start, rest = text[:_MAX_CHARS], text[_MAX_CHARS:]
    for name, (_, change) in PROMPT_RULES.items():
        if name in names:
            start = change(start)
    return start + rest
