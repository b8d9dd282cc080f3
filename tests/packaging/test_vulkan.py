"""The Vulkan package: built, packed and found, and of no effect on a machine without Vulkan."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgechat.runtime.backends import gpu_probe, probe
from edgechat.runtime.backends.bundle import find_bundle
from tests.conftest import ROOT
from tests.packaging.conftest import toolchain

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="the package is for Linux")]
MAX_WHEEL_BYTES = 10_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as built by `make vulkan`; the build takes minutes the first time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "packaging"))
        vulkan = importlib.import_module("vulkan")

        try:
            prefix = vulkan.vulkan_module.module_prefix()
        except toolchain.BuildError as error:
            if "cannot be downloaded" in str(error) or "apt" in str(error):
                pytest.skip(str(error))
            raise
        built: Path = vulkan.pack(prefix, tmp_path_factory.mktemp("dist"))
        again: Path = vulkan.pack(prefix, tmp_path_factory.mktemp("again"))
    assert built.read_bytes() == again.read_bytes()
    return built


def test_wheel_is_small_and_needs_only_the_bundle_and_the_loader(wheel: Path, tmp_path: Path) -> None:
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    assert "manylinux_2_" in wheel.name
    shutil.unpack_archive(wheel, tmp_path, "zip")
    module = tmp_path / "edgechat_vulkan" / "libggml-vulkan.so"
    names = subprocess.run(["objdump", "-p", module], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[1] for line in names.splitlines() if line.strip().startswith("NEEDED")}
    assert {"libggml-base.so", "libvulkan.so.1"} <= needed
    sections = subprocess.run(["objdump", "-h", module], capture_output=True, text=True, check=True).stdout
    assert ".debug_info" not in sections


def test_module_is_found_without_configuration_and_refused_without_vulkan(
    wheel: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setenv("VK_DRIVER_FILES", str(tmp_path / "none.json"))
    monkeypatch.setenv("VK_ICD_FILENAMES", str(tmp_path / "none.json"))
    bundle = find_bundle()
    (module,) = bundle.gpu_modules
    assert module.path == str(site / "edgechat_vulkan" / "libggml-vulkan.so")
    assert bundle.warnings == ()
    [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, probe.choose_module(bundle)[0])
    assert (verdict.status, verdict.devices) == ("refused", ())
    manifest = site / "edgechat_vulkan" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"llama_cpp_commit": "1234567"}))
    bundle = find_bundle()
    assert bundle.gpu_modules == ()
    assert "edgechat_vulkan is for llama.cpp 1234567" in bundle.warnings[0]


def test_build_without_tools_says_what_to_install(tmp_path: Path) -> None:
    environment = {"PATH": str(Path(sys.executable).parent), "HOME": str(tmp_path), "VULKAN_SDK": str(tmp_path)}
    command = [sys.executable, str(ROOT / "packaging" / "vulkan.py"), str(tmp_path / "dist")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "apt-get install glslc libvulkan-dev spirv-headers" in done.stderr
