"""Properties of model headers."""

from __future__ import annotations

from pathlib import Path

from edgechat.modelfile.split import read_header
from tests.models import write_tiny_llama


def test_clip_architecture_is_a_projector(tmp_path: Path) -> None:
    assert read_header(write_tiny_llama(tmp_path / "clip.gguf", architecture="clip")).kind == "projector"
