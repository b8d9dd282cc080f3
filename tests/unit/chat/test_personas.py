"""The persona whose settings a conversation has."""

from __future__ import annotations

from edgechat import paths
from edgechat.chat import personas


def test_persona_with_the_most_matching_settings_is_found() -> None:
    folder = paths.personas_dir()
    folder.mkdir(parents=True)
    (folder / "a.toml").write_text("temperature = 0.5\n")
    (folder / "b.toml").write_text('temperature = 0.5\nsystem_prompt = "Be brief."\n')
    (folder / "c.toml").write_text("temperature = 0.5\n")
    persona = personas.find_by_settings({"temperature": 0.5, "system_prompt": "Be brief."})
    assert persona is not None
    assert persona.name == "b"
    assert personas.find_by_settings({"system_prompt": "Be brief."}) is None
