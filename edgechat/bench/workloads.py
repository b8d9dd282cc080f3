"""Benchmark conversations read from a TOML file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgechat.errors import InvalidFileError, UsageError
from edgechat.files import read_toml


class WorkloadCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation and the scripted reply to its last message."""

    kind: str
    messages: list[str]
    """Alternating messages of user and assistant, starting and ending with the user."""
    reply: str = ""
    reply_of: str = ""
    """Name of the text that becomes the reply after `changes`."""
    changes: list[tuple[str, str]] = []
    frame: str = "{reply}"
    """Template around the reply."""


class Workloads(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a workload file. Methods replace `{name}` by the text of that name."""

    cases: list[WorkloadCase]
    texts: dict[str, str] = {}

    def messages(self, case: WorkloadCase) -> list[str]:
        """Return the messages before the reply."""
        return [self._expand(message, self.texts).strip() for message in case.messages]

    def reply(self, case: WorkloadCase) -> str:
        """Return the scripted reply."""
        reply = self.texts[case.reply_of] if case.reply_of else case.reply
        for old, new in case.changes:
            reply = reply.replace(old, new)
        return self._expand(case.frame, {"reply": reply}).strip()

    def _expand(self, template: str, texts: dict[str, str]) -> str:
        for name, text in texts.items():
            template = template.replace("{" + name + "}", text)
        return template


def read_workloads(path: Path | None = None) -> Workloads:
    """Read workloads from `path`, or the bundled ones. Raises UsageError for an invalid file."""
    try:
        workloads = msgspec.convert(read_toml(path or Path(__file__).with_name("workloads.toml")), Workloads)
    except (InvalidFileError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{path} is not a workload file: {error}. See edgechat/bench/workloads.toml for the format."
        ) from error
    for number, case in enumerate(workloads.cases, 1):
        if len(case.messages) % 2 == 0:
            raise UsageError(f"{path}: case {number} needs an odd number of messages, the last one from the user.")
        if (case.reply_of or not case.reply) and case.reply_of not in workloads.texts:
            raise UsageError(f"{path}: case {number} has no reply, and no text is named {case.reply_of!r}.")
    if not workloads.cases:
        raise UsageError(f"{path} has no cases.")
    return workloads
