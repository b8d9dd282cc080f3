"""`edgechat uninstall` lists and deletes all data of edgechat and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgechat.cli.uninstall import find_data_items, uninstall
from edgechat.engine.local_socket import socket_dir
from edgechat.errors import UsageError
from edgechat.models import instances
from tests.conftest import Cli


@pytest.fixture
def used(home: Path) -> Path:
    """A home directory with data of every kind, and files of other programs."""
    for name, text in {
        "config/config.toml": "temperature = 0.1\n",
        "config/personas/cook.toml": "",
        "config/notes.txt": "mine",
        "data/history.db": "x" * 1000,
        "data/history.db-wal": "",
        "data/history.db.damaged-20260101-000000": "",
        "data/drafts/a.json": "",
        "data/models/owner/m.gguf": "y" * 5000,
        "data/library.json": "{}",
        "data/documents/manuals.db": "d",
        "data/thesis.tex": "mine",
        "cache/prefix/ab/1.kv": "z",
        "cache/backends.json": "{}",
        "cache/engine.log": "",
        "cache/engine.log.1": "",
    }.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (home / "data" / "elsewhere").mkdir()
    (home / "data" / "elsewhere" / "big.gguf").write_text("theirs")
    (home / "data" / "models" / "link").symlink_to(home / "data" / "elsewhere")
    return home


def files(home: Path) -> set[str]:
    return {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()}


def test_purge_deletes_exactly_the_listed_data(used: Path, cli: Cli) -> None:
    listed = json.loads(cli("uninstall", "--json").stdout)
    assert {Path(each["path"]).name: each["n_bytes"] for each in listed}["models"] == 5000
    before = files(used)
    assert cli("uninstall").returncode == 0
    assert files(used) == before
    refused = cli("uninstall", "--purge")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert files(used) == before
    done = cli("uninstall", "--purge", "--yes")
    assert done.returncode == 0
    assert all(str(each["path"]) in done.stdout for each in listed)
    assert files(used) == {"config/notes.txt", "data/thesis.tex", "data/elsewhere/big.gguf"}
    assert not (used / "cache").exists()
    assert "no edgechat data" in cli("uninstall").stdout


@pytest.fixture
def engine(used: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that is recorded as an engine with a model and ends when its input is closed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    instances.register(process.pid, "m.gguf", 1)
    yield process
    process.kill()
    process.communicate()


def test_purge_refuses_while_edgechat_runs(
    engine: subprocess.Popen[bytes], used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgechat.cli.uninstall._ENGINE_END_TIMEOUT_S", 0.0)
    with pytest.raises(UsageError, match=f"process {engine.pid}"):
        CliRunner().invoke(uninstall, ["--purge", "--yes"], catch_exceptions=False)
    assert (used / "data" / "history.db").exists()


def test_purge_waits_for_an_engine_that_is_about_to_end(
    engine: subprocess.Popen[bytes], used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of a closed program saves its prefixes before it ends."""
    monkeypatch.setattr("edgechat.cli.uninstall._ENGINE_END_TIMEOUT_S", 600.0)
    monkeypatch.setattr("edgechat.cli.uninstall._SILENT_WAIT_S", 0.0)
    monkeypatch.setattr("time.sleep", lambda _: engine.communicate())
    result = CliRunner().invoke(uninstall, ["--purge", "--yes"])
    assert result.exit_code == 0, result.output
    assert f"Waiting for edgechat (process {engine.pid})" in result.output
    assert not (used / "data" / "history.db").exists()


def test_listing_creates_no_files(home: Path) -> None:
    assert list(find_data_items()) == []
    assert not home.exists() or not files(home)


def test_purge_keeps_the_folder_that_contains_the_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "user"
    runtime = Path(tempfile.mkdtemp(prefix="run-", dir="/tmp"))
    home.mkdir()
    monkeypatch.delenv("EDGECHAT_HOME")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home / name))
    sockets = socket_dir()
    assert sockets.parent == runtime
    (sockets / "loading.lock").touch()
    result = CliRunner().invoke(uninstall, ["--purge", "--yes"])
    assert result.exit_code == 0, result.output
    assert str(sockets) in result.output
    assert not sockets.exists()
    runtime.rmdir()  # it is there
