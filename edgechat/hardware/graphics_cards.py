"""GPUs that the kernel lists, whether or not anything can compute on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from edgechat.hardware.gpu import read_driver_version

_CARDS_DIR: Final = Path("/sys/class/drm")
_VENDORS: Final = {"8086": "Intel", "1002": "AMD", "10DE": "NVIDIA"}
# Kernel drivers of GPUs on Arm boards, which are no PCI devices. Others are display controllers.
_BOARD_DRIVERS: Final = {
    "panfrost": "Arm Mali", "panthor": "Arm Mali", "lima": "Arm Mali", "v3d": "Broadcom VideoCore",
    "msm": "Qualcomm Adreno", "etnaviv": "Vivante", "asahi": "Apple", "tegra": "NVIDIA", "nvgpu": "NVIDIA",
}  # fmt: skip


def list_graphics_cards() -> list[str]:
    """Return maker and kernel driver of each GPU, such as `Intel (i915)`; on Linux only.

    Cards of virtual machines and of remote consoles are left out, because they cannot compute.
    """
    if sys.platform != "linux":
        return []
    cards = []
    for path in sorted(_CARDS_DIR.glob("card[0-9]*/device/uevent")):
        try:
            lines = path.read_text("ascii", "replace").splitlines()
        except OSError:
            continue
        values = dict(line.partition("=")[::2] for line in lines)
        driver = values.get("DRIVER", "")
        maker = _VENDORS.get(values.get("PCI_ID", "").partition(":")[0].upper()) or _BOARD_DRIVERS.get(driver)
        if maker:
            cards.append(f"{maker} ({driver})" if driver else maker)
    if read_driver_version() and not any(card.startswith("NVIDIA") for card in cards):
        cards.append("NVIDIA (nvidia)")
    return list(dict.fromkeys(cards))
