"""Saved lists of the models of remotes."""

from __future__ import annotations

from edgechat import paths
from edgechat.remote.client import ListedModel
from edgechat.remote.model_lists import find_hosts, find_list, find_n_ctx, list_names, remove_list, save_list
from edgechat.remote.target import RemoteModel
from edgechat.remote_settings import RemoteSettings

BOX = RemoteSettings(url="http://box:8080/v1", model="big")


def test_list_is_saved_for_its_url(home: object) -> None:
    remotes = {"box": BOX, "shop": RemoteSettings(url="https://shop.example/v1")}
    assert list_names(remotes) == ["box/big"]
    save_list("box", BOX, [ListedModel(id="small", n_ctx=2048), ListedModel(id="big")])
    assert list_names(remotes) == ["box/big", "box/small"]
    assert find_hosts(remotes) == {"box/big": "box:8080", "box/small": "box:8080"}
    assert find_n_ctx(RemoteModel(remote="box", model="small", settings=BOX)) == 2048
    assert find_n_ctx(RemoteModel(remote="box", model="other", settings=BOX)) is None
    moved = RemoteSettings(url="http://elsewhere/v1")
    assert find_list("box", moved) is None
    assert list_names({"box": moved}) == []
    remove_list("box")
    remove_list("box")
    assert find_list("box", BOX) is None


def test_damaged_file_counts_as_missing(home: object) -> None:
    paths.remote_models_file().parent.mkdir(parents=True, exist_ok=True)
    paths.remote_models_file().write_text('{"box": 5}')
    assert list_names({"box": BOX}) == ["box/big"]
    save_list("box", BOX, [])
    assert find_list("box", BOX) is not None
