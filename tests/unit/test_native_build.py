"""Parts of the native build that can be tested without a build."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# What ggml_tile_config_init does (ggml-cpu/amx/mmq.cpp), with an ldtilecfg that copies instead of configuring.
PROGRAM = r"""
#include <cstdint>
#include <cstdio>

extern "C" { alignas(64) unsigned char captured[64]; }

struct alignas(64) tile_config_t { uint8_t palette_id = 0, start_row = 0, reserved[14] = {0}; uint16_t colsb[16] = {0};
                                   uint8_t rows[16] = {0}; };

__attribute__((noinline)) void configure() {
    alignas(64) tile_config_t tc = {};
    tc.palette_id = 1;
    for (int i = 0; i < 8; i++) { tc.rows[i] = i < 2 ? 8 : 16; tc.colsb[i] = i < 2 || i > 3 ? 64 : 32; }
    _tile_loadconfig(&tc);
}

int main() {
    unsigned char garbage[4096];
    for (auto & byte : garbage) { byte = 0xee; }
    __asm__ volatile("" ::"m"(garbage));
    configure();
    for (unsigned char byte : captured) { std::printf("%02x", byte); }
}
"""
COPY = " ; ".join(f"movups {16 * i}%0, %%xmm0 ; movups %%xmm0, captured+{16 * i}(%%rip)" for i in range(4))


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux" or not shutil.which("g++"),
    reason="the cure is for GCC on x86-64",
)
def test_tile_configuration_reaches_the_processor_completely(tmp_path: Path) -> None:
    source, program = tmp_path / "tiles.cpp", tmp_path / "tiles"
    source.write_text(PROGRAM)
    subprocess.run(
        ["g++", "-O3", "-std=c++17", "-mamx-tile", f'-DEDGECHAT_LDTILECFG="{COPY}"', "-include",
         str(ROOT / "native" / "amx_tileconfig.h"), str(source), "-o", str(program)],
        check=True,
    )  # fmt: skip
    got = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    colsb = b"".join(v.to_bytes(2, "little") for v in [64, 64, 32, 32, 64, 64, 64, 64] + [0] * 8)
    expected = bytes([1]) + bytes(15) + colsb + bytes([8, 8] + [16] * 6 + [0] * 8)
    assert got == expected.hex()


def test_build_inputs_determine_the_cache_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "native"))
    import build
    import toolchain

    assert toolchain.identity({"a": 1, "b": 2}) == toolchain.identity({"b": 2, "a": 1})
    assert toolchain.identity({"a": 1}) != toolchain.identity({"a": 2})
    assert build.expand("x;y") == "x;y"
    monkeypatch.setattr(shutil, "which", lambda _name, **_options: None)
    with pytest.raises(toolchain.BuildError, match="No C\\+\\+ compiler found"):
        toolchain.compiler_identity()
