"""Personas, from their files to an answer."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Cli


def test_personas(cli: Cli, home: Path) -> None:
    assert "no persona is called 'cook'" in cli("ask", "x", "--persona", "cook").stderr
    folder = home / "config" / "personas"
    folder.mkdir(parents=True)
    (folder / "cook.toml").write_text('system_prompt = "You are a cook."\ntemperature = 0.0\nn_ctx = 5\ntop_k = "x"\n')
    (folder / "bad.toml").write_text("not toml")
    found = {p["name"]: p for p in json.loads(cli("config", "personas", "--json").stdout)}
    assert found["cook"]["values"] == {"system_prompt": "You are a cook.", "temperature": 0.0}
    assert len(found["cook"]["problems"]) == 2
    assert found["bad"]["values"] == {}
    for name in ("cook", "bad"):  # it was asked for by name: it is that, or nothing
        result = cli("ask", "Who are you?", "--persona", name)
        assert (result.returncode, f"{name}.toml" in result.stderr) == (2, True)
    (folder / "cook.toml").write_text('system_prompt = "You are a cook."\ntemperature = 0.0\n')
    result = cli("ask", "Who are you?", "--persona", "cook", "--max-tokens", "3", "--json")
    conversation = json.loads(cli("history", "show", json.loads(result.stdout)["conversation_id"], "--json").stdout)
    assert conversation["conversation"]["settings"] == {
        "system_prompt": "You are a cook.", "temperature": 0.0, "max_tokens": 3,
    }  # fmt: skip
    again = json.loads(cli("ask", "And now?", "-c", "--json").stdout)
    assert again["stats"]["completion_tokens"] <= 3  # what was chosen for the conversation holds on
