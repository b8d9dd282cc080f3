"""Environment and command lines of edgechat programs that a benchmark starts, with a temporary directory of files."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgechat import paths


def make_environment(home: Path) -> dict[str, str]:
    """Return the environment of a program whose files are in `home`, without other settings of edgechat."""
    # Omit PYTHONDONTWRITEBYTECODE, so that edgechat starts from bytecode files, as an installed program does.
    inherited_env = {
        k: v for k, v in os.environ.items() if not k.startswith("EDGECHAT_") and k != "PYTHONDONTWRITEBYTECODE"
    }
    return {**inherited_env, "EDGECHAT_HOME": str(home)}


@contextlib.contextmanager
def open_temporary_home(**variables: str | None) -> Iterator[Path]:
    """Use a temporary directory for all files of this process and its children in the `with` block, and yield it.

    The results of backend self-tests on this machine are copied to it, because the first start of a backend would
    include the tests otherwise. `variables` are further environment variables as in `replace_variables`.
    """
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as home:
        results = [paths.verdicts_file(), paths.kernel_speeds_file()]
        with replace_variables(EDGECHAT_HOME=home, **variables):
            for source, target in zip(results, (paths.verdicts_file(), paths.kernel_speeds_file()), strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(OSError):
                    shutil.copyfile(source, target)
            yield Path(home)


@contextlib.contextmanager
def replace_variables(**variables: str | None) -> Iterator[None]:
    """Set environment variables of this process for the `with` block; None removes a variable."""
    old_values = {name: os.environ.get(name) for name in variables}
    _set_variables(variables)
    try:
        yield
    finally:
        _set_variables(old_values)


def _set_variables(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def edgechat_command(*arguments: str) -> list[str]:
    """Return the command line of the installed `edgechat` with `arguments`."""
    return [shutil.which("edgechat", path=str(Path(sys.executable).parent)) or "edgechat", *arguments]
