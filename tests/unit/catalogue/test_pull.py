"""Downloads of models by reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgechat import paths
from edgechat.catalogue import pull
from edgechat.modelfile.content_hash import HashMemo, hash_file
from tests.hub import FakeRepo, local_hub
from tests.models import split_tiny
from tests.unit.catalogue.model_stores import installed

if TYPE_CHECKING:
    import pytest


def test_verified_download_is_not_hashed_again(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos["own/tiny"] = FakeRepo({path.name: path for path in split_tiny(tmp_path)})
        target = pull.find_target("own/tiny")
        pull.download_model(target)
    memo = HashMemo(paths.prefix_dir())
    assert [memo.get(file.path) for file in target.files] == [hash_file(file.path) for file in target.files]
    assert [model.state for model in installed()] == ["verified"]
