"""Models that lie in several files, `NAME-00001-of-00003.gguf` and so on, as llama.cpp's gguf-split writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgechat.errors import ModelFileError
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.modelfile.header import ModelHeader

MAX_PARTS: Final = 1000
"""More than any set that exists: the largest ones have about 50."""
_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


class PartName(NamedTuple):
    """What the name of a part says."""

    stem: str
    number: int
    """From 1."""
    n_parts: int

    def name_of_part(self, number: int) -> str:
        """The name of another part of the set."""
        return f"{self.stem}-{number:05}-of-{self.n_parts:05}.gguf"

    def all_names(self) -> list[str]:
        """The names of all parts, in order."""
        return [self.name_of_part(number) for number in range(1, self.n_parts + 1)]


def parse_part_name(name: str) -> PartName | None:
    """What a file's name says, if it is that of a part."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    part = PartName(match["stem"], int(match["number"]), int(match["count"]))
    return part if 1 <= part.number <= part.n_parts <= MAX_PARTS else None


def read_header(path: Path) -> ModelHeader:
    """The checked header of a model: of a file, or of a set of files named by its first.

    Raises ModelFileError, naming the file and what is wrong with it, or what is missing of a set.
    """
    first = read_gguf_header(path)
    count = first.n_parts
    if count == 1:
        return first
    name = parse_part_name(path.name)
    if name is None or name.n_parts != count:
        raise ModelFileError(
            f"{path} is part of a set of {count} files, but is not called like one (NAME-00001-of-{count:05}.gguf)"
        )
    if name.number != 1:
        raise ModelFileError(f"{path} is part {name.number} of {count}: name the first, {name.name_of_part(1)}")
    others = [path.with_name(sibling) for sibling in name.all_names()[1:]]
    missing = [other.name for other in others if not other.exists()]
    if missing:
        raise ModelFileError(f"{path} is one of {count} files; missing beside it: {', '.join(missing)}")
    return join_headers([first, *map(read_gguf_header, others)])


def join_headers(parts: Sequence[ModelHeader]) -> ModelHeader:
    """One header of the parts of a set, in order. Raises ModelFileError if they do not belong together."""
    first = parts[0]
    for number, part in enumerate(parts):
        if (part.n_parts, part.part_index) != (len(parts), number):
            raise ModelFileError(
                f"{part.path} says that it is part {part.part_index + 1} of {part.n_parts}, not {number + 1} of {len(parts)}"
            )
    tensors = tuple(
        msgspec.structs.replace(tensor, part_index=number)
        for number, part in enumerate(parts)
        for tensor in part.tensors
    )
    expected = first.metadata.get("split.tensors.count", len(tensors))
    if len({t.name for t in tensors}) != len(tensors) or len(tensors) != expected:
        raise ModelFileError(
            f"{first.path} and its {len(parts) - 1} other parts have {len(tensors)} tensors, but should have "
            f"{expected}, each once: are they all of the same set?"
        )
    return msgspec.structs.replace(first, file_bytes=sum(part.file_bytes for part in parts), tensors=tensors)
