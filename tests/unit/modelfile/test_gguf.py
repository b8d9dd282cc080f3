"""The header walk against the gguf package, and against hostile files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.errors import ModelFileError
from edgechat.modelfile.layers import read_layers as shape_of
from edgechat.modelfile.split import read_header
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from tests.models import write_tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


def test_tensor_types_are_those_of_the_gguf_package() -> None:
    for number, (block_size, type_bytes) in GGML_QUANT_SIZES.items():
        assert TENSOR_TYPES[number.value] == (number.name, block_size, type_bytes)


def test_a_real_model_reads_as_the_gguf_package_reads_it(starter: Path) -> None:
    ours, theirs = read_header(starter), gguf.GGUFReader(starter)
    assert [(t.name, t.size_bytes) for t in ours.tensors] == [(t.name, t.n_bytes) for t in theirs.tensors]
    assert [ours.data_offset + t.offset for t in ours.tensors] == [t.data_offset for t in theirs.tensors]
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        if key in ours.metadata:
            assert ours.metadata[key] == field.contents()
        else:
            assert ours.array_lengths[key] == len(field.data)
    assert (ours.architecture, ours.n_layers, ours.n_ctx_train, ours.n_vocab) == ("llama", 30, 8192, 49152)
    assert {layer.kv_width for layer in shape_of(ours).layers} == {3 * (64 + 64)}


def reason(path: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        read_header(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_what_is_not_a_model_is_named(tmp_path: Path) -> None:
    assert "does not exist" in reason(tmp_path / "none.gguf")
    assert "is a directory" in reason(tmp_path)
    empty, text = tmp_path / "empty.gguf", tmp_path / "text.gguf"
    empty.touch()
    assert "is empty" in reason(empty)
    text.write_text("Once upon a time")
    assert "not a GGUF file" in reason(text)


def test_a_file_cut_anywhere_is_refused(tiny: Path, tmp_path: Path) -> None:
    data, cut = tiny.read_bytes(), tmp_path / "cut.gguf"
    for size in [*range(64), *range(64, len(data), 997), len(data) - 1]:
        cut.write_bytes(data[:size])
        reason(cut)


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 2**40, 1 << 18])
@pytest.mark.parametrize("position", [8, 16])
def test_lying_counts_are_refused(tiny: Path, tmp_path: Path, count: int, position: int) -> None:
    data, lying = bytearray(tiny.read_bytes()), tmp_path / "lying.gguf"
    data[position : position + 8] = struct.pack("<Q", count)
    lying.write_bytes(data)
    assert f"claims {count}" in reason(lying)


def header(*tensors: tuple[str, tuple[int, ...], int, int], data_bytes: int = 4096) -> bytes:
    """A GGUF file without metadata and with these tensors: name, shape, type, offset."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0)
    for name, shape, kind, offset in tensors:
        out += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)
    return out + bytes(-len(out) % 32) + bytes(data_bytes)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([("a", (32,), 0, 0), ("b", (32,), 0, 64)], "in the same place"),
        ([("a", (32,), 0, 0), ("a", (32,), 0, 128)], "two tensors with one name"),
        ([("a", (32,), 0, 1 << 40)], "ends too early"),
        ([("a", (1 << 33, 1 << 33), 0, 0)], "impossible shape"),
        ([("a", (33,), 2, 0)], "impossible shape"),
        ([("a", (0,), 0, 0)], "impossible shape"),
        ([("a", (32,), 99, 0)], "unknown type 99"),
        ([("a", (32,), 0, 7)], "not a multiple of 32"),
        ([("a", (1, 1, 1, 1, 1), 0, 0)], "5 dimensions"),
    ],
)
def test_lying_tensors_are_refused(
    tmp_path: Path, tensors: list[tuple[str, tuple[int, ...], int, int]], words: str
) -> None:
    path = tmp_path / "lying.gguf"
    path.write_bytes(header(*tensors))
    assert words in reason(path)


def test_arrays_of_arrays_and_too_much_to_keep(tmp_path: Path) -> None:
    def with_arrays(element: int, count: int, content: bytes, arrays: int) -> Path:
        out = b"GGUF" + struct.pack("<IQQ", 3, 0, arrays)
        for number in range(arrays):
            out += struct.pack("<Q", 6) + f"k{number:05}".encode() + struct.pack("<IIQ", 9, element, count) + content
        path = tmp_path / "arrays.gguf"
        path.write_bytes(out + bytes(64))
        return path

    assert "impossible type 9" in reason(with_arrays(9, 1, struct.pack("<IQ", 0, 1) + b"x", 1))
    found = read_header(with_arrays(0, 4096, bytes(4096), 100))
    assert sum(len(v) for v in found.metadata.values()) == 1 << 18
    assert sum(found.array_lengths.values()) == 100 * 4096


def test_an_honest_small_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "honest.gguf"
    path.write_bytes(header(("a", (32,), 0, 0), ("b", (32, 2), 2, 128)))
    assert [t.size_bytes for t in read_header(path).tensors] == [128, 36]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_read_or_refused_but_nothing_else(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(tiny.read_bytes())
    end = min(len(whole), 12_000)  # the header and a little of the weights
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.gguf"
    path.write_bytes(whole)
    try:
        read_header(path)
    except ModelFileError:
        pass
