"""Personas: their files, their listing, and a reply with their settings."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Cli


def test_persona_file_is_listed_and_sets_the_settings_of_a_conversation(cli: Cli, home: Path) -> None:
    assert "No persona is called 'cook'" in cli("ask", "x", "--persona", "cook").stderr
    folder = home / "config" / "personas"
    folder.mkdir(parents=True)
    (folder / "cook.toml").write_text('system_prompt = "You are a cook."\ntemperature = 0.0\nn_ctx = 5\ntop_k = "x"\n')
    (folder / "bad.toml").write_text("not toml")
    personas = {p["name"]: p for p in json.loads(cli("config", "personas", "--json").stdout)}
    assert personas["cook"]["values"] == {"system_prompt": "You are a cook.", "temperature": 0.0}
    assert len(personas["cook"]["problems"]) == 2
    assert personas["bad"]["values"] == {}
    for name in ("cook", "bad"):  # a persona with problems must not be applied in part
        result = cli("ask", "Who are you?", "--persona", name)
        assert (result.returncode, f"{name}.toml" in result.stderr) == (2, True)
    (folder / "cook.toml").write_text('system_prompt = "You are a cook."\ntemperature = 0.0\n')
    result = cli("ask", "Who are you?", "--persona", "cook", "--max-tokens", "3", "--json")
    conversation = json.loads(cli("history", "show", json.loads(result.stdout)["conversation_id"], "--json").stdout)
    assert conversation["conversation"]["settings"] == {
        "system_prompt": "You are a cook.", "temperature": 0.0, "max_tokens": 3,
    }  # fmt: skip
    again = json.loads(cli("ask", "And now?", "-c", "--json").stdout)
    assert again["stats"]["completion_tokens"] <= 3  # the conversation keeps its settings
