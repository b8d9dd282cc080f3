"""Benchmark of KV cache types and of YaRN: divergence of the predictions, and retrieval of hidden numbers.

The measurements run in a child process (`kv_measure`), because a client never loads llama.cpp.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import process
from edgechat.bench.kv_report import N_NEEDLES, KvCaseOptions, KvFailure, KvProgress, KvReport, KvWorkload
from edgechat.errors import EngineError, UsageError
from edgechat.hardware.cpu import count_usable_threads
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.kv_types import KV_TYPES, list_kv_types
from edgechat.planner.load_variants import compute_yarn_factor

_DEPTHS: Final = (2048, 8192)
# Batch size of the case that shows how much different rounding changes the results without quantisation. With this
# size, attention is computed without tiles, as with quantised keys.
_SMALL_BATCH: Final = 32
# Default depth of YaRN measurements relative to the training length.
_YARN_DEPTH_FACTOR: Final = 4


def make_workload(
    model: Path, n_threads: int | None, kv_types: list[str], depths: list[int], *, with_yarn: bool = False
) -> KvWorkload:
    """Return the workload for a model file. Empty `kv_types` and `depths` select the defaults.

    Raises ModelFileError, and UsageError for a type, a depth or a scaling that the model does not support.
    """
    profile = ModelProfile.from_header(read_header(model))
    n_threads = n_threads or count_usable_threads()
    if with_yarn:
        return _make_yarn_workload(profile, n_threads, depths)
    depths = sorted(depths) or [depth for depth in _DEPTHS if depth <= (profile.n_ctx_train or depth)]
    if profile.n_ctx_train and (not depths or depths[-1] > profile.n_ctx_train):
        raise UsageError(
            f"{model} was trained with {profile.n_ctx_train} tokens. Choose a smaller --depth, or add --yarn."
        )
    supported_types = list_kv_types(profile)
    for kv_type in kv_types:
        if kv_type not in supported_types:
            raise UsageError(f"{model} supports only these types: {', '.join(supported_types)}.")
    chosen_types = [kv_type for kv_type in KV_TYPES if kv_type in (kv_types or supported_types)]
    cases = [
        KvCaseOptions(),
        KvCaseOptions(n_ubatch=_SMALL_BATCH),
        *(KvCaseOptions(kv_type=kv_type) for kv_type in chosen_types if kv_type != "f16"),
    ]
    return KvWorkload(model=str(model), n_threads=n_threads, depths=depths, cases=cases)


def _make_yarn_workload(profile: ModelProfile, n_threads: int, depths: list[int]) -> KvWorkload:
    depths = sorted(depths) or [_YARN_DEPTH_FACTOR * profile.n_ctx_train]
    factor = compute_yarn_factor(profile, depths[-1])
    if factor == 1.0:
        raise UsageError(
            f"YaRN cannot extend {profile.path} to {depths[-1]} tokens: it was trained with {profile.n_ctx_train}, and "
            f"{'needs no extension' if profile.supports_yarn else 'its architecture or header does not allow YaRN'}."
        )
    return KvWorkload(
        model=profile.path,
        n_threads=n_threads,
        depths=depths,
        cases=[KvCaseOptions(), KvCaseOptions(yarn_factor=factor)],
    )


def run(workload: KvWorkload, on_progress: Callable[[str], None] = lambda text: None) -> KvReport:
    """Measure all cases of a workload in a child process. Raises EngineError if it fails."""
    with subprocess.Popen(
        process.make_command_line("_kv"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        if child.stdin is None or child.stdout is None:
            raise EngineError("The benchmark process started without pipes. Run the benchmark again.")
        try:
            child.stdin.write(msgspec.json.encode(workload) + b"\n")
            child.stdin.flush()  # the pipe stays open, because the child ends when it is closed
            decoder = msgspec.json.Decoder(KvProgress | KvReport | KvFailure)
            for line in child.stdout:
                message = decoder.decode(line)
                if isinstance(message, KvReport):
                    return message
                if isinstance(message, KvFailure):
                    raise EngineError(message.reason)
                on_progress(message.text)
        finally:
            child.kill()
    raise EngineError(f"The benchmark process ended early (exit code {child.returncode}). Free memory and try again.")


def format_table(report: KvReport) -> str:
    """Format the report as a table; CPU times are relative to the first case."""
    lines = [
        f"{Path(report.workload.model).name}, {report.backend}, {report.workload.n_threads} threads",
        "",
        "| keys and values | tokens | KL divergence | same token | numbers found | CPU time of prefill |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for case in report.cases:
        lines += [
            f"| {case.options.title} | {result.depth} | {result.divergence:.5f} | {result.agreement:.1%} "
            f"| {result.n_found_needles} of {N_NEEDLES} | {result.prefill_cpu_s / reference.prefill_cpu_s:.2f} |"
            for result, reference in zip(case.depths, report.cases[0].depths, strict=True)
        ]
    return "\n".join(lines)
