"""What the tests of artefacts need of a machine."""

from __future__ import annotations

import shutil
import subprocess


def can_cut_off() -> bool:
    """True if processes can be started without a network and with mounts of their own."""
    unshare = shutil.which("unshare")
    return (
        unshare is not None
        and subprocess.run([unshare, "-n", "-m", "true"], capture_output=True, check=False).returncode == 0
    )
