"""Split models of llama.cpp's gguf-split: files with the names NAME-00001-of-00003.gguf and so on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgechat.errors import ModelFileError
from edgechat.modelfile.file_kinds import describe_download
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.modelfile.header import ModelHeader

MAX_PARTS: Final = 1000
"""Maximum number of parts of a model. The largest published models have about 50."""
_PART_NAME_PATTERN: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


class PartName(NamedTuple):
    """Parsed file name of one part of a split model."""

    stem: str
    number: int
    """Number of this part, counted from 1."""
    n_parts: int

    def name_of_part(self, number: int) -> str:
        """Return the file name of part `number`, counted from 1."""
        return f"{self.stem}-{number:05}-of-{self.n_parts:05}.gguf"

    def all_names(self) -> list[str]:
        """Return the file names of all parts, in order."""
        return [self.name_of_part(number) for number in range(1, self.n_parts + 1)]


def parse_part_name(name: str) -> PartName | None:
    """Parse the file name of one part of a split model. Returns None for any other name."""
    match = _PART_NAME_PATTERN.fullmatch(name)
    if match is None:
        return None
    part = PartName(match["stem"], int(match["number"]), int(match["count"]))
    return part if 1 <= part.number <= part.n_parts <= MAX_PARTS else None


def list_model_files(path: Path) -> list[Path]:
    """Return the files of a model in order: only `path`, or all parts of a split model if `path` is one of them.

    The result depends only on the file name; the files need not exist.
    """
    part = parse_part_name(path.name)
    return [path.with_name(name) for name in part.all_names()] if part else [path]


def read_header(path: Path) -> ModelHeader:
    """Read and check the header of a model; for a split model, `path` is its first part.

    Raises ModelFileError, which contains the path and the reason, or the names of missing parts.
    """
    problem = describe_download(path) if os.path.isfile(path) else ""  # noqa: PTH113  (Path raises for some names)
    if problem:
        raise ModelFileError(f"{path} {problem}")
    first_header = read_gguf_header(path)
    n_parts = first_header.n_parts
    if n_parts == 1:
        return first_header
    name = parse_part_name(path.name)
    if name is None or name.n_parts != n_parts:
        raise ModelFileError(
            f"{path} is part of a model in {n_parts} files, but its name does not end in "
            f"-00001-of-{n_parts:05}.gguf. Open the first part, with its original file name."
        )
    if name.number != 1:
        raise ModelFileError(f"{path} is part {name.number} of {n_parts}: open the first part, {name.name_of_part(1)}")
    later_parts = list_model_files(path)[1:]
    missing_names = [part.name for part in later_parts if not part.exists()]
    if missing_names:
        names = ", ".join(missing_names)
        raise ModelFileError(f"{path} is part of a model in {n_parts} files. These are missing in its folder: {names}")
    return join_headers([first_header, *map(read_gguf_header, later_parts)])


def join_headers(parts: Sequence[ModelHeader]) -> ModelHeader:
    """Merge the headers of all parts of a split model, in order. Raises ModelFileError if they do not match."""
    first_header = parts[0]
    for index, part in enumerate(parts):
        if (part.n_parts, part.part_index) != (len(parts), index):
            raise ModelFileError(
                f"{part.path} is part {part.part_index + 1} of {part.n_parts} according to its header, "
                f"but part {index + 1} of {len(parts)} according to its name"
            )
    tensors = tuple(
        msgspec.structs.replace(tensor, part_index=index) for index, part in enumerate(parts) for tensor in part.tensors
    )
    n_expected = first_header.metadata.get("split.tensors.count", len(tensors))
    if len({t.name for t in tensors}) != len(tensors) or len(tensors) != n_expected:
        raise ModelFileError(
            f"{first_header.path} and its {len(parts) - 1} other parts have {len(tensors)} tensors, "
            f"expected {n_expected} with different names: check that all parts are of the same model"
        )
    return msgspec.structs.replace(
        first_header, file_bytes=sum(part.file_bytes for part in parts), tensors=tensors,
        later_data_offsets=tuple(part.data_offset for part in parts[1:]),
    )  # fmt: skip
