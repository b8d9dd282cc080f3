"""Write several quants of a model for benchmarks."""

from __future__ import annotations

from pathlib import Path

from edgechat.engine.client import EngineClient
from edgechat.models.quantization import Quantization
from edgechat.planner.requantize import PRESETS


def write_quants(source: Path, directory: Path, presets: tuple[str, ...] = PRESETS) -> list[Path]:
    """Quantise the file `source` to each preset without an importance matrix, and return the paths of the quants.

    Raises EdgechatError if a quantisation fails.
    """
    files = []
    engine = EngineClient()
    try:
        for quant in presets:
            target = directory / f"{source.stem.split('.')[0]}.{quant}.gguf"
            Quantization(engine, source, quant).run(target, lambda _number, _count: None)
            files.append(target)
    finally:
        engine.close()
    return files
