"""Vulkan drivers: what identifies them, and which devices llama.cpp may list."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgechat.hardware import vulkan
from edgechat.hardware.vulkan import PhysicalDevice

CARD = PhysicalDevice("a card", "discrete", "1002:1 0x1")
CPU = PhysicalDevice("llvmpipe", "cpu", "10005:0 0x1")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*vulkan.VARIABLES, "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("visible", "left", "is_any_left"),
    [("0,1", "0", True), ("1 0", "0", True), ("1", "", False), ("7,x,-1", "", False), ("", "", False)],
)
def test_devices_that_are_the_cpu_are_hidden(
    visible: str, left: str, is_any_left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", visible)
    assert vulkan.hide_cpu_devices([CARD, CPU]) is is_any_left
    assert os.environ["GGML_VK_VISIBLE_DEVICES"] == left


def test_llama_cpp_chooses_the_devices_unless_the_user_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "list_physical_devices", lambda: pytest.fail("no driver may run"))
    assert vulkan.hide_cpu_devices()
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("EDGECHAT_TEST_VULKAN_ON_CPU", "1")
    assert vulkan.hide_cpu_devices()
    assert os.environ["GGML_VK_VISIBLE_DEVICES"] == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the files of Linux")
def test_stamp_changes_with_a_driver_its_update_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = [vulkan.read_driver_stamp()]
    assert vulkan.read_driver_stamp() == stamps[0]
    manifest = tmp_path / "data" / "vulkan" / "icd.d" / "some.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"ICD": {}}))
    stamps.append(vulkan.read_driver_stamp())
    manifest.write_text(json.dumps({"ICD": {"api_version": "1.3"}}))
    stamps.append(vulkan.read_driver_stamp())
    library = tmp_path / "lib" / "libvulkan_some.so"
    library.parent.mkdir()
    library.write_bytes(b"1")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    stamps.append(vulkan.read_driver_stamp())
    library.write_bytes(b"12")
    stamps.append(vulkan.read_driver_stamp())
    monkeypatch.setenv("VK_DRIVER_FILES", str(tmp_path / "none.json"))
    stamps.append(vulkan.read_driver_stamp())
    assert len(set(stamps)) == len(stamps)


def test_without_a_loader_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "_LIBRARY_NAMES", {sys.platform: ("libno-such-library.so",)})
    assert vulkan.list_physical_devices() == []
