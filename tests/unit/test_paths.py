"""Directories for edgechat's files in unusual environments."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.catalogue import locations
from edgechat.cli import root
from edgechat.errors import UsageError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="HOME and the password database")


@pytest.fixture
def no_edgechat_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGECHAT_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_password_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def getpwuid(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)


@pytest.mark.parametrize("home", [None, "", "relative/home"])
@pytest.mark.usefixtures("no_edgechat_home", "no_password_entry")
def test_unknown_home_directory_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: str | None
) -> None:
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)
    assert paths.home_dir() is None
    for command in ("config path", "config show", "models list", "models dirs", "history list", "plan", "uninstall"):
        monkeypatch.setattr(sys, "argv", ["edgechat", *command.split()])
        assert root.run() == UsageError.exit_code
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "Set HOME, or set EDGECHAT_HOME to a folder" in message


@pytest.mark.usefixtures("no_password_entry")
def test_no_location_is_relative_without_a_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    found = locations.list_locations([])
    assert found
    assert all(path.is_absolute() for _, path in found)
    assert paths.expand_user("~nobody-has-this-name/x") == Path("~nobody-has-this-name/x")


@pytest.mark.usefixtures("no_edgechat_home")
def test_relative_directories_in_variables_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "relative")
    assert all(tmp_path in directory.parents for directory in (paths.config_dir(), paths.data_dir(), paths.cache_dir()))
    hub_caches = [path for source, path in locations.list_locations([]) if source == locations.HUB_CACHE]
    assert hub_caches == [tmp_path / ".cache/huggingface/hub"]


def test_folder_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(tmp_path / ("x" * 300)))
    with pytest.raises(UsageError, match=r"Cannot open the folder .*: File name too long"):
        paths.config_dir()


def test_relative_home_in_a_deleted_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGECHAT_HOME", "home")
    assert paths.data_dir() == Path(os.path.realpath(folder)) / "home/data"
    folder.rmdir()
    with pytest.raises(UsageError, match="the current folder was deleted"):
        paths.data_dir()
