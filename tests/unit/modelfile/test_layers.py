"""What a model is made of; sets of files; headers from afar."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.constants import LlamaFileType

from edgechat.catalogue import remote_header
from edgechat.catalogue.hub import RemoteFile
from edgechat.errors import ModelFileError
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.layers import read_layers
from edgechat.modelfile.split import join_headers, parse_part_name, read_header
from edgechat.modelfile.tensor_types import FILE_TYPES
from tests.hub import FakeRepo, local_hub
from tests.models import split_tiny, write_tiny, write_tiny_llama


def header(architecture: str, **values: Any) -> ModelHeader:
    keys = {f"{architecture}.{key.replace('__', '.')}": value for key, value in values.items()}
    return ModelHeader(
        path="x", file_bytes=0, version=3, metadata={"general.architecture": architecture} | keys, array_lengths={},
        tensors=(), data_offset=0,
    )  # fmt: skip


def memories(found: ModelHeader) -> Counter[str]:
    return Counter(layer.memory for layer in read_layers(found).layers)


ATTENTION: dict[str, Any] = {"embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 2}


def test_file_types_are_those_of_the_gguf_package() -> None:
    known = {kind.value: kind.name.split("_", 1)[1] for kind in LlamaFileType if kind.name != "GUESSED"}
    assert known == FILE_TYPES


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (header("llama", block_count=4, **ATTENTION), {"full": 4}),
        (header("gemma3", block_count=26, attention__sliding_window=512, **ATTENTION), {"window": 22, "full": 4}),
        (header("gpt-oss", block_count=24, attention__sliding_window=128, **ATTENTION), {"window": 12, "full": 12}),
        (header("gemma3n", block_count=30, attention__sliding_window=512, **ATTENTION), {"window": 16, "full": 4, "none": 10}),
        (
            header("gemma4", block_count=6, attention__sliding_window=512, attention__shared_kv_layers=2,
                   attention__sliding_window_pattern=[True, True, False] * 2, **ATTENTION),
            {"window": 3, "full": 1, "none": 2},
        ),
        (header("qwen35", block_count=32, ssm__inner_size=4, **ATTENTION), {"state": 24, "full": 8}),
        (header("phi3", block_count=3, attention__sliding_window=2047, **ATTENTION), {"full": 3}),
        (header("llama4", block_count=8, **ATTENTION), {"window": 6, "full": 2}),
        (header("llama4", block_count=8, attention__sliding_window=0, **ATTENTION), {"full": 8}),
        (header("qwen35", block_count=5, nextn_predict_layers=1, ssm__inner_size=4, **ATTENTION), {"state": 3, "full": 1, "none": 1}),
        (header("mamba", block_count=3, ssm__inner_size=4), {"state": 3}),
        (
            header("lfm2", block_count=4, shortconv__l_cache=3, embedding_length=64, attention__head_count=4,
                   attention__head_count_kv=[0, 2, 0, 0]),
            {"state": 3, "full": 1},
        ),
        (
            header("nemotron_h", block_count=3, ssm__inner_size=4, embedding_length=64, attention__head_count=4,
                   attention__head_count_kv=[0, 2, 0], feed_forward_length=[0, 0, 9]),
            {"state": 1, "full": 1, "none": 1},
        ),
    ],
)  # fmt: skip
def test_what_layers_remember(found: ModelHeader, expected: dict[str, int]) -> None:
    assert memories(found) == expected


def test_widths_of_heads() -> None:
    found = header(
        "gemma4", block_count=2, attention__sliding_window=8, attention__sliding_window_pattern=[1, 0],
        attention__key_length=512, attention__value_length=512, attention__key_length_swa=256,
        attention__value_length_swa=256, **ATTENTION,
    )  # fmt: skip
    assert [layer.kv_width for layer in read_layers(found).layers] == [2 * 512, 2 * 1024]
    compressed = header(
        "deepseek2", block_count=1, attention__kv_lora_rank=512, attention__key_length=576, attention__value_length=512,
        attention__key_length_mla=192, embedding_length=64, attention__head_count=16, attention__head_count_kv=1,
    )  # fmt: skip
    assert read_layers(compressed).layers[0].kv_width == 576
    with pytest.raises(ModelFileError, match="100000 layers"):
        read_layers(header("llama", block_count=100_000))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", {"full": 2}), ("moe", {"full": 2}), ("sliding", {"window": 1, "full": 1}), ("mamba", {"state": 2}),
        ("hybrid", {"state": 1, "full": 1}),
    ],
)  # fmt: skip
def test_real_files_of_every_kind(tmp_path: Path, kind: Any, expected: dict[str, int]) -> None:
    found = read_header(write_tiny(tmp_path / "m.gguf", kind))
    assert memories(found) == expected
    assert (found.kind, found.n_parts) == ("model", 1)
    assert found.n_params == sum(int(t.n_elements) for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors)


def test_a_set_of_files_is_one_model(tmp_path: Path) -> None:
    files = split_tiny(tmp_path)
    whole, joined = read_header(tmp_path / "whole.gguf"), read_header(files[0])
    assert {(t.name, t.shape, t.type, t.size_bytes) for t in joined.tensors} == {
        (t.name, t.shape, t.type, t.size_bytes) for t in whole.tensors
    }
    assert {t.part_index for t in joined.tensors} == {0, 1, 2}
    assert joined.file_bytes == sum(path.stat().st_size for path in files)
    with pytest.raises(ModelFileError, match=r"name the first, .*-00001-of-00003\.gguf"):
        read_header(files[1])
    parts = [read_header_alone(path) for path in files]
    for wrong in ([parts[0], parts[2], parts[1]], parts[:2], [parts[0], parts[1], parts[1]]):
        with pytest.raises(ModelFileError, match="part"):
            join_headers(wrong)
    files[2].rename(tmp_path / "away")
    with pytest.raises(ModelFileError, match=r"missing beside it: .*-00003-of-00003\.gguf"):
        read_header(files[0])
    files[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match="not called like one"):
        read_header(tmp_path / "renamed.gguf")
    assert parse_part_name("a-00002-of-00001.gguf") is None
    assert parse_part_name("a-00001-of-99999.gguf") is None


def read_header_alone(path: Path) -> ModelHeader:
    from edgechat.modelfile.gguf import read_gguf_header

    return read_gguf_header(path)


def write_large_vocabulary(path: Path, n_tokens: int = 262_144, n_merges: int = 514_906) -> Path:
    """As large a header as there is: the vocabulary of Gemma with its merges."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(2)
    writer.add_token_list([f"tok{i:05}" for i in range(n_tokens)])
    writer.add_token_scores([0.0] * n_tokens)
    writer.add_token_types([1] * n_tokens)
    writer.add_token_merges([f"a{i % 1000:03} b" for i in range(n_merges)])
    import numpy as np

    writer.add_tensor("token_embd.weight", np.zeros((4, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_from_afar_takes_few_requests_and_no_weights(tmp_path: Path) -> None:
    path = write_large_vocabulary(tmp_path / "m.gguf")
    header_bytes = path.stat().st_size
    assert header_bytes > 13e6
    with path.open("r+b") as file:
        file.truncate(100 << 20)
    with local_hub() as hub:
        hub.repos["a/b"] = FakeRepo({"m.gguf": path, **{part.name: part for part in split_tiny(tmp_path)}})

        def there(name: str, size_bytes: int) -> RemoteFile:
            return RemoteFile(path=name, size_bytes=size_bytes, sha256="", url=f"{hub.store_url}/a/b/{name}")

        found = remote_header.read_remote_header([there("m.gguf", 100 << 20)], {})
        assert len(hub.file_requests()) <= 3
        assert hub.sent_bytes <= 16 << 20
        assert found.n_vocab == 262_144
        assert found.tensors == read_header(path).tensors
        hub.requests.clear()
        parts = [
            there(name, len(hub.content("a/b", name))) for name in sorted(hub.repos["a/b"].files) if "tiny" in name
        ]
        assert remote_header.read_remote_header(parts, {}).tensors == read_header(tmp_path / parts[0].path).tensors
        assert len(hub.file_requests()) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="asks the system for the memory of a child as Unix does")
def test_a_header_takes_little_memory(tmp_path: Path) -> None:
    path = write_large_vocabulary(tmp_path / "m.gguf")
    with path.open("r+b") as file:
        file.truncate(5 << 30)  # sparse
    script = (
        "import resource, sys; from pathlib import Path; from edgechat.modelfile.split import read_header\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_header(Path(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown.stdout) * unit < 40e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_projectors_and_adapters_are_told_apart(tmp_path: Path) -> None:
    assert read_header(write_tiny_llama(tmp_path / "clip.gguf", architecture="clip")).kind == "projector"
