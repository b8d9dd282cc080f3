"""One model in several quants, for measurements."""

from __future__ import annotations

import subprocess
from pathlib import Path

from edgechat import process
from edgechat.errors import EngineError
from edgechat.planner.requantize import PRESETS, preset_number


def write_ladder(source: Path, directory: Path, presets: tuple[str, ...] = PRESETS) -> list[Path]:
    """Write the model in each preset, without statistics of use. Raises EngineError if one fails."""
    made = []
    for quant in presets:
        target = directory / f"{source.stem.split('.')[0]}.{quant}.gguf"
        arguments = process.command("_quantise", str(source), str(target), str(preset_number(quant)))
        done = subprocess.run(arguments, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0 or not target.exists():
            words = done.stderr.decode("utf-8", "replace").strip()[-300:]
            raise EngineError(f"{source} could not be written as {quant}: {words}")
        made.append(target)
    return made
