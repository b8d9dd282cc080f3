"""The directory name of a model's disk tier, and the files of a split model."""

from __future__ import annotations

from pathlib import Path

from edgechat.engine.cache_identity import cache_identity, parts


def test_every_input_changes_the_identity() -> None:
    name = cache_identity(["weights"], "build", "layout")
    others = {
        cache_identity(["other weights"], "build", "layout"),
        cache_identity(["weights", "second part"], "build", "layout"),
        cache_identity(["weights"], "another commit of llama.cpp", "layout"),
        cache_identity(["weights"], "build", "k=q8_0"),
    }
    assert len(others) == 4
    assert name not in others
    assert name == cache_identity(["weights"], "build", "layout")


def test_all_files_of_a_split_model_count(tmp_path: Path) -> None:
    names = [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for name in [*names, "m-00001-of-00002.gguf", "m.gguf"]:
        (tmp_path / name).touch()
    assert [p.name for p in parts(tmp_path / names[0])] == names
    assert parts(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]
