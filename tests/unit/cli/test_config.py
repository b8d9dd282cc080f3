"""`edgechat config validate` reports every problem that the chat reports at its start."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomlkit

from edgechat import config, paths
from edgechat.cli import config as config_commands
from edgechat.errors import SettingsError
from tests.conftest import Cli
from tests.draft_models import make_eagle3, make_llama


@pytest.mark.slow
def test_validate_reports_invalid_themes_and_keys(cli: Cli, home: Path) -> None:
    (home / "config").mkdir(parents=True, exist_ok=True)
    file = home / "config" / "config.toml"
    file.write_text('theme = "nope"\n[keys]\n"chat.serch" = "f7"\n"chat.search" = "banana"\n')
    result = cli("config", "validate")
    assert result.returncode == 2
    assert f"{file}: theme: unknown theme 'nope'" in result.stderr
    assert f"{file}: keys: unknown name 'chat.serch'; did you mean chat.search?" in result.stderr
    assert "'banana' is not a valid key" in result.stderr
    file.write_text("temperature = 0.5\n")
    assert cli("config", "validate").returncode == 0
    file.write_text('theme = "ansi-dark"\n[keys]\n"chat.search" = "f7"\n')
    assert cli("config", "validate").returncode == 0


def test_validate_names_the_variable_of_an_unknown_theme(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_THEME", "nrod")
    result = cli("config", "validate")
    assert (result.returncode, "EDGECHAT_THEME: unknown theme 'nrod'; did you mean nord?" in result.stderr) == (2, True)


def test_validate_checks_the_draft_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = make_llama().write(tmp_path / "draft.gguf")
    (tmp_path / "text.gguf").write_text("no model")
    dflash = make_eagle3()
    dflash.architecture = "dflash"
    dflash.write(tmp_path / "dflash.gguf")
    make_eagle3(layers=(1, 2)).write(tmp_path / "two-layers.gguf")
    for name, problem in (
        (str(tmp_path / "dflash.gguf"), "contains a DFlash head, with which edgechat cannot draft"),
        (str(tmp_path / "two-layers.gguf"), "names 2 layers of its target; EAGLE-3 reads 3"),
        ("no-such-model", "EDGECHAT_DRAFT_MODEL: No model with the name 'no-such-model'"),
        (str(tmp_path / "gone.gguf"), "gone.gguf does not exist"),
        (str(tmp_path / "text.gguf"), "text.gguf"),
    ):
        monkeypatch.setenv("EDGECHAT_DRAFT_MODEL", name)
        with pytest.raises(SettingsError, match=re.escape(problem)):
            config_commands._check_settings()
    for name in (str(draft), str(make_eagle3().write(tmp_path / "eagle3.gguf")), "off", "NONE", "auto"):
        monkeypatch.setenv("EDGECHAT_DRAFT_MODEL", name)
        config_commands._check_settings()


def test_new_settings_file_explains_every_setting_in_valid_toml(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", "true")
    assert cli("config", "edit").returncode == 0
    text = (home / "config" / "config.toml").read_text()
    assert config.read_toml(home / "config" / "config.toml", []) == {}
    uncommented = re.sub(r"(?m)^#(?=\S)", "", text)
    values = tomlkit.parse(uncommented).unwrap()
    assert list(values) == list(config.Settings.__struct_fields__)
    assert [config.check(name, value) for name, value in values.items()] == [""] * len(values)
    defaults = config.Settings()
    loaded = config.with_overrides(defaults, values)
    assert all(getattr(loaded, n) == getattr(defaults, n) for n in values if getattr(defaults, n) not in (None, {}))
    flat_text = " ".join(text.replace("\n# ", " ").split())
    assert all(" ".join(d.split()) in flat_text for d in config.describe_settings().values())
    assert max(map(len, text.splitlines())) <= 100


def test_settings_are_edited_with_a_simple_editor_if_none_is_set(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("sensible-editor", "nano"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/calls\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for variable in ("EDITOR", "VISUAL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert config_commands.edit.callback is not None
    config_commands.edit.callback()
    assert (tmp_path / "calls").read_text() == "nano\n"
    assert "Opening the settings file with nano. Set $EDITOR to use another editor." in capsys.readouterr().err
    assert (home / "config" / "config.toml").exists()


def test_settings_cannot_be_edited_without_terminal_and_editor(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.delenv("VISUAL", raising=False)
    result = cli("config", "edit", stdin=subprocess.DEVNULL)
    assert (result.returncode, (home / "config" / "config.toml").exists()) == (2, False)
    assert "An editor needs a terminal" in result.stderr


def test_shown_settings_are_valid_toml(cli: Cli, home: Path) -> None:
    (home / "config").mkdir(parents=True, exist_ok=True)
    (home / "config" / "config.toml").write_text('[keys]\n"chat.search" = "f7"\n')
    assert tomlkit.parse(cli("config", "show").stdout).unwrap()["keys"] == {"chat.search": "f7"}


def test_validate_reports_a_missing_model(cli: Cli, home: Path) -> None:
    (home / "config").mkdir(parents=True, exist_ok=True)
    file = home / "config" / "config.toml"
    file.write_text('model = "gone-model"\n')
    result = cli("config", "validate")
    assert result.returncode == 2
    assert f"{file}: model: No model with the name 'gone-model'" in result.stderr
    file.write_text('model = "starter"\n')
    assert cli("config", "validate").returncode == 0


def test_validate_reports_a_theme_file_with_a_reserved_name(cli: Cli, home: Path) -> None:
    file = home / "config" / "themes" / "auto.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('primary = "#ff0000"\n')
    result = cli("config", "validate")
    assert result.returncode == 2
    assert f"{file}: this name is reserved" in result.stderr


@pytest.mark.slow
def test_all_problems_are_named(cli: Cli) -> None:
    names = [
        "dry_multiplier", "dry_base", "xtc_probability", "typical_p", "min_p", "top_p", "temperature", "top_k",
        "mirostat_tau", "mirostat_eta", "presence_penalty", "frequency_penalty", "repeat_penalty", "n_ctx",
    ]  # fmt: skip
    path = paths.config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name} = -99\n" for name in names), encoding="utf-8")
    result = cli("config", "validate")
    assert result.returncode == 2
    assert [name for name in names if f"{name} must be" not in result.stderr] == []
