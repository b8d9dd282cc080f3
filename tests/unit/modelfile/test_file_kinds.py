"""Files that are not usable as models are described by their first bytes or their names."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgechat.errors import ModelFileError
from edgechat.modelfile.file_kinds import describe_download, group_file_parts, parse_file_part
from edgechat.modelfile.split import read_header
from tests.models import write_tiny_llama

LFS_POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 4683073184
"""


def _zip_bytes() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), b"x" * 100)
    return file.getvalue()


def _tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return file.getvalue()


def _safetensors_bytes() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\x00" * 4


def describe(path: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        read_header(path)
    text = str(error.value)
    assert text.startswith(f"{path} ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("data", "description"),
    [
        (LFS_POINTER, "a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "a web page"),
        (b"\xef\xbb\xbf\r\n  <HTML lang='de'>\xc3\xa4</HTML>", "a web page"),
        ("\ufeff<!DOCTYPE html>\r\n<html lang='de'>\xe4".encode("utf-16-le"), "a web page"),
        ("\ufeff <html>".encode("utf-16-be"), "a web page"),
        ("<html><head><title>\u4f60\u597d</title>".encode("utf-16-le"), "a web page"),
        ("<html>".encode("utf-16-be") * 100, "a web page"),
        ('\ufeff{"error":1}'.encode("utf-16-le"), "a JSON text"),
        (b"\x01\x00\x02\x00" * 10, "not a GGUF file"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
        (b'{"error":"Invalid username or password."}', "a JSON text"),
        (b"Invalid username or password.", "a text file"),
        (_zip_bytes(), "a ZIP archive or a PyTorch checkpoint"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch checkpoint"),
        (_safetensors_bytes(), "a safetensors file"),
        (b"lmgg" + b"\x01\x00\x00\x00" * 9, "a GGML file of 2023"),
        (b"fmgg" + b"\x01\x00\x00\x00" * 9, "a GGMF file of 2023"),
        (b"tjgg" + b"\x03\x00\x00\x00" * 9, "a GGJT file of 2023"),
        (gzip.compress(b"GGUF", mtime=0), "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "compressed with zstd"),
        (_tar_bytes(), "a tar archive"),
        (b"\x00" * 5000, "starts with zeros"),
        (b"\x7fELF\x02\x01\x01", "a program"),
        (b"MZqFpD='\n\0", "a program for several systems, such as a llamafile"),
        (b"\x89PNG\r\n\x1a\n", "is an image, not a GGUF file. Choose a .gguf file."),
        ("\ufeff<html>".encode("utf-32-le"), "a web page"),
        (b"MZ, a text", "a text file"),
        (b"\x01\x02\x03\x04" * 10, "not a GGUF file"),
        (b"", "is empty"),
        (b"G", "ends too early"),
        (b"GGUF", "ends too early"),
        (b"GGUF" + struct.pack("<I", 1) + b"\x00" * 40, "GGUF version 1, which llama.cpp no longer reads"),
        (b"GGUF" + struct.pack("<I", 4) + b"\x00" * 40, "GGUF version 4, but this edgechat reads only versions 2"),
        (b"GGUF" + struct.pack(">I", 3) + b"\x00" * 40, r"a big-endian GGUF file (version 3)"),
        (b"FUGG" + struct.pack(">I", 3) + b"\x00" * 40, "a big-endian GGUF file"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, data: bytes, description: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert description in describe(path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x.Q8_0.gguf.part1of2", "x.Q8_0.gguf.part2of2"),
        ("x.Q8_0.gguf-split-a", "x.Q8_0.gguf-split-b"),
        ("x.Q8_0.gguf.part-aa", "x.Q8_0.gguf.part-ab"),
        ("x.Q8_0.gguf.aa", "x.Q8_0.gguf.ab"),
        ("x.Q8_0.gguf.001", "x.Q8_0.gguf.002"),
        ("x.Q8_0.part1of2.gguf", "x.Q8_0.part2of2.gguf"),
        ("x.Q8_0-split-a.gguf", "x.Q8_0-split-b.gguf"),
        ("my model.gguf.part_1", "my model.gguf.part_2"),
        ("x.Q8_0.gguf.1of2", "x.Q8_0.gguf.2of2"),
        ("x.Q8_0.gguf-1-of-2", "x.Q8_0.gguf-2-of-2"),
        ("x.Q8_0.gguf.part 1 of 2", "x.Q8_0.gguf.part 2 of 2"),
        ("x.Q8_0.gguf Part 1 of 2", "x.Q8_0.gguf Part 2 of 2"),
        ("x.Q8_0.gguf (part 1 of 2)", "x.Q8_0.gguf (part 2 of 2)"),
        ("x.Q8_0.gguf (1 of 2)", "x.Q8_0.gguf (2 of 2)"),
        ("x.Q8_0 (part 1).gguf", "x.Q8_0 (part 2).gguf"),
        ("x.Q8_0.gguf_part1", "x.Q8_0.gguf_part2"),
        ("x.Q8_0.gguf.part0001", "x.Q8_0.gguf.part0002"),
    ],
)
def test_parts_of_a_cut_file_are_to_be_joined(tmp_path: Path, first: str, second: str) -> None:
    whole = write_tiny_llama(tmp_path / "whole.bin").read_bytes()
    (tmp_path / first).write_bytes(whole[:2000])
    missing = describe(tmp_path / first)
    assert "its folder has 1 of them. Download the others" in missing
    (tmp_path / second).write_bytes(whole[2000:])
    for name in (first, second):
        text = describe(tmp_path / name)
        assert "download it again" not in text
        command = text.partition("`")[2].partition("`")[0]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    joined = "my model.gguf" if first.startswith("my") else "x.Q8_0.gguf"
    assert (tmp_path / joined).read_bytes() == whole
    assert read_header(tmp_path / joined).architecture == "llama"


@pytest.mark.parametrize(
    "suffix", [".crdownload", ".part", ".partial", ".incomplete", ".download", ".opdownload", ".aria2", ".!qB", ".tmp"]
)
@pytest.mark.parametrize("data", [b"", b"GGUF", None])
def test_incomplete_download_is_named(tmp_path: Path, suffix: str, data: bytes | None) -> None:
    path = tmp_path / f"x.gguf{suffix}"
    if data is None:  # the size and the header of a complete file
        write_tiny_llama(path)
    else:
        path.write_bytes(data)
    assert "is an incomplete download" in describe(path)


def test_file_beside_the_control_file_of_aria2_is_an_incomplete_download(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "x.gguf")
    (tmp_path / "x.gguf.aria2").write_bytes(b"\0")
    assert "its folder contains x.gguf.aria2" in describe(path)
    (tmp_path / "x.gguf.aria2").unlink()
    assert read_header(path).architecture == "llama"


def test_complete_model_with_the_name_of_a_part_is_read(tmp_path: Path) -> None:
    assert read_header(write_tiny_llama(tmp_path / "x-part-b.gguf")).architecture == "llama"


def test_names_of_parts() -> None:
    others = [
        "x.gguf",
        "x-00001-of-00002.gguf",
        "x.Q4_K_M.gguf",
        "x.gguf.part",
        "x.part.gguf",
        "x.gguf.gz",
        "x.001",
        "x.gguf.1",
        "x-1-of-2.gguf",
        "x (1).gguf",
        "apart-a-of.gguf",
    ]
    for name in (*others, "", "x.gguf.part.log", "x.gguf.part\N{LATIN SMALL LETTER LONG S}"):
        assert parse_file_part(name) is None, name
    names = [f"x.gguf.part{number}of12" for number in range(12, 0, -1)]
    assert group_file_parts([*names, "y.gguf"]) == {"x.gguf": names[::-1]}


def test_name_that_is_too_long_is_no_incomplete_download() -> None:
    path = Path("x" * 300 + ".gguf")
    assert describe_download(path) == ""
    with pytest.raises(ModelFileError, match="name too long"):
        read_header(path)
