"""Names of collections that are made from folders and files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final

from edgechat.documents.collection import CollectionInfo
from edgechat.documents.library import MAX_NAME_CHARS, is_valid_name

_UNUSABLE: Final = re.compile(r"[^\w.-]+")
_DEFAULT_NAME: Final = "documents"


def choose_name(sources: Sequence[Path], infos: Sequence[CollectionInfo]) -> str:
    """Return the name for a collection of `sources`.

    This is the name of the collection among `infos` that has these sources already; otherwise an unused name, made from
    that of the first folder or file. A damaged collection whose sources are unknown may have them, so its name is
    returned, too, if it would be the first choice.
    """
    names = set()
    wanted_sources = {_normalize(source) for source in sources}
    for info in infos:
        names.add(info.name.casefold())
        if wanted_sources <= {_normalize(Path(source)) for source in info.sources}:
            return info.name
    candidate = next(_list_candidates(sources[0])).casefold()
    for info in infos:
        if info.is_damaged and not info.sources and info.name.casefold() == candidate:
            return info.name
    return next(name for name in _list_candidates(sources[0]) if name.casefold() not in names)


def _normalize(source: Path) -> str:
    return os.path.normcase(os.path.abspath(source))  # noqa: PTH100  (keeps symbolic links)


def _list_candidates(source: Path) -> Iterator[str]:
    """Yield valid names: that of the folder or file, then one with its parent, then numbered ones."""
    path = Path(_normalize(source))
    is_folder = os.path.isdir(path)  # noqa: PTH112  (Path.is_dir raises for a name that is too long)
    name = _clean(path.name if is_folder else path.stem)
    yield name
    yield _clean(f"{path.parent.name}-{name}")
    for number in count(2):
        suffix = f"-{number}"
        yield name[: MAX_NAME_CHARS - len(suffix)] + suffix


def _clean(text: str) -> str:
    name = _UNUSABLE.sub("-", text).strip("-._ ")[:MAX_NAME_CHARS].rstrip("-._ ")
    if not is_valid_name(name):
        name = f"{_DEFAULT_NAME}-{name}"[:MAX_NAME_CHARS] if name else _DEFAULT_NAME
    return name if is_valid_name(name) else _DEFAULT_NAME
