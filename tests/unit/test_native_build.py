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
AVX512 = "avx2 bmi2 f16c fma avx512f avx512cd avx512vl avx512dq avx512bw"
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


@pytest.fixture
def native_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "native"))


@pytest.mark.usefixtures("native_modules")
@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", "flags : sse4_2 avx", "x64"),
        ("x86_64", "flags : avx2 bmi2 f16c fma", "x64;haswell"),
        ("x86_64", "flags : " + AVX512 + " avx512vbmi avx512_vnni", "x64;icelake"),
        ("x86_64", "flags : " + AVX512 + " avx512vbmi avx512_vnni avx512_bf16", "x64;zen4"),
        ("x86_64", "flags : " + AVX512 + " avx512vbmi avx512_vnni avx512_bf16 amx_tile amx_int8",
         "x64;sapphirerapids"),
        ("aarch64", "Features : fp asimd", "armv8.0_1"),
        ("aarch64", "Features : fp asimd asimdhp asimddp", "armv8.0_1;armv8.2_2"),
        ("aarch64", "Features : fp asimd asimdhp asimddp sve i8mm", "armv8.0_1;armv8.6_1"),
    ],
)  # fmt: skip
def test_modules_for_this_machine(
    machine: str, features: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toolchain

    monkeypatch.setattr(toolchain, "target_machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", "linux")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{features}\n\nprocessor : 1\n{features}\n")
    assert toolchain.host_variants(cpuinfo) == expected
    assert toolchain.host_variants(tmp_path / "missing") == toolchain.DEVELOPMENT_VARIANTS[machine]


@pytest.mark.usefixtures("native_modules")
def test_all_lists_of_modules_share_a_build_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import build

    monkeypatch.setenv("EDGECHAT_BUILD_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "compiler_identity", lambda: "a compiler")
    monkeypatch.setattr(build, "host_variants", lambda: "x64;zen4")
    small, tree, _ = build.locate(variants="x64;zen4")
    large, same_tree, _ = build.locate(variants=build.expand("dev"))
    assert tree == same_tree
    assert small != large
    assert build.expand("host") == "x64;zen4"
    large.mkdir(parents=True)  # a finished bundle with more modules
    assert build.expand("host") == build.expand("dev")


@pytest.mark.usefixtures("native_modules")
@pytest.mark.usefixtures("native_modules")
def test_tools_of_llama_cpp_are_not_built_again_for_a_change_of_libedgechat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import build

    shutil.copytree(ROOT / "native", tmp_path / "native")
    monkeypatch.setattr(build, "NATIVE", tmp_path / "native")
    bundle, tools = (build.locate(variants="x64", peers=peers)[0] for peers in (False, True))
    (tmp_path / "native" / "src" / "edgechat.h").write_text("// another version")
    assert build.locate(variants="x64")[0] != bundle
    assert build.locate(variants="x64", peers=True)[0] == tools
    (tmp_path / "native" / "peers.cmake").write_text("# another version")
    assert build.locate(variants="x64", peers=True)[0] != tools


def test_progress_of_a_build() -> None:
    import progress

    assert progress.describe(0, 0, 12.3) == "12 s"
    assert progress.describe(3, 200, 10.0) == "step 3 of 200"
    assert progress.describe(50, 200, 20.0) == "step 50 of 200, about 60 s left"
    assert progress.describe(50, 200, 20.0, 30) == "step 50 of 200, about 2 min left"
    assert progress.describe(50, 200, 100.0) == "step 50 of 200, about 5 min left"


@pytest.mark.usefixtures("native_modules")
def test_progress_without_a_terminal_has_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    from progress import Progress

    shown = Progress("build")
    for step in range(1, 31):
        shown.read_line(f"[{step}/30] Building something")
        shown.show()
        shown.read_line("a warning of the compiler")
        shown.show()
    shown.end()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"build: step {3 * n} of 30" for n in range(1, 11)]


@pytest.mark.usefixtures("native_modules")
@pytest.mark.parametrize("code", [0, 3])
def test_the_output_of_a_command_is_shown_only_if_it_fails(code: int) -> None:
    program = f"print('something'); raise SystemExit({code})"
    command = [sys.executable, str(ROOT / "native/progress.py"), "build", sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, "something" in result.stderr) == (code, bool(code))


@pytest.mark.skipif(sys.platform == "win32", reason="locks of files are tested on Linux and macOS")
@pytest.mark.usefixtures("native_modules")
def test_a_build_waits_for_another_one_but_not_for_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    import build
    from toolchain import BuildError

    results = iter([errno.EAGAIN, errno.EAGAIN, 0, errno.ENOLCK])

    def flock(_file: object, _operation: int) -> None:
        code = next(results)
        if code:
            raise OSError(code, "no lock")

    monkeypatch.setattr(fcntl, "flock", flock)
    with build.locked(tmp_path / "tree"):
        pass
    with pytest.raises(BuildError, match="Cannot lock"), build.locked(tmp_path / "tree"):
        pass
