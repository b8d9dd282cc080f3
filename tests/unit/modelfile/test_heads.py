"""Drafting heads: prediction layers in the file of a model, and files that contain only heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgechat.errors import ModelFileError
from edgechat.modelfile.checks import check_header
from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.heads import find_misfit, read_heads
from edgechat.modelfile.split import read_header
from tests.draft_models import make_eagle3, make_llama
from tests.gemma_drafts import make_assistant, make_gemma4
from tests.hostile_heads import HOSTILE_PAIRS, PAIRS_THAT_END_LLAMA
from tests.layered_models import write_tiny_glm4
from tests.models import write_tiny_llama
from tests.nextn_models import FIXED_STATE_ARCHITECTURES, NEXTN_ARCHITECTURES, make_nextn

F32 = 0
MTP_PARTS = ("attn_norm", "nextn.eh_proj", "nextn.enorm", "nextn.hnorm")


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape or (64,), F32, 0, 256)


def header(architecture: str, tensors: list[Tensor] | None = None, n_vocab: int = 100, **values: Any) -> ModelHeader:
    keys = {f"{architecture}.{key}": value for key, value in {"embedding_length": 64, **values}.items()}
    return ModelHeader(
        path="x.gguf", file_bytes=0, version=3, metadata={"general.architecture": architecture} | keys,
        array_lengths={"tokenizer.ggml.tokens": n_vocab}, tensors=tuple(tensors or ()), data_offset=0,
    )  # fmt: skip


def mtp_model(architecture: str = "qwen35", n_heads: int = 1, first: int = 0, without: str = "") -> ModelHeader:
    """Return the header of a model of four layers and `n_heads` prediction layers, from layer `first` on."""
    tensors = [tensor(f"blk.{i}.attn_norm.weight") for i in range(first, 4)]
    tensors += [tensor(f"blk.{4 + i}.{part}.weight") for i in range(n_heads) for part in MTP_PARTS if part != without]
    return header(
        architecture, [tensor("token_embd.weight"), *tensors], block_count=4 + n_heads, nextn_predict_layers=n_heads
    )


def eagle3(**values: Any) -> ModelHeader:
    return header(
        "eagle3", [tensor("fc.weight", 192, 32)],
        **{"block_count": 1, "embedding_length": 32, "target_hidden_size": 64, "target_layers": [1, 2, 3], **values},
    )  # fmt: skip


def test_heads_in_the_file_of_their_model() -> None:
    heads = read_heads(mtp_model())
    assert heads is not None
    assert (heads.kind, heads.n_layers, heads.is_separate, heads.problem) == ("mtp", 1, False, "")
    assert heads.size_bytes == 4 * 256


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (mtp_model("glm4"), "architecture 'glm4', which llama.cpp cannot compute"),
        (mtp_model(n_heads=2), "has 2 MTP heads; llama.cpp computes only one"),
        (mtp_model(without="nextn.eh_proj"), "without the tensor 'blk.4.nextn.eh_proj.weight'"),
        (mtp_model(first=4), "contains only the MTP heads of a model"),
    ],
)
def test_heads_that_cannot_be_used_name_the_reason(model: ModelHeader, problem: str) -> None:
    heads = read_heads(model)
    assert heads is not None
    assert problem in heads.problem


def test_models_without_heads() -> None:
    assert read_heads(header("llama", block_count=4)) is None
    without_tensors = header("qwen35", [tensor("blk.0.attn_norm.weight")], block_count=5, nextn_predict_layers=1)
    assert read_heads(without_tensors) is None, "the converter left the tensors out"
    assert read_heads(header("granite-switch", block_count=5, nextn_predict_layers=1)) is None
    assert read_heads(header("qwen35", block_count=2, nextn_predict_layers=3)) is None


def test_files_of_heads_are_no_models() -> None:
    assert [mtp_model().kind, mtp_model(first=4).kind, eagle3().kind] == ["model", "heads", "heads"]
    assert header("gemma4-assistant", block_count=4, nextn_predict_layers=4).kind == "heads"
    with pytest.raises(ModelFileError, match="claims 0 layers"):
        check_header(eagle3(block_count=0))


@pytest.mark.parametrize(
    ("heads_header", "target", "misfit"),
    [
        (eagle3(), header("llama", block_count=4), ""),
        (eagle3(target_layers=[1, 2, 4]), header("llama", block_count=4), ""),
        (eagle3(target_layers=[1, 2, 5]), header("llama", block_count=4), "reads layer 5, and the model has 4 layers"),
        (eagle3(), header("llama", block_count=4, embedding_length=128), "reads hidden rows of 64 values"),
        (eagle3(), header("llama", block_count=4, n_vocab=99), "vocabulary of 100 tokens, and the model has 99"),
        (eagle3(target_layers=[1, 2]), header("llama", block_count=4), "names 2 layers of its target"),
        (eagle3(target_hidden_size=0), header("llama", block_count=4), "does not say how wide"),
        (header("dflash", block_count=4), header("llama", block_count=4), "DFlash"),
        (
            header("gemma4-assistant", block_count=4, embedding_length_out=64, embedding_length=32),
            header("llama", block_count=4),
            "drafts only for Gemma 4",
        ),
        (
            header("gemma4-assistant", block_count=4, embedding_length_out=64, embedding_length=32),
            header("gemma4", block_count=4),
            "",
        ),
    ],
)  # fmt: skip
def test_fit_of_separate_heads(heads_header: ModelHeader, target: ModelHeader, misfit: str) -> None:
    heads = read_heads(heads_header)
    assert heads is not None
    assert heads.is_separate
    found = find_misfit(heads, target)
    assert misfit in found
    assert bool(found) == bool(misfit)


@pytest.mark.parametrize("name", [name for name in PAIRS_THAT_END_LLAMA if not name.startswith(("EAGLE", "assis"))])
def test_files_with_which_llama_would_end_the_process(name: str, tmp_path: Path) -> None:
    model = read_header(HOSTILE_PAIRS[name](tmp_path).target)
    try:
        check_header(model)
    except ModelFileError:
        return
    heads = read_heads(model)
    assert heads is None or heads.problem


@pytest.mark.parametrize("architecture", NEXTN_ARCHITECTURES)
def test_heads_of_each_architecture(architecture: str, tmp_path: Path) -> None:
    heads = read_heads(read_header(make_nextn(architecture).write(tmp_path / "model.gguf")))
    assert heads is not None
    assert (heads.kind, heads.n_layers) == ("mtp", 1)
    assert ("cannot undo tokens" in heads.problem) == (architecture in FIXED_STATE_ARCHITECTURES)
    assert bool(heads.problem) == (architecture in FIXED_STATE_ARCHITECTURES)


def test_separate_heads_that_fit(tmp_path: Path) -> None:
    pairs = ((make_llama(n_layer=4), make_eagle3()), (make_gemma4(), make_assistant()))
    for i, (target, draft) in enumerate(pairs):
        target_header = read_header(target.write(tmp_path / f"target{i}.gguf"))
        heads = read_heads(read_header(draft.write(tmp_path / f"draft{i}.gguf")))
        assert heads is not None
        assert find_misfit(heads, target_header) == ""


def test_heads_of_real_files(tmp_path: Path) -> None:
    heads = read_heads(read_header(write_tiny_glm4(tmp_path / "glm4.gguf")))
    assert heads is not None
    assert heads.kind == "mtp"
    assert heads.size_bytes > 64 * 128 * 4
    assert read_heads(read_header(write_tiny_llama(tmp_path / "llama.gguf"))) is None
