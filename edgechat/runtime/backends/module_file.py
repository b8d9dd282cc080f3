"""Damage of the file of a backend module: empty, cut short, of another processor, or no shared library."""

from __future__ import annotations

import os
import platform
import struct
import sys
from pathlib import Path
from typing import Final, NamedTuple

from edgechat.errors import format_reason
from edgechat.humanize import format_count, format_size

_HEAD_BYTES: Final = 4096
# Constants of the ELF, Mach-O and PE formats for 64-bit little-endian processors, by names of `platform.machine`.
_ELF_MACHINES: Final = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_MACH_O_MACHINES: Final = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
_PE_MACHINES: Final = {0x14C: "x86", 0x8664: "x86_64", 0xAA64: "aarch64"}
_OTHER_NAMES: Final = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "arm", "armv6l": "arm", "i686": "x86"}
_ELF_MAGIC: Final = b"\x7fELF"
_MACH_O_MAGIC: Final = b"\xcf\xfa\xed\xfe"
_FAT_MACH_O_MAGIC: Final = b"\xca\xfe\xba\xbe"
_PE_MAGIC: Final = b"MZ"
_SYSTEMS: Final = {
    _ELF_MAGIC: ("linux", "Linux"), _MACH_O_MAGIC: ("darwin", "macOS"), _FAT_MACH_O_MAGIC: ("darwin", "macOS"),
    _PE_MAGIC: ("win32", "Windows"),
}  # fmt: skip


class _Library(NamedTuple):
    machine: str
    """Processor as in `platform.machine`, such as `x86_64`; "" if it is unknown."""
    n_bytes: int
    """Size that the file must have according to its header; 0 if it is unknown."""


def find_module_damage(path: Path) -> str:
    """Return why the file of a module cannot be loaded on this system, with its size; "" if its header is right."""
    try:
        with path.open("rb") as file:
            head, size = file.read(_HEAD_BYTES), os.fstat(file.fileno()).st_size
    except OSError as error:
        return f"its file cannot be read ({format_reason(error)})"
    if not size:
        return "its file is empty (0 bytes)"
    damage = _find_damage(head, size)
    return f"its file is {damage}" if damage else ""


def _find_damage(head: bytes, size: int) -> str:
    """Return what is wrong with a file of `size` bytes that begins with `head`; "" if nothing is."""
    size_text = format_size(size) if size >= 1_000_000 else format_count(size, "byte")  # noqa: PLR2004
    system, system_name = next((names for magic, names in _SYSTEMS.items() if head.startswith(magic)), ("", ""))
    if not system:
        return f"no shared library ({size_text})"
    if system != sys.platform:
        return f"a library for {system_name}, not for this system ({size_text})"
    try:
        library = _read_header(head)
    except (struct.error, OverflowError):  # an offset beyond what was read
        return f"truncated within its header ({size_text})"
    machine = platform.machine().lower()
    machine = _OTHER_NAMES.get(machine, machine)
    if library.machine and library.machine != machine:
        return f"for another processor: {library.machine} instead of {machine} ({size_text})"
    return f"truncated ({size:,} of {library.n_bytes:,} bytes)" if size < library.n_bytes else ""


def _read_header(head: bytes) -> _Library:
    """Read the header of a library of this system. Raises struct.error if it is incomplete."""
    if head.startswith(_ELF_MAGIC):
        return _read_elf(head)
    if head.startswith(_PE_MAGIC):
        return _read_pe(head)
    if head.startswith(_FAT_MACH_O_MAGIC):  # for several processors
        return _Library("", 0)
    return _Library(_MACH_O_MACHINES.get(struct.unpack_from("<I", head, 4)[0], ""), 0)


def _read_elf(head: bytes) -> _Library:
    (machine,) = struct.unpack_from("<H", head, 18)
    name = _ELF_MACHINES.get(machine, "")
    if head[4:6] != b"\x02\x01":  # not 64-bit little-endian, so the offsets below are others
        return _Library(name if name in {"arm", "x86"} else f"{name or 'unknown'} in another format", 0)
    segment_offset, section_offset = struct.unpack_from("<QQ", head, 32)
    segment_size, n_segments, section_size, n_sections = struct.unpack_from("<4H", head, 54)
    n_bytes = section_offset + section_size * n_sections
    for number in range(n_segments):
        offset, _, _, n_file_bytes = struct.unpack_from("<4Q", head, segment_offset + number * segment_size + 8)
        n_bytes = max(n_bytes, offset + n_file_bytes)
    return _Library(name, n_bytes)


def _read_pe(head: bytes) -> _Library:
    (offset,) = struct.unpack_from("<I", head, 60)
    machine, n_sections = struct.unpack_from("<HH", head, offset + 4)
    (optional_size,) = struct.unpack_from("<H", head, offset + 20)
    n_bytes = 0
    for number in range(n_sections):
        size, start = struct.unpack_from("<II", head, offset + 24 + optional_size + number * 40 + 16)
        n_bytes = max(n_bytes, start + size)
    return _Library(_PE_MACHINES.get(machine, ""), n_bytes)
