"""A home of its own for every test, so that none sees or leaves anything in the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgechat.catalogue.library import starter_model

ROOT = Path(__file__).resolve().parent.parent
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def warm_verdicts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verdicts file in which the backends of this machine are already judged."""
    home = tmp_path_factory.mktemp("warm")
    subprocess.run(
        edgechat_command("doctor", "--json"), env=os.environ | {"EDGECHAT_HOME": str(home)}, check=True,
        capture_output=True,
    )  # fmt: skip
    return home / "cache" / "backends.json"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """The directory that holds settings, data and cache during this test."""
    directory = tmp_path / "home"
    for name in [n for n in os.environ if n.startswith("EDGECHAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGECHAT_HOME", str(directory))
    if request.node.get_closest_marker("cold") is None and "unit" not in request.node.path.parts:
        verdicts = request.getfixturevalue("warm_verdicts")
        (directory / "cache").mkdir(parents=True)
        shutil.copy(verdicts, directory / "cache")
    return directory


@pytest.fixture(autouse=True)
def apps() -> Iterator[None]:
    """End chats that a test opened."""
    yield
    driving = sys.modules.get("tests.tui.app_driver")
    if driving is not None:
        driving.close_apps()


@pytest.fixture(scope="session")
def starter() -> Path:
    """The starter model's file."""
    return starter_model()


def edgechat_command(*arguments: str) -> list[str]:
    """The command line of the installed program."""
    return [str(Path(sys.executable).parent / "edgechat"), *arguments]


@pytest.fixture
def cli() -> Cli:
    """Run `edgechat` with arguments, without a terminal; keyword arguments go to subprocess.run."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        given: dict[str, object] = {"stdin": subprocess.DEVNULL} if "input" not in options else {}
        given |= {"capture_output": True, "text": True, "timeout": 120} | options
        return subprocess.run(edgechat_command(*arguments), check=False, **given)  # type: ignore[call-overload,no-any-return]

    return run
