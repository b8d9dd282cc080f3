"""Saved verdicts of machines without a GPU."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgechat.hardware import vulkan
from edgechat.runtime.backends import gpu_absence, gpu_probe, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from edgechat.runtime.backends.gpu_device_test import ALL, Demand
from edgechat.runtime.backends.verdicts import Status, Verdict


def make_bundle(folder: Path, *names: str) -> Bundle:
    for name in names:
        (folder / f"libggml-{name}.so").write_bytes(b"")
    return Bundle(
        directory=str(folder), build_id="1", llama_cpp_python="", llama_cpp_commit="", compiler="", modules=(),
        gpu_modules=tuple(BackendModule(name, str(folder / f"libggml-{name}.so")) for name in names),
    )  # fmt: skip


def save(bundle: Bundle, number: int, status: Status) -> None:
    module = bundle.gpu_modules[number]
    verdicts.save_verdict(gpu_absence.compute_key(bundle, module), Verdict(module.name, status, ""))


def test_bundle_without_gpu_modules_has_no_gpu(tmp_path: Path) -> None:
    assert gpu_absence.has_no_gpu(make_bundle(tmp_path))


def test_every_module_must_have_been_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "cuda", "vulkan")
    assert not gpu_absence.has_no_gpu(bundle)
    save(bundle, 0, "refused")
    assert not gpu_absence.has_no_gpu(bundle)
    save(bundle, 1, "refused")
    assert gpu_absence.has_no_gpu(bundle)


@pytest.mark.parametrize("status", ["passed", "wrong", "crashed", "hung"])
def test_a_module_with_a_device_is_left_to_the_engine(status: Status, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "vulkan")
    save(bundle, 0, status)
    assert not gpu_absence.has_no_gpu(bundle)


def test_a_new_driver_or_module_ends_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path, "vulkan")
    monkeypatch.setattr(vulkan, "read_driver_stamp", lambda: "none")
    save(bundle, 0, "refused")
    assert gpu_absence.has_no_gpu(bundle)
    monkeypatch.setattr(vulkan, "read_driver_stamp", lambda: "a driver")
    assert not gpu_absence.has_no_gpu(bundle)
    monkeypatch.setattr(vulkan, "read_driver_stamp", lambda: "none")
    (tmp_path / "libggml-vulkan.so").write_bytes(b"a new build")
    assert not gpu_absence.has_no_gpu(bundle)


@pytest.fixture
def forbid_children_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every start of a process and every load of a library fail."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"started or opened {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(ctypes, "CDLL", refuse)


@pytest.mark.parametrize("demand", [ALL, Demand(types=(2, 3), n_bytes=1 << 30)])
def test_refused_module_costs_no_process_and_no_library(
    demand: Demand, tmp_path: Path, forbid_children_and_libraries: None
) -> None:
    """A machine without Vulkan starts as fast with the package: the saved verdict is read, and nothing else happens."""
    bundle = make_bundle(tmp_path, "vulkan")
    cpu_module = BackendModule("cpu-x64", str(tmp_path / "libggml-cpu-x64.so"))
    with pytest.raises(AssertionError, match="started or opened"):  # the first start tests the module
        gpu_probe.check_gpu_modules(bundle, cpu_module, demand=demand)
    save(bundle, 0, "refused")
    [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, cpu_module, demand=demand)
    assert verdict.status == "refused"
    assert gpu_absence.has_no_gpu(bundle)


def test_start_without_a_model_looks_for_no_gpu() -> None:
    code = """
import sys
from edgechat.cli import main
sys.argv = ["edgechat", "--version"]
try:
    main.main()
finally:
    print([name for name in sys.modules if name.startswith(("edgechat.hardware", "edgechat.runtime.backends"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
