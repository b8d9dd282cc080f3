"""Write random models of a few hundred megabytes, one per kind of KV memory: `python -m tests.large DIRECTORY`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgechat import process
from edgechat.planner.requantize import find_preset_number
from tests import models
from tests.models import Kind

_COMMON = {"N_EMBD": 1024, "N_HEAD": 16, "N_LAYER": 8, "N_FF": 3072, "N_WINDOW": 512, "D_INNER": 2048, "DT_RANK": 64}
_KINDS: dict[Kind, dict[str, int]] = {
    "sliding": {}, "moe": {"N_FF": 1024, "N_EXPERT": 8}, "mamba": {"N_LAYER": 16}, "hybrid": {},
}  # fmt: skip
_QUANT = "Q4_0"


def write(directory: Path) -> list[Path]:
    """Write a model of each kind in F32 and in Q4_0; return the paths."""
    written = []
    for kind, sizes in _KINDS.items():
        for name, value in (_COMMON | sizes).items():
            setattr(models, name, value)
        full = models.write_tiny(directory / f"{kind}.F32.gguf", kind, n_ctx=32768)
        small = directory / f"{kind}.{_QUANT}.gguf"
        arguments = process.make_command_line("_quantise", str(full), str(small), str(find_preset_number(_QUANT)))
        subprocess.run(arguments, check=True, capture_output=True)
        written += [full, small]
    return written


if __name__ == "__main__":
    write(Path(sys.argv[1]))
