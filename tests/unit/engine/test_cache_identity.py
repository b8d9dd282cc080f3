"""The directory name of a model's disk tier: every input of the KV memory changes it, and none may be missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from edgechat.engine import cache_identity
from edgechat.engine.cache_identity import compute_cache_identity, open_disk_tier
from edgechat.engine.protocol import Load
from edgechat.modelfile.content_hash import HashMemo, read_stamp
from edgechat.planner.load_plan import make_manual_plan
from edgechat.prefix.disk_tier import DiskTier


def test_every_input_changes_the_identity() -> None:
    name = compute_cache_identity(["weights"], "build", "layout")
    others = {
        compute_cache_identity(["other weights"], "build", "layout"),
        compute_cache_identity(["weights", "second part"], "build", "layout"),
        compute_cache_identity(["weights"], "another commit of llama.cpp", "layout"),
        compute_cache_identity(["weights"], "build", "k=q8_0"),
    }
    assert len(others) == 4
    assert name not in others
    assert name == compute_cache_identity(["weights"], "build", "layout")


@pytest.mark.parametrize("hashes", [[], [""], ["weights", ""]])
def test_identity_without_every_hash_is_refused(hashes: list[str]) -> None:
    with pytest.raises(ValueError, match="has no identity"):
        compute_cache_identity(hashes, "build", "layout")


@pytest.fixture
def open_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Return a function that opens the disk tier of a model with the given files."""
    monkeypatch.setattr(cache_identity, "describe_memory_layout", lambda context: "layout")

    def open_with(files: list[Path]) -> DiskTier:
        plan = msgspec.structs.replace(make_manual_plan("unused", n_threads=1, n_ctx=64), prefix_disk_bytes=1 << 20)
        load = Load(id=1, plan=plan, prefix_dir=str(tmp_path / "prefix"))
        stamps = {file: stamp for file in files if (stamp := read_stamp(file))}
        context = SimpleNamespace(model=SimpleNamespace(file_stamps=stamps))
        tier = open_disk_tier(load, context, SimpleNamespace(build_id="build"))  # type: ignore[arg-type]
        assert tier is not None
        return tier

    return open_with


def compute(tier: DiskTier) -> str:
    return tier._compute_identity(lambda: None)


@pytest.mark.parametrize("name", ["[x] model", "*", "?", "[!a]", "**", "{a,b}", "model"])
def test_files_of_any_name_have_the_identity_of_their_content(tmp_path: Path, open_tier: object, name: str) -> None:
    identities = []
    for folder, content in (("one", b"weights"), ("two", b"other weights"), ("three", b"weights")):
        parts = [tmp_path / folder / f"{name}-{number:05}-of-00002.gguf" for number in (1, 2)]
        parts[0].parent.mkdir()
        parts[0].write_bytes(b"header")
        parts[1].write_bytes(content)
        tier = open_tier(parts)  # type: ignore[operator]
        assert tier.identity == ""
        identities.append(compute(tier))
        assert open_tier(parts).identity == identities[-1]  # type: ignore[operator]
        tier.finish(5)
    assert identities[0] == identities[2] != identities[1]


def test_model_without_files_has_no_identity(open_tier: object) -> None:
    tier = open_tier([])  # type: ignore[operator]
    assert tier.identity == ""
    with pytest.raises(ValueError, match="has no identity"):
        compute(tier)
    tier.finish(5)


def test_file_replaced_after_the_load_has_no_identity(tmp_path: Path, open_tier: object) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    tier = open_tier([model])  # type: ignore[operator]
    (tmp_path / "new").write_bytes(b"other weights")
    (tmp_path / "new").replace(model)
    HashMemo(tmp_path / "prefix").get_or_compute(model, lambda done_bytes: None)
    with pytest.raises(OSError, match="has changed since the model was loaded"):
        compute(tier)
    model.unlink()
    with pytest.raises(OSError, match="No such file"):
        compute(tier)
    tier.finish(5)
