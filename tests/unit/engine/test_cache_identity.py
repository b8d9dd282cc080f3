"""The directory name of a model's disk tier, and the files of a split model."""

from __future__ import annotations

from edgechat.engine.cache_identity import compute_cache_identity


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
