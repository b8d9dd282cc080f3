"""Files of version 0.1.0 before the source layout changed: database, settings, library and prefix cache still open.

The fixture is the home directory of a real run of that version with a tiny random model; that version also printed
`export.json` and `config.json`. Only paths are replaced, and the folder of the prefix cache is renamed for the current
native build.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli
from tests.models import write_tiny_llama
from tests.waiting import until

FIXTURE = ROOT / "tests" / "fixtures" / "home-2026-11-26"


@pytest.fixture
def earlier_home(home: Path, tmp_path: Path) -> Path:
    """A home directory with the earlier version's files and its model."""
    models = tmp_path / "models"
    models.mkdir()
    write_tiny_llama(models / "tiny.gguf")
    shutil.copytree(FIXTURE, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("backends.json"))
    for path in (
        home / "data" / "library.json",
        home / "cache" / "models.json",
        home / "cache" / "prefix" / "weights.json",
    ):
        path.write_text(path.read_text("utf-8").replace("@MODELS@", str(models)), "utf-8")
    return home


def test_conversations_are_the_same(earlier_home: Path, cli: Cli) -> None:
    exported = cli("history", "export", "--all")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout) == json.loads((FIXTURE / "export.json").read_text("utf-8"))
    listed = json.loads(cli("history", "list", "--json").stdout)
    assert next((s["conversation"]["title"], s["conversation"]["pinned"]) for s in listed) == ("A renamed talk", True)
    assert json.loads(cli("history", "search", "valley", "--json").stdout)


def test_settings_are_the_same(earlier_home: Path, cli: Cli) -> None:
    expected = json.loads((FIXTURE / "config.json").read_text("utf-8"))
    shown = json.loads(cli("config", "show", "--json").stdout)
    expected["ascii"] = None  # it was False if it was not set; now the terminal decides
    assert {name: shown[name] for name in expected} == expected
    assert cli("config", "validate").returncode == 0


def test_library_knows_folders_and_aliases(earlier_home: Path, cli: Cli) -> None:
    models = {entry["name"]: entry for entry in json.loads(cli("models", "list", "--json").stdout)}
    assert models["tiny"]["aliases"] == ["wee"]
    assert models["tiny"]["used_s"] > 0
    assert cli("models", "info", "wee").returncode == 0


def test_unsent_message_is_kept(earlier_home: Path) -> None:
    from edgechat.chat import unsent_messages

    assert unsent_messages.load("29ec16aa071f3aa7") == "An unsent message\nof two lines"


def test_prefix_cache_is_read(earlier_home: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The name of the folder depends on the native build and the memory layout; a run elsewhere reveals it.
    other = tmp_path / "other"
    shutil.copytree(earlier_home, other, ignore=shutil.ignore_patterns("prefix", "history.db*"))
    names: list[str] = []

    def reveal() -> list[str]:
        """Run `ask`, whose engine has less than two seconds to save the prefix; a busy machine needs another run."""
        probe = cli("ask", "-m", "tiny", "x", env=os.environ | {"EDGECHAT_HOME": str(other)})
        assert probe.returncode == 0, probe.stderr
        names[:] = [p.name for p in (other / "cache" / "prefix").iterdir() if p.is_dir() and "-" not in p.name]
        return names

    until(reveal)
    (current,) = names
    folder = (earlier_home / "cache" / "prefix" / "identity").rename(earlier_home / "cache" / "prefix" / current)
    shutil.copy(
        other / "cache" / "prefix" / "weights.json", folder.parent
    )  # the hash of the model, computed by the probe
    segments = sorted(path.relative_to(folder) for path in folder.rglob("*.kv"))
    monkeypatch.setenv("EDGECHAT_HOME", str(earlier_home))
    reply = cli("ask", "--conversation", "2ab6", "And then", "--json")
    assert reply.returncode == 0, reply.stderr
    assert json.loads(reply.stdout)["stats"]["cached_disk_tokens"] == 63  # as in the earlier version
    assert set(segments) <= {path.relative_to(folder) for path in folder.rglob("*.kv")}
