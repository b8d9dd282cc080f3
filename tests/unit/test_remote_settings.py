"""The setting `remotes`: valid entries, and clear reasons against the others."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat import config, paths
from edgechat.config import Settings, with_overrides
from edgechat.errors import SettingsError
from edgechat.remote_settings import RemoteSettings, parse_remotes

BOX = {"url": "http://192.168.1.5:8080/v1"}


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("Box", BOX, "must have a name of 1 to 32 characters"),
        ("a/b", BOX, "must have a name"),
        ("-a", BOX, "must have a name"),
        ("auto", BOX, "must have another name, because auto has a meaning of its own"),
        ("box", {}, "must be a table with a url"),
        ("box", 5, "must be a table with a url"),
        ("box", {**BOX, "key": "sk-secret"}, "must be a table with a url"),
        ("box", {"url": "box:8080"}, "must have a url that begins with http:// or https://"),
        ("box", {"url": "ftp://box/v1"}, "must have a url that begins with"),
        ("box", {"url": "http://[::1/v1"}, "must have a valid url"),
        ("box", {"url": "http://box:99999/v1"}, "must have a valid url"),
        ("box", {"url": "http://me:secret@box/v1"}, "without a user name or password"),
        ("box", {"url": "http://box/v1?key=secret"}, "without ? and #"),
        ("box", {**BOX, "api_key_env": "sk-secret"}, "and not contain the key itself"),
        ("box", {**BOX, "model": " x"}, "must have the name of a model"),
    ],
)
def test_invalid_entry_has_a_reason_without_secrets(name: str, entry: Any, words: str) -> None:
    remotes, problems = parse_remotes({name: entry, "good": BOX})
    assert list(remotes) == ["good"]
    assert words in problems[name]
    assert "secret" not in problems[name]


def test_settings_file_with_one_invalid_remote_keeps_the_others(home: object) -> None:
    file = paths.config_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('# mine\n[remotes.box]\nurl = "http://box/v1" # here\n[remotes.bad]\nurl = "x"\n')
    settings, [problem] = config.load()
    assert settings.remotes == {"box": RemoteSettings(url="http://box/v1")}
    assert str(problem).startswith(f"{file}: remotes.bad must have a url")
    config.save_remote("shop", RemoteSettings(url="https://shop/v1", api_key_env="SHOP_KEY", model="m"))
    config.save_remote("box", None)
    assert file.read_text() == (
        '# mine\n[remotes.bad]\nurl = "x"\n\n[remotes.shop]\nurl = "https://shop/v1"\napi_key_env = "SHOP_KEY"\n'
        'model = "m"\n'
    )
    with pytest.raises(SettingsError, match="The remote shop must have a url"):
        config.save_remote("shop", RemoteSettings(url="x"))
    config.save_remote("shop", None)
    config.save_remote("bad", None)
    assert config.load() == (Settings(), [])
    file.write_text("remotes = 5")
    [problem] = config.load()[1]
    assert str(problem) == f"{file}: remotes must be a table of remotes, such as [remotes.box] with a url"
    with pytest.raises(SettingsError, match="nothing was written"):
        config.save_remote("box", RemoteSettings(url="http://box/v1"))


def test_no_conversation_or_persona_changes_the_remotes() -> None:
    settings = Settings(remotes={"box": RemoteSettings(url="http://box/v1")})
    changed = with_overrides(settings, {"remotes": {"box": {"url": "http://evil.example/v1"}}})
    assert changed.remotes == settings.remotes
