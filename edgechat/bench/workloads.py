"""Conversations and scripted replies for benchmarks, read from a TOML file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgechat.decode_errors import describe_decode_error
from edgechat.errors import InvalidFileError, UsageError
from edgechat.files import read_toml


class WorkloadCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation and the scripted reply to its last message."""

    kind: str
    """Label of the case in reports, such as "translate"."""
    messages: list[str]
    """Alternating messages of user and assistant, starting and ending with the user."""
    reply: str = ""
    """Text of the reply; ignored if `reply_of` is set."""
    reply_of: str = ""
    """Name of the text in `Workloads.texts` to use as the reply instead of `reply`."""
    changes: list[tuple[str, str]] = []
    """Replacements (old, new) in the text of the reply."""
    frame: str = "{reply}"
    """Template of the complete reply, in which `{reply}` is the text after `changes`."""


class Workloads(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a workload file."""

    cases: list[WorkloadCase]
    texts: dict[str, str] = {}
    """Texts by name. `{name}` in a message is replaced by the text of that name."""

    def messages(self, case: WorkloadCase) -> list[str]:
        """Return the messages of a case, which precede its reply."""
        return [self._expand(message, self.texts).strip() for message in case.messages]

    def reply(self, case: WorkloadCase) -> str:
        """Return the scripted reply of a case."""
        reply = self.texts[case.reply_of] if case.reply_of else case.reply
        for old, new in case.changes:
            reply = reply.replace(old, new)
        return self._expand(case.frame, {"reply": reply}).strip()

    def _expand(self, template: str, texts: dict[str, str]) -> str:
        for name, text in texts.items():
            template = template.replace("{" + name + "}", text)
        return template


def read_workloads(path: Path | None = None) -> Workloads:
    """Read the workload file `path`, or the bundled file if it is None. Raises UsageError for an invalid file."""
    try:
        workloads = msgspec.convert(read_toml(path or Path(__file__).with_name("workloads.toml")), Workloads)
    except (InvalidFileError, msgspec.ValidationError) as error:
        reason = describe_decode_error(error)
        raise UsageError(
            f"{path} is not a workload file: {reason}. See edgechat/bench/workloads.toml for the format."
        ) from error
    for number, case in enumerate(workloads.cases, 1):
        if len(case.messages) % 2 == 0:
            raise UsageError(
                f"{path}: case {number} needs an odd number of messages: the first and the last are from the user."
            )
        if case.reply_of and case.reply_of not in workloads.texts:
            raise UsageError(
                f"{path}: case {number} needs the text {case.reply_of!r}, which is missing. Correct its `reply_of`."
            )
        if not case.reply_of and not case.reply:
            raise UsageError(f"{path}: case {number} has no reply. Set `reply` or `reply_of`.")
    if not workloads.cases:
        raise UsageError(f"{path} has no cases. Add a table [[cases]].")
    return workloads
