"""Checks of files of heads that llama.cpp would load, but that would end the process when they draft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgechat.errors import ModelFileError
from edgechat.modelfile.checks import check_header
from edgechat.modelfile.heads_check import find_heads_problem, find_pair_problem
from edgechat.modelfile.split import read_header
from tests.draft_models import make_eagle3, make_llama
from tests.gemma_drafts import make_assistant, make_gemma4
from tests.hostile_heads import HOSTILE_PAIRS, PAIRS_THAT_END_LLAMA
from tests.tiny_files import TinyFile

N_OWN_TOKENS = 40


def find_problem(heads: TinyFile, target: TinyFile, folder: Path) -> str:
    paths = heads.write(folder / "heads.gguf"), target.write(folder / "target.gguf")
    return find_heads_problem(*map(read_header, paths))


def make_mapped_eagle3(token_map: list[int]) -> TinyFile:
    """Return a head with a small vocabulary of its own, each of whose tokens is mapped to one of the target."""
    file = make_eagle3()
    file.tensors["d2t"] = np.array(token_map, dtype=np.int64)
    file.tensors["output.weight"] = np.zeros((N_OWN_TOKENS, 64), np.float32)
    return file


def test_right_heads_have_no_problem(tmp_path: Path) -> None:
    assert find_problem(make_eagle3(), make_llama(n_layer=4), tmp_path) == ""
    assert find_problem(make_mapped_eagle3(list(range(N_OWN_TOKENS))), make_llama(n_layer=4), tmp_path) == ""
    assert find_problem(make_assistant(), make_gemma4(), tmp_path) == ""


@pytest.mark.parametrize("token", [-1, 10_000, 2**62])
def test_map_to_a_token_outside_the_vocabulary(token: int, tmp_path: Path) -> None:
    heads = make_mapped_eagle3([*range(N_OWN_TOKENS - 1), token])
    assert "outside the vocabulary" in find_problem(heads, make_llama(n_layer=4), tmp_path)


def test_map_of_another_length_than_the_output(tmp_path: Path) -> None:
    heads = make_mapped_eagle3(list(range(N_OWN_TOKENS - 1)))
    assert "does not have as many" in find_problem(heads, make_llama(n_layer=4), tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"block_count": 2}, "EAGLE-3 has one"),
        ({"attention.key_length": 16, "attention.value_length": 8}, "equal lengths"),
        ({"target_layers": [1, 2, 4]}, "does not expose"),  # the last layer of a llama model
        ({"attention.head_count_kv": 3}, "heads of keys"),
    ],
)
def test_eagle3_metadata(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    heads = make_eagle3()
    heads.metadata |= changes
    assert problem in find_problem(heads, make_llama(n_layer=4), tmp_path)


def test_target_with_hidden_rows_of_another_width(tmp_path: Path) -> None:
    target = make_llama(n_layer=4)
    target.metadata["embedding_length_out"] = 128
    assert "128" in find_problem(make_eagle3(), target, tmp_path)


def test_eagle3_embeddings_of_fewer_tokens(tmp_path: Path) -> None:
    heads = make_eagle3()
    heads.tensors["token_embd.weight"] = np.zeros((10, 64), np.float32)
    assert "embeddings of 10 tokens" in find_problem(heads, make_llama(n_layer=4), tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attention.key_length": 32}, "keys of 32 elements"),
        ({"attention.head_count_kv": [2, 1]}, "1 heads of keys"),
        ({"attention.head_count_kv": "x"}, "0 heads of keys"),
        ({"attention.sliding_window_pattern": [False, False]}, "no layer with a sliding window"),
    ],
)
def test_assistant_metadata(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    heads = make_assistant()
    heads.metadata |= changes
    assert problem in find_problem(heads, make_gemma4(), tmp_path)


def test_assistant_of_a_model_with_another_pattern_of_windows(tmp_path: Path) -> None:
    target = make_gemma4()
    target.metadata["attention.sliding_window_pattern"] = [False, False, False, True]
    assert "last layer has full attention" in find_problem(make_assistant(), target, tmp_path)


@pytest.mark.parametrize("name", [name for name in PAIRS_THAT_END_LLAMA if name.startswith(("EAGLE", "assis"))])
def test_pairs_with_which_llama_would_end_the_process(name: str, tmp_path: Path) -> None:
    target, draft = HOSTILE_PAIRS[name](tmp_path)
    assert draft is not None
    try:
        check_header(read_header(draft))
    except ModelFileError:
        return
    assert find_pair_problem(read_header(draft), read_header(target))


def test_pairs_that_fit(tmp_path: Path) -> None:
    pairs = ((make_llama(n_layer=4), make_eagle3()), (make_gemma4(), make_assistant()))
    for i, (target, draft) in enumerate(pairs):
        target_header = read_header(target.write(tmp_path / f"target{i}.gguf"))
        assert find_pair_problem(read_header(draft.write(tmp_path / f"draft{i}.gguf")), target_header) == ""
        assert "no heads for another model" in find_pair_problem(target_header, target_header)
