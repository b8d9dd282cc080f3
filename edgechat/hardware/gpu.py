"""GPU properties that a backend reports, and detection of NVIDIA driver problems."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

_NVIDIA_SMI_TIMEOUT_S: Final = 3.0
_DRIVER_VERSION: Final = Path("/proc/driver/nvidia/version")


class TypeRates(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of one type that a GPU and the CPU multiply per second, counted once per batch; 0.0 if unknown."""

    type_id: int
    """Weight type, as ggml's number."""
    decode: float
    """Rate of the GPU with one column."""
    prefill: float
    """Rate of the GPU with `PREFILL_COLUMNS` columns."""
    cpu_decode: float
    cpu_prefill: float
    cpu_plain_decode: float = 0.0
    """Rate of the CPU with one column and weights in the layout of the file, which a GPU can read."""

    @property
    def is_complete(self) -> bool:
        """True if the rates of the GPU and of the CPU are known."""
        return min(self.decode, self.prefill, self.cpu_decode, self.cpu_prefill) > 0


PREFILL_COLUMNS: Final = 256
"""Number of columns in the products that measure prefill."""


class GpuSpeeds(msgspec.Struct, frozen=True, kw_only=True):
    """Speeds of a GPU that were measured on this machine, together with those of the CPU."""

    rates: tuple[TypeRates, ...] = ()
    """Rates of the weight types that were measured."""
    copied_bytes_per_s: float = 0.0
    """Speed at which weights in CPU memory are copied to the GPU, in bytes per second; 0.0 if unknown."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of a GPU, as a backend reports them."""

    name: str
    total_bytes: int
    free_bytes: int
    is_unified: bool = False
    """True if the GPU shares the machine's memory (Apple, Jetson), so that plans count the memory only once."""
    read_bytes_per_s: float = msgspec.field(default=0.0, name="read_bps")
    """Memory bandwidth in bytes per second; 0.0 if unknown."""
    prefill_weights_per_s: float = 0.0
    """Number of weights multiplied per second in prefill, counted once per token; 0.0 if unknown."""
    speeds: GpuSpeeds = GpuSpeeds()
    module: str = ""
    """Path of the module that computes on the GPU; "" if it is unknown."""
    device: str = ""
    """Name in llama.cpp, such as `Vulkan0`; "" if it is unknown."""


def find_gpu_problem() -> str:
    """Return a message if an installed NVIDIA driver is unused or broken; "" without a problem or without a driver."""
    if sys.platform == "linux" and not _DRIVER_VERSION.exists():
        return ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_NVIDIA_SMI_TIMEOUT_S)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.SubprocessError) as error:
        return f"The NVIDIA driver does not respond: {error}"
    return describe_nvidia_problem(result.returncode, result.stdout, result.stderr)


def read_driver_version() -> str:
    """Return the version line of the loaded NVIDIA kernel module; "" if none is loaded."""
    try:
        return _DRIVER_VERSION.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""


def describe_nvidia_problem(exit_code: int, output: str, errors: str) -> str:
    """Return the message that tells the user why no CUDA backend works, from the result of nvidia-smi."""
    lines = (output or errors).strip().splitlines()
    if exit_code == 0 and lines:
        return f"{lines[0].strip()}: no CUDA backend of this build works with this GPU, so edgechat uses the CPU"
    reason = lines[0].strip() if lines else f"nvidia-smi exited with code {exit_code}"
    if "mismatch" in reason.lower():  # the driver was updated, but the kernel still uses the old driver
        reason += "; restart the machine to load the new driver"
    return f"The NVIDIA driver does not work: {reason}"
