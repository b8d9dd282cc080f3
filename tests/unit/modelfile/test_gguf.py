"""The GGUF header parser, against the gguf package and with hostile files."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.errors import ModelFileError
from edgechat.modelfile.layers import read_layers
from edgechat.modelfile.split import read_header
from tests.models import write_tiny_llama
from tests.unit.modelfile.large_vocabulary import write_large_vocabulary


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.mark.slow
def test_header_matches_the_gguf_package(starter: Path) -> None:
    parsed, reference = read_header(starter), gguf.GGUFReader(starter)
    assert [(t.name, t.size_bytes) for t in parsed.tensors] == [(t.name, t.n_bytes) for t in reference.tensors]
    assert [parsed.data_offset + t.offset for t in parsed.tensors] == [t.data_offset for t in reference.tensors]
    for key, field in reference.fields.items():
        if key.startswith("GGUF."):
            continue
        if key in parsed.metadata:
            assert parsed.metadata[key] == field.contents()
        else:
            assert parsed.array_lengths[key] == len(field.data)
    assert (parsed.architecture, parsed.n_layers, parsed.n_ctx_train, parsed.n_vocab) == ("llama", 30, 8192, 49152)
    assert {layer.kv_width for layer in read_layers(parsed).layers} == {3 * (64 + 64)}


def error_message(path: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        read_header(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_files_that_are_no_model_are_explained(tmp_path: Path) -> None:
    assert "does not exist" in error_message(tmp_path / "none.gguf")
    assert "is a directory" in error_message(tmp_path)
    empty, text = tmp_path / "empty.gguf", tmp_path / "text.gguf"
    empty.touch()
    assert "is empty" in error_message(empty)
    text.write_text("Once upon a time")
    assert "not a GGUF file" in error_message(text)


@pytest.mark.slow
def test_file_truncated_at_any_byte_is_refused(tiny: Path, tmp_path: Path) -> None:
    data, cut = tiny.read_bytes(), tmp_path / "cut.gguf"
    for size in [*range(64), *range(64, len(data), 997), len(data) - 1]:
        cut.write_bytes(data[:size])
        error_message(cut)


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 2**40, 1 << 18])
@pytest.mark.parametrize("position", [8, 16])
def test_counts_larger_than_the_file_are_refused(tiny: Path, tmp_path: Path, count: int, position: int) -> None:
    data, changed = bytearray(tiny.read_bytes()), tmp_path / "changed.gguf"
    data[position : position + 8] = struct.pack("<Q", count)
    changed.write_bytes(data)
    assert f"claims {count}" in error_message(changed)


def gguf_bytes(*tensors: tuple[str, tuple[int, ...], int, int], data_bytes: int = 4096) -> bytes:
    """Return a GGUF file without metadata, with tensors of (name, shape, type, offset)."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0)
    for name, shape, kind, offset in tensors:
        out += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)
    return out + bytes(-len(out) % 32) + bytes(data_bytes)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", (32,), 0, 0), ("b", (32,), 0, 64)], "overlapping tensors"),
        ([("a", (32,), 0, 0), ("a", (32,), 0, 128)], "two tensors of the same name"),
        ([("a", (32,), 0, 1 << 40)], "ends too early"),
        ([("a", (1 << 33, 1 << 33), 0, 0)], "invalid shape"),
        ([("a", (33,), 2, 0)], "invalid shape"),
        ([("a", (0,), 0, 0)], "invalid shape"),
        ([("a", (32,), 99, 0)], "unknown type 99"),
        ([("a", (32,), 0, 7)], "not a multiple of 32"),
        ([("a", (1, 1, 1, 1, 1), 0, 0)], "5 dimensions"),
    ],
)
def test_invalid_tensors_are_refused(
    tmp_path: Path, tensors: list[tuple[str, tuple[int, ...], int, int]], message: str
) -> None:
    path = tmp_path / "changed.gguf"
    path.write_bytes(gguf_bytes(*tensors))
    assert message in error_message(path)


def test_nested_arrays_are_refused_and_stored_elements_are_limited(tmp_path: Path) -> None:
    def with_arrays(element: int, count: int, content: bytes, arrays: int) -> Path:
        out = b"GGUF" + struct.pack("<IQQ", 3, 0, arrays)
        for number in range(arrays):
            out += struct.pack("<Q", 6) + f"k{number:05}".encode() + struct.pack("<IIQ", 9, element, count) + content
        path = tmp_path / "arrays.gguf"
        path.write_bytes(out + bytes(64))
        return path

    assert "invalid element type 9" in error_message(with_arrays(9, 1, struct.pack("<IQ", 0, 1) + b"x", 1))
    header = read_header(with_arrays(0, 4096, bytes(4096), 100))
    assert sum(len(v) for v in header.metadata.values()) == 1 << 18
    assert sum(header.array_lengths.values()) == 100 * 4096


def test_valid_small_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "valid.gguf"
    path.write_bytes(gguf_bytes(("a", (32,), 0, 0), ("b", (32, 2), 2, 128)))
    assert [t.size_bytes for t in read_header(path).tensors] == [128, 36]


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(tiny.read_bytes())
    end = min(len(whole), 12_000)  # the header and the beginning of the weights
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.gguf"
    path.write_bytes(whole)
    try:
        read_header(path)
    except ModelFileError:
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="asks the system for the memory of a child as Unix does")
def test_header_of_a_large_vocabulary_takes_little_memory(tmp_path: Path) -> None:
    path = write_large_vocabulary(tmp_path / "m.gguf")
    with path.open("r+b") as file:
        file.truncate(5 << 30)  # sparse
    script = (
        "import resource, sys; from pathlib import Path; from edgechat.modelfile.split import read_header\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_header(Path(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    growth = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(growth.stdout) * unit < 40e6
