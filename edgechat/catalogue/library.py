"""Model files on this machine: by path, by name in the models directory, or the starter model."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Final

from edgechat import paths
from edgechat.errors import ModelFileError

STARTER: Final = "starter"
_STARTER_PACKAGE: Final = "edgechat_starter"


def find_model(wanted: str) -> Path:
    """The file that a path or a name stands for.

    Raises ModelFileError, with what there is instead, if there is none.
    """
    # A name is never a path: what lies in the current directory must not take the place of a known model.
    if wanted.lower().endswith(".gguf") or "/" in wanted or os.sep in wanted:
        return Path(os.path.expanduser(wanted))  # noqa: PTH111  (Path's own raises for an unknown user)
    if wanted == STARTER:
        return starter_model()
    named = paths.models_dir() / f"{wanted}.gguf"
    if named.is_file():
        return named
    known = ", ".join([STARTER, *sorted(p.stem for p in paths.models_dir().glob("*.gguf"))])
    raise ModelFileError(
        f"no model is called {wanted!r}; known are: {known}; or name a .gguf file, with ./ before it if it lies here"
    )


def starter_model() -> Path:
    """The model that comes with edgechat. Raises ModelFileError if it was not installed."""
    spec = importlib.util.find_spec(_STARTER_PACKAGE)
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(directory).glob("*.gguf")):
            return path
    raise ModelFileError(
        "the starter model is not installed: name a model file with --model, "
        "or install edgechat with its `starter` extra (in a source checkout: `make setup`)"
    )
