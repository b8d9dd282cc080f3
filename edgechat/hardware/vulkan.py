"""Vulkan drivers and devices of this machine.

`read_driver_stamp` only looks at files, so every process can call it. `list_physical_devices` runs the drivers, which
can crash, so only the self-test in a child process calls it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

# Directories in which a loader finds the manifests of drivers (Vulkan's loader, "Driver Discovery"), and directories of
# the loader itself.
_MANIFEST_DIRS: Final = ("/etc", "/usr/local/etc", "/usr/local/share", "/usr/share")
_LIBRARY_DIRS: Final = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64")
_LIBRARY_NAMES: Final = {"win32": ("vulkan-1.dll",), "darwin": ("libvulkan.1.dylib", "libMoltenVK.dylib")}
_VISIBLE_VARIABLE: Final = "GGML_VK_VISIBLE_DEVICES"
_CPU_DEVICES_VARIABLE: Final = "EDGECHAT_TEST_VULKAN_ON_CPU"
VARIABLES: Final = (
    "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES", "VK_LOADER_DRIVERS_SELECT",
    "VK_LOADER_DRIVERS_DISABLE", "VK_LOADER_DEVICE_SELECT", "MESA_VK_DEVICE_SELECT", "DRI_PRIME",
    _VISIBLE_VARIABLE,
    _CPU_DEVICES_VARIABLE,
)  # fmt: skip
"""Environment variables that change which devices the loader and llama.cpp list, or their order."""
_MAX_DEVICES: Final = 32
# Size that is larger than VkPhysicalDeviceProperties in any version (824 bytes).
_PROPERTIES_BYTES: Final = 4096
_STRUCTURE_TYPE_INSTANCE_CREATE_INFO: Final = 1

DeviceKind = Literal["discrete", "integrated", "virtual", "cpu", "other"]
_KINDS: Final[dict[int, DeviceKind]] = {1: "integrated", 2: "discrete", 3: "virtual", 4: "cpu"}


class PhysicalDevice(msgspec.Struct, frozen=True):
    """Device that a Vulkan driver offers."""

    name: str
    kind: DeviceKind
    driver: str
    """Vendor, device and version of the driver as numbers; their meaning depends on the vendor."""


class _InstanceCreateInfo(ctypes.Structure):
    """Structure VkInstanceCreateInfo without an application, layers or extensions."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("n_layers", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("n_extensions", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    )


class _DeviceProperties(ctypes.Structure):
    """First members of VkPhysicalDeviceProperties."""

    _fields_ = (
        ("api_version", ctypes.c_uint32),
        ("driver_version", ctypes.c_uint32),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("kind", ctypes.c_int32),
        ("name", ctypes.c_char * 256),
    )


def allows_cpu_devices() -> bool:
    """Return whether tests allow drivers that compute on the CPU, which are of no use to users."""
    return bool(os.environ.get(_CPU_DEVICES_VARIABLE))


def hide_cpu_devices(devices: list[PhysicalDevice] | None = None) -> bool:
    """Remove drivers that compute on the CPU from the devices that llama.cpp will list. Returns False if none is left.

    llama.cpp lists them only if `GGML_VK_VISIBLE_DEVICES` names them. `devices` defaults to `list_physical_devices()`,
    which is called only if that variable is set.
    """
    visible = os.environ.get(_VISIBLE_VARIABLE)
    if visible is None or allows_cpu_devices():
        return True
    devices = list_physical_devices() if devices is None else devices
    numbers = [int(word) for word in visible.replace(",", " ").split() if word.isdecimal()]
    kept = [number for number in numbers if number < len(devices) and devices[number].kind != "cpu"]
    os.environ[_VISIBLE_VARIABLE] = ",".join(map(str, kept))
    return bool(kept)


def read_driver_stamp() -> str:
    """Return a text that changes when a Vulkan driver, the loader or a GPU is added, removed or updated."""
    parts = [f"{name}={os.environ[name]}" for name in (*VARIABLES,) if os.environ.get(name)]
    parts += [platform.release(), platform.version()]
    if sys.platform == "linux":
        parts += [_read_stamp(path) for path in sorted({*_list_manifests(), *_list_libraries()})]
        for path in sorted(Path("/sys/class/drm").glob("card*/device/uevent")):
            parts.append(_read_text(path))
    return "\n".join(parts)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""


def _list_manifests() -> Iterator[Path]:
    for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"):
        for name in filter(None, os.environ.get(variable, "").split(os.pathsep)):
            path = Path(name)
            yield from path.glob("*.json") if path.is_dir() else (path,)
    user_dirs = [os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())]
    system_dirs = filter(None, os.environ.get("XDG_DATA_DIRS", "").split(os.pathsep))
    for directory in (*_MANIFEST_DIRS, *user_dirs, *system_dirs):
        yield from Path(directory, "vulkan", "icd.d").glob("*.json")


def _list_libraries() -> Iterator[Path]:
    """Yield the files of the loader, and of drivers with usual names, whose time changes with an update."""
    search_dirs = filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    # Each folder once: where /lib is a link to /usr/lib, listing a thousand libraries again would delay every start.
    for folder in dict.fromkeys(map(os.path.realpath, (*search_dirs, *_LIBRARY_DIRS))):
        names = _list_names(folder)
        for subfolder in (folder, *(f"{folder}/{name}" for name in names if "-linux-gnu" in name)):
            for name in names if subfolder == folder else _list_names(subfolder):
                if name.startswith("libvulkan") and ".so" in name:
                    yield Path(subfolder, name)


def _list_names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  (the fastest)
    except OSError:
        return []


def _read_stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return f"{path} missing"
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def list_physical_devices() -> list[PhysicalDevice]:
    """Return the devices that Vulkan lists, in its order; empty without a loader or driver. Runs the drivers."""
    names = _LIBRARY_NAMES.get(sys.platform, ("libvulkan.so.1",))
    loader = next(filter(None, map(_open_loader, names)), None)
    return [] if loader is None else _list_devices(loader)


def _open_loader(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _list_devices(loader: ctypes.CDLL) -> list[PhysicalDevice]:
    handle = ctypes.c_void_p
    loader.vkEnumeratePhysicalDevices.argtypes = [handle, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(handle)]
    loader.vkGetPhysicalDeviceProperties.argtypes = [handle, handle]
    loader.vkDestroyInstance.argtypes = [handle, handle]
    instance = handle()
    create_info = _InstanceCreateInfo(type=_STRUCTURE_TYPE_INSTANCE_CREATE_INFO)
    if loader.vkCreateInstance(ctypes.byref(create_info), None, ctypes.byref(instance)) != 0:
        return []
    count, handles = ctypes.c_uint32(_MAX_DEVICES), (handle * _MAX_DEVICES)()
    result = loader.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
    devices = []
    for device in handles[: count.value] if result >= 0 else ():
        memory = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        loader.vkGetPhysicalDeviceProperties(device, memory)
        properties = _DeviceProperties.from_buffer(memory)
        driver = f"{properties.vendor:04x}:{properties.device:04x} {properties.driver_version:#x}"
        name = properties.name.decode("utf-8", "replace")
        devices.append(PhysicalDevice(name, _KINDS.get(properties.kind, "other"), driver))
    loader.vkDestroyInstance(instance, None)
    return devices
