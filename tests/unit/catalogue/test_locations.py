"""Models in the stores of other programs."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.catalogue import locations
from tests.unit.catalogue.model_stores import add_to_hub_cache, add_to_ollama, installed, sha256_of, write_model


def test_models_of_other_programs_are_listed_once(user: Path) -> None:
    add_to_hub_cache(user, "owner/one-GGUF", "one-Q4_K_M.gguf", seed=1)
    blob = add_to_ollama(user, "two", "latest", seed=2)
    write_model(user / ".lmstudio/models/maker/three-GGUF/three.gguf", seed=3)
    write_model(user / ".cache/llama.cpp/owner_four.gguf", seed=4)
    write_model(paths.models_dir() / "owner/five-GGUF/five.gguf", seed=5)
    # The Ollama model again: a hard link, a copy outside of all locations, and a copy in the hub cache.
    os.link(blob, paths.models_dir() / "linked.gguf")
    shutil.copy(blob, user / "copy.gguf")
    (user / ".cache/huggingface/hub" / "models--x--y/blobs").mkdir(parents=True)
    cached = user / ".cache/huggingface/hub/models--x--y/snapshots" / ("d" * 40) / "two.gguf"
    cached.parent.mkdir(parents=True)
    shutil.copy(blob, cached.parents[2] / "blobs" / sha256_of(blob))
    cached.symlink_to(f"../../blobs/{sha256_of(blob)}")
    models = installed()
    assert sorted(model.name for model in models) == ["five", "linked", "one-Q4_K_M", "owner_four", "three"]
    linked = next(model for model in models if model.name == "linked")
    assert {linked.source, *(path.name for path in linked.other_paths)} == {locations.MANAGED, blob.name, "two.gguf"}
    assert {model.source for model in models} == {
        locations.MANAGED,
        locations.HUB_CACHE,
        locations.LM_STUDIO,
        locations.LLAMA_CPP,
    }
    assert {model.repo for model in models} >= {"owner/one-GGUF", "maker/three-GGUF", "owner/five-GGUF"}
    assert all(model.is_usable and model.facts.architecture == "llama" for model in models)


def test_damaged_stores_are_skipped(user: Path) -> None:
    add_to_ollama(user, "good", "latest", seed=1)
    manifests = user / ".ollama/models/manifests/registry.ollama.ai/library/bad"
    manifests.mkdir(parents=True)
    hostile_layer = '{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}'
    for name, text in {
        "a": "", "b": "{}", "c": '{"layers": 3}', "d": "x" * 2_000_000, "f": '{"layers": [{"mediaType": 1}]}',
        "e": f'{{"layers": [{hostile_layer}]}}',
    }.items():  # fmt: skip
        (manifests / name).write_text(text)
    (paths.models_dir() / "deep/er").mkdir(parents=True)
    (paths.models_dir() / "loop").symlink_to(paths.models_dir())
    (paths.models_dir() / "dangling.gguf").symlink_to("nowhere.gguf")
    (paths.models_dir() / "dir.gguf").mkdir()
    (paths.models_dir() / "bad.gguf").write_bytes(b"GGUF but not really")
    (paths.models_dir() / "a\x1b[31m.gguf").write_bytes(b"GGUF")
    assert [(model.name, bool(model.facts.problem)) for model in installed()] == [("bad", True), ("good:latest", False)]


def skipped_in(folder: Path) -> dict[str, str]:
    skipped: list[locations.SkippedPath] = []
    list(locations.find_model_files(locations.FOLDER, folder, skipped.append))
    return {str(item.path.relative_to(folder)): item.reason for item in skipped}


def names_in(folder: Path) -> list[str]:
    return [str(file.path.relative_to(folder)) for file in locations.find_model_files(locations.FOLDER, folder)]


def test_links_to_folders_are_followed(user: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "drive/publisher/one-GGUF/one.gguf", seed=1)
    write_model(tmp_path / "drive/two.gguf", seed=2)
    (user / ".lmstudio/models").mkdir(parents=True)
    (user / ".lmstudio/models/publisher").symlink_to(tmp_path / "drive/publisher")
    hub = user / ".cache/huggingface/hub"
    add_to_hub_cache(user, "owner/three-GGUF", "three.gguf", seed=3)
    (hub / "models--owner--three-GGUF").rename(tmp_path / "drive/three")
    (hub / "models--owner--three-GGUF").symlink_to(tmp_path / "drive/three")
    add_to_ollama(user, "four", "latest", seed=4)
    (user / ".ollama/models/manifests/registry.ollama.ai").rename(tmp_path / "drive/registry")
    (user / ".ollama/models/manifests/registry.ollama.ai").symlink_to(tmp_path / "drive/registry")
    models = {model.name: model for model in installed()}
    assert sorted(models) == ["four:latest", "one", "three"]
    assert models["one"].repo == "publisher/one-GGUF"
    (tmp_path / "link").symlink_to(tmp_path / "drive")
    assert names_in(tmp_path / "link")[:2] == ["two.gguf", "publisher/one-GGUF/one.gguf"]


def test_cycles_of_links_end_and_real_paths_come_first(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_model(folder / "z/deep/one.gguf")
    (folder / "0-link").symlink_to(folder / "z")
    (folder / "z/up").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "ping").symlink_to("pong")
    (folder / "pong").symlink_to("ping")
    for level in range(30):  # 2 ** 30 paths lead to the last folder
        (folder / f"f{level}").mkdir()
        for name in "ab":
            (folder / f"f{level}" / name).symlink_to(folder / f"f{level + 1}")
    assert names_in(folder) == ["z/deep/one.gguf"]


def test_search_in_a_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.gguf").touch()
    write_model(tmp_path.joinpath(*"abcdefg", "deep.gguf"))
    assert len(names_in(tmp_path)) == 20  # not the file in the seventh folder
    with monkeypatch.context() as patch:
        patch.setattr(locations, "MAX_ENTRIES", 10)
        assert len(names_in(tmp_path)) == 10
        assert "the search ended after 10 files" in skipped_in(tmp_path)["."]
    monkeypatch.setattr(locations, "MAX_SEARCH_S", -1.0)
    assert names_in(tmp_path) == []
    assert "searched only in part" in skipped_in(tmp_path)["."]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and sockets in a folder")
def test_unusable_entries_of_a_folder_are_named_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "good.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "broken.gguf").symlink_to("nowhere.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "folder.gguf").symlink_to("/")
    monkeypatch.chdir(tmp_path)  # a socket's path has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.gguf")
    (tmp_path / "cut.gguf.part1of2").write_bytes(b"GGUF")
    (tmp_path / "cut.gguf.part2of2").write_bytes(b"x")
    (tmp_path / "locked").mkdir()
    real_scandir = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(locations, "MAX_DEPTH", 1)
    assert names_in(tmp_path) == ["good.gguf"]
    skipped = skipped_in(tmp_path)
    assert "`cat cut.gguf.part1of2 cut.gguf.part2of2 > cut.gguf`" in skipped.pop("cut.gguf.part1of2")
    assert {name: reason.partition(",")[0] for name, reason in skipped.items()} == {
        "pipe.gguf": "is a pipe",
        "socket.gguf": "is a pipe",
        "broken.gguf": "is a link to nowhere.gguf",
        "loop.gguf": skipped["loop.gguf"],
        "locked": "cannot be searched: Permission denied",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_pipe_among_the_manifests_of_ollama_is_not_opened(user: Path) -> None:
    add_to_ollama(user, "good", "latest", seed=1)
    os.mkfifo(user / ".ollama/models/manifests/registry.ollama.ai/library/good/pipe")
    assert [model.name for model in installed()] == ["good:latest"]
