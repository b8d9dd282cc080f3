"""Recognition of files that cannot be used as models: other formats by first bytes, parts of cut files by name."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from edgechat.file_formats import find_byte_order_mark, find_format, find_unmarked_utf16

MAX_FILE_PARTS: Final = 200
"""Maximum number of parts of one file. Uploads have up to about 20."""
_MAX_SHOWN_PARTS: Final = 10
_MAX_FOLDER_ENTRIES: Final = 10_000
_SAFETENSORS_HEADER: Final = slice(8, 9)

_SEARCH_HINT: Final = "Search for a GGUF file of the model with `edgechat models search`."
_DOWNLOAD_HINT: Final = "Download the model with `edgechat models pull`."
# Formats of models by offset and magic bytes, with the next step for the user.
_MAGIC_NUMBERS: Final = (
    (0, b"version https://git-lfs", "is a Git LFS pointer to a model, not a GGUF file",
     f"Run `git lfs pull` in its folder. {_DOWNLOAD_HINT.replace('Download', 'Or download')}"),
    (0, b"PK\x03\x04", "is a ZIP archive or a PyTorch checkpoint, not a GGUF file", f"Extract it. {_SEARCH_HINT}"),
    (0, b"PK\x05\x06", "is an empty ZIP archive, not a GGUF file", _DOWNLOAD_HINT),
    (0, b"\x80\x02", "is a PyTorch checkpoint, not a GGUF file", _SEARCH_HINT),
    (0, b"lmgg", "is a GGML file of 2023, a format that llama.cpp no longer reads", _SEARCH_HINT),
    (0, b"fmgg", "is a GGMF file of 2023, a format that llama.cpp no longer reads", _SEARCH_HINT),
    (0, b"tjgg", "is a GGJT file of 2023, a format that llama.cpp no longer reads", _SEARCH_HINT),
    (0, b"algg", "is a GGLA adapter of 2023, a format that llama.cpp no longer reads", _SEARCH_HINT),
    (0, b"FUGG", "is a big-endian GGUF file, which this machine cannot use", _SEARCH_HINT),
    (0, b"\x89HDF", "is an HDF5 file (Keras), not a GGUF file", _SEARCH_HINT),
    (4, b"TFL3", "is a TensorFlow Lite model, not a GGUF file", _SEARCH_HINT),
    (0, b"\x93NUMPY", "is a NumPy array, not a GGUF file", _SEARCH_HINT),
)  # fmt: skip
_WEB_PAGE_STARTS: Final = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")
_TEXT_BYTES: Final = frozenset(range(0x20, 0x7F)) | {*b"\t\n\r\f"} | frozenset(range(0x80, 0x100))

# Names of the parts of a file that was cut into pieces, for example with `split`: NAME.gguf.part1of2,
# NAME.gguf-split-a, NAME.gguf.part-aa, NAME.gguf.001, NAME.part1of2.gguf, NAME.gguf.1of2, NAME.gguf (part 1 of 2).
# gguf-split's own names (-00001-of-00002.gguf) do not match.
_FILE_PART_PATTERN: Final = re.compile(
    r"(?P<stem>.+?)"
    r"(?:(?:[._-]|[ ]?[( ])(?:part|split)[._ -]?(?P<part>[a-z]{1,2}|\d{1,4})(?:[._ -]?of[._ -]?(?P<count>\d{1,4}))?\)?"
    r"|(?<=\.gguf)(?:[._-]|[ ]?[( ])(?P<number>\d{1,4})[._ -]?of[._ -]?(?P<total>\d{1,4})\)?"
    r"|(?<=\.gguf)\.(?P<suffix>a[a-z]|\d{2,3}))"
    r"(?P<extension>\.gguf)?",
    re.IGNORECASE | re.ASCII,
)
# Suffixes that programs give to files while they download them.
_DOWNLOAD_SUFFIXES: Final = (
    ".part", ".partial", ".crdownload", ".download", ".downloading", ".opdownload", ".incomplete", ".!ut", ".!qb",
    ".tmp", ".aria2",
)  # fmt: skip
_ARIA2_SUFFIX: Final = ".aria2"
"""aria2 writes to a file with its final name and full size, and keeps a control file with this suffix next to it."""


def describe_other_format(head: bytes, size: int) -> str:
    """Describe a file without GGUF's magic as a predicate ("is a ZIP archive ..."), with the next step for the user.

    `head` contains the first `HEAD_BYTES` bytes of the file, and `size` is the size of the file in bytes.
    """
    for offset, magic, description, advice in _MAGIC_NUMBERS:
        if head[offset : offset + len(magic)] == magic:
            return f"{description}. {advice}"
    if head[_SAFETENSORS_HEADER] == b"{" and int.from_bytes(head[:8], "little") < size:
        return f"is a safetensors file, not a GGUF file. {_SEARCH_HINT}"
    file_format = find_format(head)
    if file_format is not None:
        advice = file_format.advice if file_format.is_container else "Choose a .gguf file."
        return f"is {file_format.name}, not a GGUF file. {advice}"
    if not any(head):
        return "starts with zeros, as after an interrupted download or copy, and is not a GGUF file. Download it again."
    text = _decode_text(head)
    if not _TEXT_BYTES.issuperset(text):
        return "is not a GGUF file (it does not start with GGUF)"
    text = text.lstrip().lower()
    kind = "text file"
    if text.startswith(_WEB_PAGE_STARTS):
        kind = "web page that was saved instead of the file"
    elif text.startswith((b"{", b"[")):
        kind = "JSON text, perhaps an error message of a server"
    return f"is a {kind}, not a GGUF file. {_DOWNLOAD_HINT}"


def _decode_text(head: bytes) -> bytes:
    """Convert UTF-16 and UTF-32 text to UTF-8 without a byte order mark; return other bytes unchanged."""
    mark, encoding = find_byte_order_mark(head)
    encoding = encoding or find_unmarked_utf16(head)
    text = head[len(mark) :]
    return text if encoding in {"utf-8", ""} else text.decode(encoding, "ignore").encode("utf-8", "ignore")


def describe_download(path: Path) -> str:
    """Describe an incomplete download as a predicate, with the next step; return "" if the file seems complete."""
    suffix = path.suffix.lower()
    if suffix in _DOWNLOAD_SUFFIXES and ".gguf" in path.name.lower():
        return f"is an incomplete download ({suffix}). Resume it, or start it again with `edgechat models pull`."
    control_file = path.with_name(path.name + _ARIA2_SUFFIX)
    if os.path.exists(control_file):  # noqa: PTH110  (Path.exists raises OSError for a name that is too long)
        return f"is an incomplete download: its folder contains {control_file.name}. Resume it with aria2."
    return ""


def describe_unsupported_version(version: int, supported: Sequence[int]) -> str:
    """Describe an unsupported GGUF version as a predicate, with the next step for the user."""
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped < version:
        return f"is a big-endian GGUF file (version {swapped}), which this machine cannot use. {_SEARCH_HINT}"
    if version < supported[0]:
        return f"has GGUF version {version}, which llama.cpp no longer reads. Download a newer file of the model."
    versions = " and ".join(map(str, supported))
    return f"has GGUF version {version}, but this edgechat reads only versions {versions}. Update edgechat."


class CutFilePart(NamedTuple):
    """Parsed name of one part of a model file that was cut into pieces."""

    whole_name: str
    """Name of the file that the parts form together."""
    number: int
    """Number of this part in the order of the parts, counted from 0 or 1."""
    n_parts: int
    """Number of parts; 0 if the name does not contain it."""


def parse_file_part(name: str) -> CutFilePart | None:
    """Parse the name of one part of a file that was cut into pieces. Returns None for any other name."""
    match = _FILE_PART_PATTERN.fullmatch(name)
    if match is None:
        return None
    label, stem = (match["part"] or match["number"] or match["suffix"]).lower(), match["stem"]
    number, n_parts = int(label) if label.isdigit() else int(label, 36), int(match["count"] or match["total"] or 0)
    return CutFilePart(stem if stem.lower().endswith(".gguf") else f"{stem}.gguf", number, n_parts)


def group_file_parts(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of cut files by the name of the whole file, in the order of the parts; omits other names."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        part = parse_file_part(name)
        if part is not None:
            groups.setdefault(part.whole_name, []).append((part.number, name))
    return {whole_name: [name for _, name in sorted(parts)][:MAX_FILE_PARTS] for whole_name, parts in groups.items()}


def format_join_command(names: Sequence[str], whole_name: str) -> str:
    """Return the shell command that joins the parts `names` of a file."""
    quoted_names = [shlex.quote(name) for name in names]
    if len(names) > _MAX_SHOWN_PARTS:
        quoted_names[_MAX_SHOWN_PARTS - 1 : -1] = ["..."]
    return f"cat {' '.join(quoted_names)} > {shlex.quote(whole_name)}"


def describe_file_part(path: Path) -> str:
    """Describe one part of a cut file as a predicate, with the command that joins the parts.

    Returns "" if the name of the file is not that of a part.
    """
    part = parse_file_part(path.name)
    if part is None:
        return ""
    try:
        entries = [entry.name for entry, _ in zip(path.parent.iterdir(), range(_MAX_FOLDER_ENTRIES), strict=False)]
    except OSError:
        entries = []
    names = group_file_parts([*dict.fromkeys([*entries, path.name])])[part.whole_name]
    text = f"is only a part of {part.whole_name}, which was cut into {part.n_parts or 'several'} files"
    if len(names) < max(2, part.n_parts):
        return f"{text}, and its folder has {len(names)} of them. Download the others, then join all with `cat`."
    return f"{text}. Join them with `{format_join_command(names, part.whole_name)}`."
