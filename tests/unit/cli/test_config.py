"""`edgechat config validate` reports every problem that the chat reports at its start."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Cli


def test_validate_reports_invalid_themes_and_keys(cli: Cli, home: Path) -> None:
    (home / "config").mkdir(parents=True, exist_ok=True)
    file = home / "config" / "config.toml"
    file.write_text('theme = "nope"\n[keys]\n"chat.serch" = "f7"\n"chat.search" = "banana"\n')
    result = cli("config", "validate")
    assert result.returncode == 2
    assert "unknown theme 'nope'" in result.stderr
    assert "did you mean chat.search?" in result.stderr
    assert "'banana' is not a valid key" in result.stderr
    file.write_text("temperature = 0.5\n")
    assert cli("config", "validate").returncode == 0
    file.write_text('theme = "ansi-dark"\n[keys]\n"chat.search" = "f7"\n')
    assert cli("config", "validate").returncode == 0
