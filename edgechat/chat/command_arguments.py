"""Arguments of slash commands: settings, alternatives, the text that `/copy` copies, the file that `/export` writes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgechat.documents.descriptions import describe_unknown_collection
from edgechat.errors import UsageError
from edgechat.humanize import format_count

if TYPE_CHECKING:
    from edgechat.prompt.agreement.picker import PickMethod


def select_text_to_copy(text: str, find_code_blocks: Callable[[str], list[str]], argument: str) -> tuple[str, str]:
    """Return the part of a reply that `/copy` copies, and a label for it.

    Without an argument, this is the whole `text`; with the argument `code`, its last code block; with a number, with or
    without `code` before it, the code block with this number. Raises UsageError.
    """
    match = re.fullmatch(r"code|(?:code +)?(?P<number>\d{1,4})", argument)
    if match is None and argument:
        raise UsageError("Use /copy for the last reply, /copy code for its last code block, /copy 2 for block 2.")
    if match is None:
        return text, "Reply"
    blocks = find_code_blocks(text)
    if not blocks:
        raise UsageError("This message has no code block to copy")
    number = int(match["number"] or len(blocks))
    if not 1 <= number <= len(blocks):
        raise UsageError(f"The last reply has {format_count(len(blocks), 'code block')}")
    return blocks[number - 1], f"Code block {number}"


def choose_export_path(name: str, title: str) -> Path:
    """Return the absolute path of an export file: `name`, or an unused name derived from the conversation's title.

    Raises UsageError if `name` exists, because an export never overwrites a file.
    """
    from edgechat.chat.mentions import parse_path

    if name:
        path = parse_path(name).absolute()
        if path.exists():
            raise UsageError(f"{path} exists already. Choose another file name.")
        return path
    words = "".join(c if c.isalnum() or c in "-_" else " " for c in title)
    stem = "-".join(words.split())[:60] or "conversation"
    numbered_stems = (f"{stem}-{number}" for number in itertools.count(2))
    return next(p for s in itertools.chain((stem,), numbered_stems) if not (p := Path(f"{s}.md").absolute()).exists())


def parse_reasoning(word: str) -> bool | None:
    """Parse the argument of `/reasoning`: True for on, False for off, None for auto. Raises UsageError."""
    try:
        return {"on": True, "yes": True, "off": False, "no": False, "auto": None}[word.lower()]
    except KeyError:
        raise UsageError(f"{word!r} is not a valid argument. Use on, off or auto.") from None


def parse_thinking(text: str) -> str | None:
    """Parse the argument of `/thinking`: the limit of reasoning, or None for `default`."""
    return None if text.lower() == "default" else text.lower()


def parse_collections(argument: str, existing_names: Sequence[str]) -> tuple[str, ...]:
    """Parse the argument of `/docs`: names of collections, or `off` for none. Raises UsageError for unknown names.

    Commas or spaces separate the names; only commas if a name contains spaces.
    """
    if argument.lower() == "off":
        return ()
    names = [name.strip() for name in argument.split(",") if name.strip()]
    if any(name not in existing_names for name in names) and len(names) <= 1:
        names = argument.split()
    unknown_name = next((name for name in names if name not in existing_names), None)
    if unknown_name is not None:
        raise UsageError(
            f"{describe_unknown_collection(unknown_name, existing_names)} "
            "Add one with @FOLDER/ in a message or `edgechat docs add`."
        )
    return tuple(dict.fromkeys(names))


def parse_setting(argument: str) -> tuple[str, object]:
    """Parse the argument of `/set` into a setting's name and value. Raises UsageError."""
    from edgechat.config import parse_value

    name, _, text = argument.partition(" ")
    if not text.strip():
        raise UsageError("Usage: /set NAME VALUE, for example /set temperature 0.5")
    return name, parse_value(name, text.strip())


def parse_best(argument: str) -> tuple[int, PickMethod]:
    """Parse the argument of `/best`: a number of replies and a method, both optional. Raises UsageError."""
    from edgechat.chat.reply_picking import DEFAULT_N_REPLIES
    from edgechat.prompt.agreement.picker import MAX_PICKED_REPLIES, PICK_METHODS

    n_replies, method = DEFAULT_N_REPLIES, PICK_METHODS[0]
    for word in argument.lower().split():
        if word in PICK_METHODS:
            method = PICK_METHODS[PICK_METHODS.index(word)]
        elif word.isdecimal() and 2 <= int(word[:9]) <= MAX_PICKED_REPLIES:  # noqa: PLR2004  (replies to compare)
            n_replies = int(word)
        else:
            raise UsageError(
                f"{word[:20]!r} is neither a number from 2 to {MAX_PICKED_REPLIES} nor agree, likely or judge. "
                "Example: /best 5 agree"
            )
    return n_replies, method


def parse_alternative_index(argument: str, current_number: int, n_alternatives: int) -> int:
    """Return the zero-based index of the alternative that `/switch` selects.

    `argument` is a number from 1 to `n_alternatives`; "" selects the alternative after `current_number` and
    wraps around to the first. Raises UsageError.
    """
    if argument and not (argument.isdecimal() and 1 <= int(argument) <= n_alternatives):
        raise UsageError(f"There are {n_alternatives} alternatives. Use /switch 1 to /switch {n_alternatives}.")
    return int(argument) - 1 if argument else current_number % n_alternatives
