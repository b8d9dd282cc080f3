"""Write several quants of a model for benchmarks."""

from __future__ import annotations

import subprocess
from pathlib import Path

from edgechat import process
from edgechat.errors import EngineError
from edgechat.planner.requantize import PRESETS, find_preset_number


def write_quants(source: Path, directory: Path, presets: tuple[str, ...] = PRESETS) -> list[Path]:
    """Quantise the file `source` to each preset without an importance matrix, and return the paths of the quants.

    Raises EngineError if a quantisation fails.
    """
    files = []
    for quant in presets:
        target = directory / f"{source.stem.split('.')[0]}.{quant}.gguf"
        arguments = process.make_command_line("_quantise", str(source), str(target), str(find_preset_number(quant)))
        completed_process = subprocess.run(arguments, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        if completed_process.returncode != 0 or not target.exists():
            message = completed_process.stderr.decode("utf-8", "replace").strip()[-300:]
            raise EngineError(f"Cannot quantise {source} to {quant}: {message}")
        files.append(target)
    return files
