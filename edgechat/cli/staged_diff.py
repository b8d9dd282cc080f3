"""Staged changes of a git repository, cut to a length that a model can read."""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Final, NamedTuple

from edgechat.errors import UsageError, format_reason
from edgechat.humanize import format_count, shorten

# Maximum size of git's output that is read. Only the file names of the rest are known.
_MAX_READ_BYTES: Final = 8 << 20
_MAX_LISTED_FILES: Final = 60
_MAX_NAME_CHARS: Final = 120
_N_EARLIER_SUBJECTS: Final = 5
_FILE_START: Final = re.compile(r"^(?=diff --git )", re.MULTILINE)
# Options for output that does not depend on the settings of the user, and that runs no other program.
_DIFF: Final = (
    "diff", "--cached", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "--submodule=short"
)  # fmt: skip

_LOG: Final = ("log", "--no-merges", "--no-show-signature", "--format=%s")


class StagedChanges(NamedTuple):
    """Output of git about the staged changes."""

    diff: str
    names: list[str]
    """Lines of `git diff --name-status`, one for each file."""


class StagedDiff(NamedTuple):
    """The staged changes as text for a model, and what the text leaves out."""

    text: str
    note: str
    """Sentence for the user about the parts that were left out; "" if the text is complete."""


def read_staged_changes() -> StagedChanges:
    """Return the staged changes of the repository of the current folder.

    Raises UsageError if nothing is staged, git is missing, or git reports an error.
    """
    _run_git("rev-parse", "--git-dir")  # outside of a repository, `git diff` would compare files
    names = _run_git(*_DIFF, "--name-status")
    if not names.strip():
        raise UsageError("Nothing is staged: stage the changes with `git add` first.")
    return StagedChanges(_run_git(*_DIFF, "--unified=2"), names.splitlines())


def read_earlier_subjects() -> list[str]:
    """Return the subjects of the newest commits, as examples of the style; empty without commits."""
    try:
        subjects = _run_git(
            "log", f"-{_N_EARLIER_SUBJECTS}", "--no-merges", "--no-show-signature", "--format=%s"
        ).splitlines()
    except UsageError:  # the first commit
        return []
    return [shorten(subject, _MAX_NAME_CHARS) for subject in subjects]


def _run_git(*arguments: str) -> str:
    """Return the output of git, up to `_MAX_READ_BYTES`. Raises UsageError if git fails, with its message."""
    try:
        # Errors go to a file, because git would wait for the reader of a second pipe.
        with tempfile.TemporaryFile() as errors, subprocess.Popen(
            ["git", "--no-pager", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,  # noqa: S607
            stderr=errors,
        ) as process:  # fmt: skip
            if process.stdout is None:
                raise UsageError("git was started without a pipe.")
            data = process.stdout.read(_MAX_READ_BYTES)
            is_cut = bool(process.stdout.read(1))
            if is_cut:
                process.kill()
            process.wait()
            errors.seek(0)
            message = errors.read(_MAX_READ_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        raise UsageError(f"Cannot run git: {format_reason(error)}. Install git first.") from error
    if process.returncode and not is_cut:
        raise UsageError(f"git: {message.partition(chr(10))[0] or f'exit code {process.returncode}'}")
    return data.decode("utf-8", "replace")


def cut_diff(changes: StagedChanges, max_chars: int) -> StagedDiff:
    """Shorten a diff to about `max_chars`: each file gets the same share.

    Files shorter than their share leave the rest to the others. Cuts are at line ends, and the text names them. A list
    of the files comes first.
    """
    diff, names = changes
    listed_names = [shorten(name.replace("\t", " "), _MAX_NAME_CHARS) for name in names[:_MAX_LISTED_FILES]]
    if len(names) > len(listed_names):
        listed_names.append(f"and {format_count(len(names) - len(listed_names), 'other file')}")
    parts = _split_files(diff)
    share = _find_share([len(part) for part in parts], max_chars)
    cut_parts = [_cut_part(part, share) for part in parts]
    n_cut = sum(cut != part for cut, part in zip(cut_parts, parts, strict=True)) + max(0, len(names) - len(parts))
    note = ""
    if n_cut:
        note = (
            f"The diff has {len(diff):,} characters. The model reads {max_chars:,} of them: {n_cut} of "
            f"{format_count(max(len(names), len(parts)), 'file')} {'is' if n_cut == 1 else 'are'} cut."
        )
    text = "\n".join(["Changed files:", *listed_names, "", *(part.rstrip("\n") for part in cut_parts if part)])
    return StagedDiff(text, note)


def _split_files(diff: str) -> list[str]:
    """Split a diff into the parts of its files, each of which begins with `diff --git`."""
    return [part for part in _FILE_START.split(diff) if part.startswith("diff --git ")]


def _find_share(lengths: list[int], max_chars: int) -> int:
    """Return the largest length to which each part can be cut so that all parts together have `max_chars`."""
    n_left, chars_left = len(lengths), max_chars
    for length in sorted(lengths):
        if length * n_left > chars_left:
            return chars_left // n_left
        chars_left -= length
        n_left -= 1
    return max_chars


def _cut_part(part: str, max_chars: int) -> str:
    """Cut the diff of one file at a line end, and say how many lines are missing; "" if not one line fits."""
    if len(part) <= max_chars:
        return part
    end = part.rfind("\n", 0, max_chars) + 1
    if not end:
        return ""
    return part[:end] + f"[{format_count(part.count(chr(10), end), 'more line')} of this file]\n"
