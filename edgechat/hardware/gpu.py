"""GPUs that a backend reported, and problems of the NVIDIA driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

_NVIDIA_SMI_TIMEOUT_S: Final = 3.0
_DRIVER_VERSION: Final = Path("/proc/driver/nvidia/version")


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU as a backend reports it."""

    name: str
    total_bytes: int
    free_bytes: int
    is_unified: bool = False
    """True if it shares the machine's memory (Apple, Jetson), which is then counted once."""
    read_bps: float = 0.0
    """Memory bandwidth in bytes per second; 0.0 if unknown."""


def find_gpu_problem() -> str:
    """Return why an installed NVIDIA driver is unused or broken; "" without a problem or a driver."""
    if sys.platform == "linux" and not _DRIVER_VERSION.exists():
        return ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_NVIDIA_SMI_TIMEOUT_S)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.SubprocessError) as error:
        return f"The NVIDIA driver does not respond: {error}"
    return nvidia_problem(result.returncode, result.stdout, result.stderr)


def driver_version() -> str:
    """Return the version line of the loaded NVIDIA kernel module; "" if none is loaded."""
    try:
        return _DRIVER_VERSION.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""


def nvidia_problem(exit_code: int, output: str, errors: str) -> str:
    """Explain a result of nvidia-smi on a machine where no CUDA backend works."""
    lines = (output or errors).strip().splitlines()
    if exit_code == 0 and lines:
        return f"{lines[0].strip()}: no CUDA backend of this build works here, so the CPU is used"
    reason = lines[0].strip() if lines else f"nvidia-smi exited with code {exit_code}"
    if "mismatch" in reason.lower():  # the driver was updated, and the kernel still runs the old one
        reason += "; restart the machine to load the new driver"
    return f"The NVIDIA driver does not work: {reason}"
