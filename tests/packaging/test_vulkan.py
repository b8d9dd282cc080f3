"""The Vulkan package: built, packed and found, and of no effect on a machine without Vulkan."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgechat.runtime.backends import gpu_probe, probe
from edgechat.runtime.backends.bundle import find_bundle
from tests.archives import unpack
from tests.conftest import ROOT
from tests.packaging.conftest import as_newcomer, recipe_with, toolchain
from tests.packaging.test_offline import PYTHON, QUESTION, edgechat, sh, tools

__all__ = ["tools"]  # fixture

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


def read_diagnosis(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the output of `doctor --json`."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_refused(diagnosis: dict[str, Any]) -> None:
    [module] = [backend for backend in diagnosis["backends"] if backend["module"] == "vulkan"]
    assert (module["status"], module["devices"]) == ("refused", [])
    reasons = ("no driver or no supported device was found", "the Vulkan loader (libvulkan.so.1) is not installed")
    assert module["reason"].removeprefix("cannot be loaded: ").startswith(reasons)
    assert diagnosis["warnings"] == []


def test_package_in_an_environment_changes_nothing_without_vulkan(
    wheel: Path, wheelhouse: Path, tools: Path, tmp_path: Path
) -> None:
    environment, no_driver = tmp_path / "venv", {"VK_DRIVER_FILES": "/none.json", "VK_ICD_FILENAMES": "/none.json"}
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    install = [*pip, "install", "--no-index", "--find-links", str(wheelhouse)]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return as_newcomer(tmp_path / "user", tools, environment / "bin" / "edgechat", *arguments, **no_driver)

    subprocess.run([*install, "edgechat[starter]"], check=True)
    before = read_diagnosis(run("doctor", "--json"))
    answer = run(*QUESTION)
    subprocess.run([*install, str(wheel)], check=True)
    answer_with_package = run(*QUESTION)
    assert answer_with_package.stdout == answer.stdout != ""
    assert not [line for line in answer_with_package.stderr.splitlines() if "ulkan" in line or "GPU" in line]
    after = read_diagnosis(run("doctor", "--json"))
    assert_refused(after)
    others = [backend for backend in after["backends"] if backend["module"] != "vulkan"]
    assert (others, after["backend"]) == (before["backends"], before["backend"])
    # Not tested again: the times of the tests are those of the first one.
    assert read_diagnosis(run("doctor", "--json"))["backends"] == after["backends"]


def test_bundle_installs_the_package(wheel: Path, wheelhouse: Path, tools: Path, tmp_path: Path) -> None:
    recipe_with(wheelhouse, "offline.py", "--python", PYTHON, "--with-wheel", wheel, tmp_path / "dist")
    unpack(next((tmp_path / "dist").glob("*.tar.gz")), tmp_path)
    home, no_driver = tmp_path / "user", {"VK_DRIVER_FILES": "/none.json", "VK_ICD_FILENAMES": "/none.json"}
    done = sh(next(tmp_path.glob("edgechat-*")) / "install.sh", home, tools)
    assert done.returncode == 0, done.stderr
    assert edgechat(home, tools, *QUESTION).stdout.startswith("Gravity")
    assert_refused(read_diagnosis(sh(home / ".local/bin/edgechat", home, tools, "doctor", "--json", **no_driver)))


def test_build_without_tools_says_what_to_install(tmp_path: Path) -> None:
    environment = {"PATH": str(Path(sys.executable).parent), "HOME": str(tmp_path), "VULKAN_SDK": str(tmp_path)}
    command = [sys.executable, str(ROOT / "packaging" / "vulkan.py"), str(tmp_path / "dist")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "apt-get install glslc libvulkan-dev spirv-headers" in done.stderr
