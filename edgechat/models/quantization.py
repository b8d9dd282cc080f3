"""Quantise a model file on this machine, in a child process that can be cancelled at any time."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgechat import paths, process
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError, ModelFileError, UsageError, format_reason
from edgechat.humanize import format_size
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import read_header
from edgechat.planner import requantize
from edgechat.terminal import escape_controls

MAX_BUFFER_BYTES: Final = 256 << 20
"""Maximum size, in bytes, of the tensor rows that llama.cpp holds in memory at once."""
# Line of llama.cpp's log before each tensor, such as `[  12/ 272]  blk.0.attn_k.weight - [ 576, 192, 1, 1], ...`.
_TENSOR_LINE: Final = re.compile(rb"\[ *(\d+)/ *(\d+)\] ")
# Suffix of incomplete files, unlike that of incomplete downloads (.part), which can be resumed.
_INCOMPLETE_SUFFIX: Final = ".quantizing"
# Age in seconds at which an incomplete file is deleted. A running process keeps writing to its file, so an older one
# was left behind by a killed process.
_MAX_PART_AGE_S: Final = 3600.0
_MAX_ERROR_CHARS: Final = 300
# Disk space that a quantisation must leave free, in bytes.
_SPARE_DISK_BYTES: Final = 64 << 20
# Minimum bits per weight of a source whose result is as good as one from full precision. Q8_0 has 8.5 bits.
_MIN_GOOD_SOURCE_BITS: Final = 8.0


class Quantization:
    """Quantisation of one model file to another quant."""

    def __init__(self, engine: EngineClient, source: Path, quant: str) -> None:
        """Read the header of `source`, and compute the size of the new file by llama.cpp's rules.

        Raises UsageError for an unknown quant or the quant of `source`, ModelFileError if the file is damaged or
        llama.cpp cannot quantise its architecture.
        """
        self.source = source
        self.quant = quant.upper()
        if self.quant not in requantize.PRESETS:
            raise UsageError(f"Cannot quantise to {quant!r}. Available quants: {', '.join(requantize.PRESETS)}.")
        self.header: ModelHeader = read_header(source)
        if self.header.quant == self.quant:
            raise UsageError(f"{source.name} is already in {self.quant}.")
        tensor_types = engine.list_quant_types(
            requantize.make_quant_model(self.header), requantize.find_preset_number(self.quant)
        )
        if not tensor_types:
            raise ModelFileError(f"{source}: llama.cpp cannot quantise this model ({self.header.architecture}).")
        self.target_bytes = requantize.make_requantized_header(self.header, self.quant, tensor_types).file_bytes
        """Size of the new file in bytes."""

    @property
    def default_target(self) -> Path:
        """Default path of the new file, in the folder of downloaded models: the source's name with the new quant."""
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", self.source.stem)
        stem = re.sub(rf"[.-]{re.escape(self.header.quant)}$", "", stem, flags=re.IGNORECASE)
        return paths.models_dir() / "quantized" / f"{stem}.{self.quant}.gguf"

    @property
    def quality_note(self) -> str:
        """Sentence about the quality of the new file, which depends on the precision of the source."""
        bits_per_weight = 8 * self.header.tensor_bytes / max(1, self.header.n_params)
        if self.target_bytes > self.header.file_bytes:
            return f"{self.quant} is larger than {self.header.quant} and no better: lost precision does not return."
        if bits_per_weight >= _MIN_GOOD_SOURCE_BITS:
            return f"From {self.header.quant} the result is as good as a download without an importance matrix."
        return f"From {self.header.quant} the result is worse than a download of {self.quant}: both losses add up."

    def run(
        self, target: Path, on_progress: Callable[[int, int], object], cancellation: Cancellation | None = None,
        *, max_buffer_bytes: int = MAX_BUFFER_BYTES,
    ) -> None:  # fmt: skip
        """Quantise the source into the file `target`, which has a temporary name until it is complete.

        `on_progress` receives the number of the current tensor and the total number of tensors. Raises UsageError if
        `target` exists, cannot be written or has too little space on its disk, RequestCancelledError, and EngineError
        if llama.cpp fails.
        """
        if os.path.lexists(target):
            raise UsageError(f"{target} exists. Delete it first, or choose another file with -o.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            free_bytes = paths.free_bytes(target.parent)
            _delete_old_parts(target.parent)
        except OSError as error:
            raise UsageError(f"Cannot write {target}: {format_reason(error)}.") from error
        if self.target_bytes + _SPARE_DISK_BYTES > free_bytes:
            raise UsageError(
                f"{target.name} needs {format_size(self.target_bytes)}, but {target.parent} has only "
                f"{format_size(free_bytes)} free. Delete some files, or choose another folder with -o."
            )
        part = target.with_name(f"{target.name}.{os.getpid()}{_INCOMPLETE_SUFFIX}")
        cancellation = cancellation or Cancellation()
        try:
            self._run_child(part, on_progress, cancellation, max_buffer_bytes)
            self._check_result(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _run_child(
        self, part: Path, on_progress: Callable[[int, int], object], cancellation: Cancellation, max_buffer_bytes: int
    ) -> None:
        command = process.make_command_line(
            "_quantise", str(self.source), str(part), str(requantize.find_preset_number(self.quant)),
            str(max_buffer_bytes),
        )  # fmt: skip
        lines: list[bytes] = []
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as child:  # fmt: skip
            try:
                with cancellation.call_on_cancel(child.kill):
                    for line in child.stderr or ():
                        match = _TENSOR_LINE.search(line)
                        if match:
                            on_progress(int(match[1]), int(match[2]))
                        else:
                            lines = [*lines[-9:], line]
                    child.wait()
            finally:
                child.kill()
        cancellation.check()
        if child.returncode != 0:
            message = b"".join(lines).decode("utf-8", "replace").strip()[-_MAX_ERROR_CHARS:]
            raise EngineError(
                f"Cannot quantise {self.source} to {self.quant} (exit code {child.returncode}): "
                f"{escape_controls(message)}"
            )

    def _check_result(self, part: Path) -> None:
        """Raise EngineError if the new file is incomplete: llama.cpp does not check what it writes."""
        try:
            n_tensors = len(read_gguf_header(part).tensors)
        except ModelFileError as error:
            raise EngineError(f"llama.cpp wrote a damaged file, which was deleted: {error}") from error
        if n_tensors != len(self.header.tensors):
            raise EngineError(f"llama.cpp wrote {n_tensors} of {len(self.header.tensors)} tensors. Try again.")


def _delete_old_parts(folder: Path) -> None:
    """Delete the incomplete files that killed processes have left behind in `folder`."""
    for part in folder.glob(f"*.gguf.*{_INCOMPLETE_SUFFIX}"):
        if time.time() - part.stat().st_mtime > _MAX_PART_AGE_S:
            part.unlink(missing_ok=True)
