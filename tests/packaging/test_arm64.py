# ruff: noqa: T201  (prints the results of each board)
"""Emulated Arm boards: the bundle installs, tests and selects a module, and generates a reply.

The emulator executes the instructions of a CPU without its speed. `make test-arm64` prints the results of each board.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.conftest import copied, debian, inside, lacks, recipe, toolchain

REGISTERED = Path("/proc/sys/fs/binfmt_misc")
HOME = "/home/pi"
FOR_ARM = {"EDGECHAT_TARGET": "aarch64", "EDGECHAT_CPU_VARIANTS": "all"}


def cannot_run() -> str:
    """Return the reason why programs for arm64 cannot run here, or ""."""
    try:
        toolchain.cross_compilers("aarch64")
    except toolchain.BuildError as error:
        return str(error)
    return lacks("debootstrap", "unshare", "chroot", "qemu-aarch64-static", "update-binfmts")


LACKS = cannot_run()
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(LACKS), reason=LACKS)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An arm64 Debian system with the unpacked offline bundle."""
    if not (REGISTERED / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", REGISTERED], capture_output=True, check=False)
    subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], capture_output=True, check=False)
    if not (REGISTERED / "qemu-aarch64").exists():
        pytest.skip("the kernel does not start qemu-aarch64 (binfmt_misc)")
    folder = tmp_path_factory.mktemp("arm64")
    recipe("offline.py", "--python", "3.11", folder, **FOR_ARM)
    (archive,) = folder.glob("edgechat-*-linux-aarch64.tar.gz")
    for root in copied(debian("arm64"), folder):
        home = root / HOME.lstrip("/")
        home.mkdir(parents=True)
        subprocess.run(["tar", "-xf", archive, "-C", home], check=True)
        yield root


def as_user(root: Path, cpu: str, *command: str) -> subprocess.CompletedProcess[str]:
    # Separate data directories: the emulator describes every processor alike, so cached verdicts would be reused.
    return inside(root, *command, timeout_s=900, HOME=HOME, QEMU_CPU=cpu, EDGECHAT_HOME=f"{HOME}/{cpu}")


@pytest.fixture(scope="module")
def installed(system: Path) -> Path:
    """The system after `install.sh` ran on the smallest board."""
    (script,) = system.glob("home/pi/edgechat-*/install.sh")
    started = time.monotonic()
    done = as_user(system, "cortex-a72", "sh", f"/{script.relative_to(system)}")
    assert done.returncode == 0, done.stderr
    print(f"\ncortex-a72: {done.stdout.splitlines()[0]} ({time.monotonic() - started:.0f} s, emulated)")
    return system


@pytest.mark.parametrize(
    ("cpu", "module", "statuses"),
    [
        # Raspberry Pi 4: no dot product.
        ("cortex-a72", "cpu-armv8.0_1", ["refused"] * 5 + ["passed"]),
        # Raspberry Pi 5, and the Orins: no SVE.
        ("cortex-a76", "cpu-armv8.2_2", ["refused"] * 3 + ["passed"] * 3),
        # ARMv9 with 128-bit vectors, like all current processors: SVE2 and int8 matrix products.
        ("max,sve-default-vector-length=16", "cpu-armv8.6_2", ["passed"] * 6),
        # int8 matrix products with 512-bit vectors: the kernels compute wrong results, and the self-test finds them.
        # No processor on the market has this combination.
        ("max", "cpu-armv8.2_3", ["wrong"] * 2 + ["passed"] * 4),
    ],
)
def test_board_selects_its_module_and_generates_a_reply(
    installed: Path, cpu: str, module: str, statuses: list[str]
) -> None:
    command = f"{HOME}/.local/bin/edgechat"
    answer = as_user(
        installed, cpu, command, "ask", "-m", "starter", "--max-tokens", "8", "--temperature", "0", "--json",
        "What is gravity?",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    reply: dict[str, Any] = json.loads(answer.stdout)
    doctor = as_user(installed, cpu, command, "doctor", "--json")
    backends = json.loads(doctor.stdout)["backends"]
    for verdict in backends:
        print(f"{cpu}: {verdict['module']:<16} {verdict['status']:<8} {verdict['reason']}")
    print(
        f"{cpu}: {reply['backend']} answers {reply['text']!r} at {reply['stats']['decode_tps']:.1f} tokens/s, emulated"
    )
    assert reply["text"].startswith("Gravity")
    assert reply["backend"] == module
    assert [verdict["status"] for verdict in backends] == statuses


def test_debian_package_configures_and_generates_a_reply(system: Path, tmp_path: Path) -> None:
    recipe("deb.py", "--python", "3.11", tmp_path, **FOR_ARM)
    (deb,) = tmp_path.glob("edgechat_*_arm64.deb")
    shutil.copy(deb, system / "edgechat.deb")
    done = inside(system, "dpkg", "-i", "/edgechat.deb", timeout_s=900, QEMU_CPU="cortex-a76")
    assert done.returncode == 0, done.stderr
    answer = as_user(
        system, "cortex-a76", "edgechat", "ask", "--max-tokens", "4", "--temperature", "0", "What is gravity?"
    )
    assert answer.stdout.startswith("Gravity"), answer.stderr
    print(f"cortex-a76: {deb.name} is configured, and answers {answer.stdout.strip()!r}")
