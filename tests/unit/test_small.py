"""Error classes, escaped control characters, CPU and memory readers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat import errors
from edgechat.errors import EngineError
from edgechat.hardware.cpu import cgroup_cpus, parse_cpuinfo, usable_threads
from edgechat.hardware.memory import read_memory
from edgechat.terminal import escape_controls

X86 = "processor : 0\nmodel name : AMD EPYC\nmicrocode : 0xa1\nflags : sse avx2 avx\n\nprocessor : 1\nmodel name : other\n"
ARM = "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd0b\nCPU revision : 1\n"


def test_every_error_has_an_exit_code_and_crosses_by_name() -> None:
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.EdgechatError)]
    assert len(found) > 8
    for kind in found:
        assert kind.exit_code in (2, 3, 4, 5, 6)
        assert errors.error_class(kind.__name__) is kind
    assert errors.error_class("OSError") is errors.error_class("by_name") is EngineError


def test_cpuinfo_of_x86_and_arm() -> None:
    cpu = parse_cpuinfo(X86)
    assert (cpu.model, cpu.microcode, cpu.flags) == ("AMD EPYC", "0xa1", "avx avx2 sse")
    cpu = parse_cpuinfo(ARM)
    assert (cpu.model, cpu.flags) == ("0x41 0xd0b 1", "asimd fp")
    assert parse_cpuinfo("").model


@pytest.mark.parametrize(
    ("text", "cpus"), [("max 100000", None), ("", None), ("150000 100000", 1), ("50000 100000", 1)]
)
def test_cpu_quota(text: str, cpus: int | None) -> None:
    assert cgroup_cpus(text) == cpus


def test_this_machine_is_described() -> None:
    memory = read_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
    assert usable_threads() >= 1


@given(st.text())
def test_visible_text_cannot_act_on_a_terminal(text: str) -> None:
    shown = escape_controls(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 for c in shown)
    if text.isascii() and text.isprintable():
        assert shown == text


def test_visible_keeps_what_it_replaces_recognisable() -> None:
    assert escape_controls("a\x1b[2Jb\r\nc\rd\x9b31m") == "a␛[2Jb\nc␍d\ufffd31m"
