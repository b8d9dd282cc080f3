"""Write a model in several quants for benchmarks."""

from __future__ import annotations

import subprocess
from pathlib import Path

from edgechat import process
from edgechat.errors import EngineError
from edgechat.planner.requantize import PRESETS, preset_number


def write_quants(source: Path, directory: Path, presets: tuple[str, ...] = PRESETS) -> list[Path]:
    """Write the model in each preset, without an importance matrix. Raises EngineError if one fails."""
    files = []
    for quant in presets:
        target = directory / f"{source.stem.split('.')[0]}.{quant}.gguf"
        arguments = process.command_line("_quantise", str(source), str(target), str(preset_number(quant)))
        done = subprocess.run(arguments, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0 or not target.exists():
            message = done.stderr.decode("utf-8", "replace").strip()[-300:]
            raise EngineError(f"Cannot quantise {source} to {quant}: {message}")
        files.append(target)
    return files
