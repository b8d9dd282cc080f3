"""Conversations to be measured with, out of a TOML file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgechat.errors import InvalidFileError, UsageError
from edgechat.files import read_toml


class WorkloadCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation, and what is answered at its end."""

    kind: str
    messages: list[str]
    """By turns, the user's first; an odd number."""
    reply: str = ""
    reply_of: str = ""
    """Name of a text that the reply is, with `changes`."""
    changes: list[tuple[str, str]] = []
    frame: str = "{reply}"
    """What stands around it."""


class Workloads(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole file. Methods put in texts where they are named."""

    cases: list[WorkloadCase]
    texts: dict[str, str] = {}

    def messages(self, case: WorkloadCase) -> list[str]:
        """What is said before the reply."""
        return [self._put_in(message, self.texts).strip() for message in case.messages]

    def reply(self, case: WorkloadCase) -> str:
        """What is answered."""
        reply = self.texts[case.reply_of] if case.reply_of else case.reply
        for old, new in case.changes:
            reply = reply.replace(old, new)
        return self._put_in(case.frame, {"reply": reply}).strip()

    def _put_in(self, words: str, texts: dict[str, str]) -> str:
        for name, text in texts.items():
            words = words.replace("{" + name + "}", text)
        return words


def read(path: Path | None = None) -> Workloads:
    """The workloads in a file, or our own. Raises UsageError if it is no such file."""
    try:
        workloads = msgspec.convert(read_toml(path or Path(__file__).with_name("workloads.toml")), Workloads)
    except (InvalidFileError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{path} holds no workloads: {error} (edgechat/bench/workloads.toml shows what they look like)"
        ) from error
    for number, case in enumerate(workloads.cases, 1):
        if len(case.messages) % 2 == 0:
            raise UsageError(f"{path}: case {number} needs an odd number of messages: the user's comes last")
        if (case.reply_of or not case.reply) and case.reply_of not in workloads.texts:
            raise UsageError(f"{path}: case {number} has no reply, and there is no text {case.reply_of!r}")
    if not workloads.cases:
        raise UsageError(f"{path} holds no cases")
    return workloads
