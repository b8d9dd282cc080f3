"""API keys of remotes: where they come from, and where they never appear."""

from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace

import pytest

from edgechat.errors import RemoteError
from edgechat.remote.keys import ApiKey, read_key
from edgechat.remote_settings import RemoteSettings
from tests.remote_server import KEY

URL = "http://127.0.0.1:1/v1"


def test_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RemoteSettings(url=URL, api_key_env="BOX_KEY")
    monkeypatch.delenv("BOX_KEY", raising=False)
    with pytest.raises(RemoteError, match="The API key of the remote box is not in BOX_KEY"):
        read_key("box", settings)
    monkeypatch.setenv("BOX_KEY", f" {KEY}\n")
    assert read_key("box", settings).headers() == {"Authorization": f"Bearer {KEY}"}
    monkeypatch.setenv("BOX_KEY", f"{KEY}\nX-Header: 1")
    with pytest.raises(RemoteError, match="characters that are not allowed") as caught:
        read_key("box", settings)
    assert KEY not in str(caught.value)


def test_key_comes_from_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RemoteSettings(url=URL, api_key_env="keyring")
    keys = {("edgechat", "box"): KEY}
    monkeypatch.setitem(sys.modules, "keyring", SimpleNamespace(get_password=lambda s, n: keys.get((s, n))))
    assert read_key("box", settings).headers() == {"Authorization": f"Bearer {KEY}"}
    with pytest.raises(RemoteError, match="`keyring set edgechat shop` adds it"):
        read_key("shop", settings)

    def fail(service: str, name: str) -> str:
        raise RuntimeError(KEY)

    monkeypatch.setitem(sys.modules, "keyring", SimpleNamespace(get_password=fail))
    with pytest.raises(RemoteError, match=r"cannot be read \(RuntimeError\)") as caught:
        read_key("box", settings)
    assert KEY not in str(caught.value)
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(RemoteError, match="the package keyring is not installed"):
        read_key("box", settings)


def test_remote_without_a_key_sends_none() -> None:
    key = read_key("box", RemoteSettings(url=URL))
    assert not key
    assert key.headers() == {}
    assert key.redact("text") == "text"


def test_key_is_in_no_representation() -> None:
    key = ApiKey(KEY)
    assert KEY not in f"{key} {key!r}"
    assert key.redact(f"Wrong key {KEY}.") == "Wrong key ***."
    with pytest.raises(TypeError, match="cannot be serialised"):
        pickle.dumps(key)
