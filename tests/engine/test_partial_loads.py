"""Models of which not all tensors are in memory: prediction layers that are not loaded, and tables read by row."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.mapped_file import list_unused_ranges
from edgechat.planner.memory import LoadOptions, convert_reported_buffers, estimate, estimate_buffers
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.memory_report import MemoryEstimator
from edgechat.runtime.model import Model
from tests.layered_models import write_tiny_gemma4, write_tiny_glm4
from tests.models import open_context
from tests.resident_pages import count_resident_bytes

OPTIONS = LoadOptions(n_ctx=256, n_seqs=1)
TOKENS = [1, *range(260, 290)]
MIB = 1 << 20


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma4(tmp_path_factory.mktemp("gemma") / "gemma.gguf")


def read_profile(path: Path) -> ModelProfile:
    return ModelProfile.from_header(read_header(path))


def generate(model: Model) -> list[int]:
    """Return the tokens of a greedy reply to `TOKENS`."""
    context = open_context(model, n_ctx=256, n_threads=1)
    tokens = []
    try:
        context.decode(TOKENS)
        for _ in range(8):
            tokens.append(int(context.logits().argmax()))
            context.decode([tokens[-1]])
    finally:
        context.close()
    return tokens


@pytest.mark.parametrize("use_mmap", [True, False])
def test_prediction_layers_are_not_counted(native: Bindings, tmp_path: Path, use_mmap: bool) -> None:
    path = write_tiny_glm4(tmp_path / "mtp.gguf")
    profile = read_profile(path)
    skipped_bytes = sum(t.size_bytes for t in profile.tensors if t.layer_index == 1)
    assert profile.loaded_bytes == profile.tensor_bytes - skipped_bytes < profile.tensor_bytes
    options = LoadOptions(n_ctx=256, n_seqs=1, use_mmap=use_mmap)
    estimator = MemoryEstimator()
    try:
        exact = convert_reported_buffers(profile, options, estimator.estimate(native, path, options))
    finally:
        estimator.close()
    assert exact.weights == estimate_buffers(profile, options).weights == profile.loaded_bytes
    assert exact.file_cache == (skipped_bytes if use_mmap else 0)
    model = Model(native, path, options)
    assert model.size_bytes == profile.tensor_bytes  # llama.cpp counts what it skipped
    assert len(generate(model)) == 8
    model.close()


def test_model_without_prediction_layers_counts_all(native: Bindings, tmp_path: Path) -> None:
    profile = read_profile(write_tiny_glm4(tmp_path / "m.gguf", n_predict_layers=0))
    assert profile.loaded_bytes == profile.tensor_bytes
    assert list_unused_ranges(profile, OPTIONS) == ()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
@pytest.mark.parametrize("use_mmap", [True, False])
def test_embeddings_for_each_layer_are_read_by_row(
    native: Bindings, gemma: Path, monkeypatch: pytest.MonkeyPatch, use_mmap: bool
) -> None:
    profile = read_profile(gemma)
    table_bytes = next(t.size_bytes for t in profile.tensors if t.name == "per_layer_token_embd.weight")
    assert table_bytes > 20 * MIB > profile.tensor_bytes - table_bytes
    options = LoadOptions(n_ctx=256, n_seqs=1, use_mmap=use_mmap)
    replies, mapped_bytes = [], []
    for mode in (native.llama.LLAMA_LAZY_MODE_ON, native.llama.LLAMA_LAZY_MODE_OFF):
        monkeypatch.setattr(native.llama, "LLAMA_LAZY_MODE_ON", mode)
        model = Model(native, gemma, options)
        mapped_bytes.append(count_resident_bytes(gemma))
        replies.append(generate(model))
        model.close()
    assert replies[0] == replies[1]
    if use_mmap:
        assert mapped_bytes[1] - mapped_bytes[0] > 0.9 * table_bytes
    else:
        assert mapped_bytes[0] < MIB


@pytest.mark.parametrize("use_mmap", [True, False])
def test_embeddings_for_each_layer_are_not_counted(native: Bindings, gemma: Path, use_mmap: bool) -> None:
    profile = read_profile(gemma)
    table_bytes = next(t.size_bytes for t in profile.tensors if t.name == "per_layer_token_embd.weight")
    options = LoadOptions(n_ctx=256, n_seqs=1, use_mmap=use_mmap)
    estimator = MemoryEstimator()
    try:
        exact = convert_reported_buffers(profile, options, estimator.estimate(native, gemma, options))
    finally:
        estimator.close()
    formula = estimate_buffers(profile, options)
    assert formula.weights == profile.tensor_bytes - table_bytes
    # llama.cpp has two tensors for the token embedding, which is also the output matrix, and reads both.
    embedding_bytes = next(t.size_bytes for t in profile.tensors if t.name == "token_embd.weight")
    assert exact.weights == formula.weights + (0 if use_mmap else embedding_bytes)
    assert exact.file_cache == (table_bytes if use_mmap else 0)
    assert estimate(profile, options).loading == 0
    on_gpu = estimate_buffers(profile, LoadOptions(n_ctx=256, n_seqs=1, n_gpu_layers=3, use_mmap=False))
    assert on_gpu.weights >= table_bytes  # only tested without a GPU
