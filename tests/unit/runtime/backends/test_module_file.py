"""Damaged files of backend modules."""

from __future__ import annotations

import _ctypes
import platform
import struct
import sys
from pathlib import Path

import pytest

from edgechat.runtime.backends import module_file
from edgechat.runtime.backends.module_file import find_module_damage

LIBRARY = Path(_ctypes.__file__).read_bytes()
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="changes a file in the format of Linux")


def find(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return find_module_damage(path)


def test_whole_library_has_no_damage(tmp_path: Path) -> None:
    assert find(tmp_path / "module", LIBRARY) == ""


def test_file_that_is_no_library_is_described_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "module"
    assert find(path, b"") == "its file is empty (0 bytes)"
    assert find(path, b"no library") == "its file is no shared library (10 bytes)"
    assert find(path, b"<html>" * 1_000_000) == "its file is no shared library (6 MB)"
    assert find_module_damage(tmp_path).startswith("its file cannot be read (")
    path.unlink()
    assert find_module_damage(path).startswith("its file cannot be read (")


@ON_LINUX
@pytest.mark.parametrize("n_bytes", [5, 60, 100, 5000, len(LIBRARY) // 2, len(LIBRARY) - 1])
def test_truncated_library_is_recognised_wherever_it_ends(tmp_path: Path, n_bytes: int) -> None:
    assert find(tmp_path / "module", LIBRARY[:n_bytes]).startswith("its file is truncated")


@ON_LINUX
def test_library_of_another_processor_is_recognised(tmp_path: Path) -> None:
    machine = "x86_64" if platform.machine() == "aarch64" else "aarch64"
    number = next(number for number, name in module_file._ELF_MACHINES.items() if name == machine)
    damage = find(tmp_path / "module", LIBRARY[:18] + struct.pack("<H", number) + LIBRARY[20:])
    assert damage.startswith(f"its file is for another processor: {machine} instead of {platform.machine()} (")
    damage = find(tmp_path / "module", LIBRARY[:4] + b"\x01\x01" + LIBRARY[6:18] + b"\x28\x00" + LIBRARY[20:])
    assert damage.startswith("its file is for another processor: arm instead of ")


def make_pe(machine: int, end: int) -> bytes:
    """Return a Windows library with one section that ends at `end`."""
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0"
    head += struct.pack("<HH12xHH", machine, 1, 16, 0) + bytes(16)
    return head + struct.pack("<8s4I16x", b".text", 0, 0, end - 512, 512)


@pytest.mark.parametrize(
    ("system", "machine", "content", "damage"),
    [
        ("win32", "AMD64", make_pe(0x8664, 1000).ljust(1000), ""),
        ("win32", "AMD64", make_pe(0x8664, 1000), "truncated (144 of 1,000 bytes)"),
        ("win32", "AMD64", make_pe(0xAA64, 1000).ljust(1000), "for another processor: aarch64 instead of x86_64"),
        ("darwin", "arm64", b"\xcf\xfa\xed\xfe\x0c\0\0\1", ""),
        ("darwin", "arm64", b"\xcf\xfa\xed\xfe\x07\0\0\1", "for another processor: x86_64 instead of aarch64"),
        ("darwin", "arm64", b"\xca\xfe\xba\xbe", ""),
        ("darwin", "arm64", make_pe(0x8664, 1000), "a library for Windows, not for this system"),
        ("linux", "x86_64", b"\xcf\xfa\xed\xfe\x0c\0\0\1", "a library for macOS, not for this system"),
    ],
)
def test_libraries_of_other_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, machine: str, content: bytes, damage: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    found = find(tmp_path / "module", content)
    assert found.startswith(f"its file is {damage}") if damage else found == ""


def test_random_headers_raise_no_exception(tmp_path: Path) -> None:
    for start in range(0, 64, 3):
        for value in (b"\xff\xff\xff", b"\x00\x00\x00", b"\x7f\x80\x01"):
            content = LIBRARY[:4] + (LIBRARY[4 : 4 + start] + value + LIBRARY[7 + start : 8000])
            find(tmp_path / "module", content)
