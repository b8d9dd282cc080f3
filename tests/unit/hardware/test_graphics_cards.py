"""GPUs that the kernel lists."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgechat.hardware import graphics_cards

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /sys")


def test_cards_are_named_by_maker_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = (
        "DRIVER=i915\nPCI_CLASS=30000\nPCI_ID=8086:9A49\n", "DRIVER=amdgpu\nPCI_ID=1002:744c\n",
        "DRIVER=virtio-pci\nPCI_ID=1AF4:1050\n", "DRIVER=ast\nPCI_ID=1A03:2000\n", "DRIVER=v3d\n", "\xff\n=\n",
    )  # fmt: skip
    for number, content in enumerate(contents):
        device = tmp_path / f"card{number}" / "device"
        device.mkdir(parents=True)
        (device / "uevent").write_bytes(content.encode("latin-1"))
    (tmp_path / "card9" / "device" / "uevent").mkdir(parents=True)
    monkeypatch.setattr(graphics_cards, "_CARDS_DIR", tmp_path)
    monkeypatch.setattr(graphics_cards, "read_driver_version", lambda: "")
    assert graphics_cards.list_graphics_cards() == ["Intel (i915)", "AMD (amdgpu)", "Broadcom VideoCore (v3d)"]
    monkeypatch.setattr(graphics_cards, "read_driver_version", lambda: "NVRM version: 550")
    assert graphics_cards.list_graphics_cards()[3:] == ["NVIDIA (nvidia)"]
    monkeypatch.setattr(graphics_cards, "_CARDS_DIR", tmp_path / "none")
    assert graphics_cards.list_graphics_cards() == ["NVIDIA (nvidia)"]
