"""Saved verdicts of machines without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.hardware import vulkan
from edgechat.runtime.backends import gpu_absence, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle
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
