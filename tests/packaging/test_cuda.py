"""The CUDA package, tested with a stand-in for the module, which takes nvcc an hour to compile."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgechat.runtime.backends.bundle import find_bundle
from tests.conftest import ROOT

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="the package is for Linux")]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    return ROOT / "packaging" / "cuda.py"


def test_module_is_packed_and_discovered(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda  # type: ignore[import-not-found]

    bundle = Path(find_bundle().directory)
    prefix, source = tmp_path / "prefix", tmp_path / "module.cpp"
    prefix.mkdir()
    for name in ("manifest.json", "LICENSE.llama.cpp"):
        shutil.copy(bundle / name, prefix)
    source.write_text('extern "C" void ggml_time_init(void);\nextern "C" void start(void) { ggml_time_init(); }\n')
    subprocess.run(
        ["c++", "-shared", "-fPIC", str(source), "-o", str(prefix / "libggml-cuda.so"), f"-L{bundle}", "-lggml-base"],
        check=True,
    )  # fmt: skip
    wheel = cuda.pack(prefix, "12", tmp_path / "dist")
    assert wheel.name.startswith("edgechat_cuda12-")
    assert "manylinux_2_" in wheel.name
    assert cuda.pack(prefix, "12", tmp_path / "again").read_bytes() == wheel.read_bytes()
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-index", "--target", str(site), str(wheel)], check=True
    )
    monkeypatch.syspath_prepend(str(site))
    (module,) = find_bundle().gpu_modules
    assert module.path == str(site / "edgechat_cuda12" / "libggml-cuda.so")
    assert json.loads((site / "edgechat_cuda12" / "manifest.json").read_text())["files"] == ["libggml-cuda.so"]


def test_invalid_compiler_is_reported(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.4, V11.4.1'\n")
    nvcc.chmod(0o755)
    for name, message in ((str(nvcc), "CUDA 12 or 13 is required"), (str(tmp_path / "none"), "No nvcc found")):
        monkeypatch.setenv("CUDACXX", name)
        done = subprocess.run([sys.executable, recipe, tmp_path / "dist"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr
