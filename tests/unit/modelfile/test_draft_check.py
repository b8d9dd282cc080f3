"""One check of draft models and heads, which plans and engines share."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.errors import ModelFileError
from edgechat.modelfile.draft_check import find_draft_problem
from edgechat.modelfile.split import read_header
from tests.draft_models import make_eagle3, make_llama
from tests.tiny_files import TinyFile, Vocabulary, make_other_vocabularies


def find_problem(draft: TinyFile, folder: Path, target: TinyFile | None = None) -> str:
    paths = draft.write(folder / "draft.gguf"), (target or make_llama(n_layer=4)).write(folder / "target.gguf")
    return find_draft_problem(*map(read_header, paths))


def test_drafters_that_fit(tmp_path: Path) -> None:
    assert find_problem(make_llama(), tmp_path) == ""
    assert find_problem(make_eagle3(), tmp_path) == ""


def test_checks_of_heads_are_included(tmp_path: Path) -> None:
    assert "hidden rows of 128" in find_problem(make_eagle3(n_embd_target=128), tmp_path)
    assert "does not expose" in find_problem(make_eagle3(layers=(1, 2, 4)), tmp_path)


def test_other_vocabularies(tmp_path: Path) -> None:
    vocabulary, _ = make_other_vocabularies()["other BOS"]
    assert "adds other tokens" in find_problem(make_llama(vocabulary=vocabulary), tmp_path)


@pytest.mark.parametrize("architecture", ["t5", "t5encoder", "dream", "llada", "llada-moe", "rnd1"])
def test_architectures_that_do_not_generate_token_by_token(architecture: str, tmp_path: Path) -> None:
    draft = make_llama()
    draft.architecture = architecture
    assert f"of the architecture '{architecture}'" in find_problem(draft, tmp_path)


def test_projectors_are_no_drafters(tmp_path: Path) -> None:
    draft = make_llama()
    draft.architecture = "clip"
    assert "of the kind 'projector'" in find_problem(draft, tmp_path)


def test_damaged_vocabulary(tmp_path: Path) -> None:
    """Both vocabularies match, but have one token twice, with which llama.cpp ends the process."""
    vocabulary = Vocabulary()
    tokens = vocabulary.tokens
    draft, target = (make_llama(vocabulary=Vocabulary([*tokens[:-1], tokens[-2]])) for _ in range(2))
    with pytest.raises(ModelFileError, match="twice in its vocabulary"):
        find_problem(draft, tmp_path, target)
