"""Rules that remove what changes from request to request without a meaning in system prompts, for example of agents.

A changed character in a system prompt makes the whole prompt after it new: it must be processed again, which takes a
minute for an agent's 15,000 tokens on a laptop. Each rule has a name, by which `edgechat serve` can turn it off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Final

from msgspec import structs

from edgechat.prompt.renderer import PromptMessage

_BILLING_LINE: Final = re.compile(r"(?m)^x-anthropic-billing-header:[^\n]{0,500}(?:\n|\Z)")
# A time after a date, or on a line about the current time. Other times, such as those of a timetable, mean something.
_TIME: Final = re.compile(
    r"(\b\d{4}-\d\d-\d\d[T ,]{1,3}|\b(?:[Cc]urrent|[Nn]ow|[Ll]ocal|[Tt]oday)\b[^\n\d]{0,40})"
    r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:[.,]\d{1,9})?(?![\d:])"
)
_REQUEST_ID: Final = re.compile(
    r"(?im)^([ \t>*-]{0,20}(?:request|trace|correlation|message|turn)[-_ ]?id[\"'`]?[ \t]*[:=][ \t]*[\"'`]?)"
    r"[0-9a-z][0-9a-z_-]{7,80}"
)
PROMPT_RULES: Final[dict[str, tuple[str, Callable[[str], str]]]] = {
    "billing-header": (
        "Remove the line `x-anthropic-billing-header: ...`, whose hash changes in each request of Claude Code.",
        lambda text: _BILLING_LINE.sub("", text),
    ),
    "seconds": (
        "Round the current time, and times after a date, down to the hour if they have seconds.",
        lambda text: _TIME.sub(r"\1\2:00:00", text),
    ),
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
    for name, (_, change) in PROMPT_RULES.items():
        if name in names:
            text = change(text)
    return text
