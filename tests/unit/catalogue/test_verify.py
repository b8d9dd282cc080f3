"""Verification of installed models."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import msgspec

from edgechat import paths
from edgechat.catalogue import locations
from edgechat.catalogue.verify import verify_files
from edgechat.modelfile.content_hash import HashMemo
from tests.models import split_tiny
from tests.unit.catalogue.model_stores import add_to_ollama, installed, sha256_of, write_model


def test_hashes_are_valid_until_the_file_changes(user: Path) -> None:
    path = write_model(paths.models_dir() / "one.gguf")
    [model] = installed()
    [first] = verify_files(model)
    assert (first.is_match, first.sha256) == (None, sha256_of(path))
    [model] = installed()
    assert model.state == "unchanged"
    [second] = verify_files(model)
    assert second.is_match is True
    # The names for scripts stay.
    assert [f.encode_name for f in msgspec.structs.fields(second)] == ["path", "sha256", "expected", "is_good"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    [model] = installed()
    assert model.state == ""
    [third] = verify_files(model)
    assert third.is_match is False
    assert "DIFFERS" in third.description
    assert installed()[0].state == "differs"


def test_damage_of_an_ollama_blob_is_found(user: Path) -> None:
    blob = add_to_ollama(user, "two", "latest", seed=2)
    with blob.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    broken = next(model for model in installed() if model.source == locations.OLLAMA)
    assert [result.is_match for result in verify_files(broken)] == [False]


def test_missing_part_is_not_good(user: Path) -> None:
    paths.models_dir().mkdir(parents=True)
    parts = split_tiny(paths.models_dir())
    (paths.models_dir() / "whole.gguf").unlink()
    parts[1].unlink()
    [model] = installed()
    assert [result.is_match for result in verify_files(model)] == [None, False, None]


def test_verified_file_is_not_hashed_again_by_the_engine(user: Path) -> None:
    path = write_model(paths.models_dir() / "one.gguf")
    list(verify_files(installed()[0]))
    assert HashMemo(paths.prefix_dir()).get(path) == sha256_of(path)


def test_records_of_the_first_release_are_read(user: Path) -> None:
    path = write_model(paths.models_dir() / "one.gguf")
    stat = path.stat()
    sha256 = sha256_of(path)
    record = {"sha256": sha256, "size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "expected": sha256}
    paths.data_dir().mkdir(parents=True, exist_ok=True)
    (paths.data_dir() / "library.json").write_text(json.dumps({"verified": {str(path): record}}))
    [model] = installed()
    assert model.state == "verified"
    list(verify_files(model))
    # The first release requires all four fields.
    stored = json.loads((paths.data_dir() / "library.json").read_text())["verified"][str(path)]
    assert stored.keys() == record.keys()
    assert (stored["sha256"], stored["expected"]) == (record["sha256"], record["expected"])
    assert installed()[0].state == "verified"
