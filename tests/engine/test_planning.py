"""The planner against llama.cpp: buffer sizes, quantisation types, and measured memory use."""

from __future__ import annotations

import contextlib
import itertools
import threading
from pathlib import Path

import msgspec
import psutil
import pytest

from edgechat.engine import protocol
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError, ModelFileError
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models import selection
from edgechat.models.quantization import Quantization
from edgechat.planner import requantize
from edgechat.planner.kv_types import list_kv_types
from edgechat.planner.load_plan import make_manual_plan
from edgechat.planner.load_variants import default_n_seqs
from edgechat.planner.memory import LoadOptions, MemoryEstimate, convert_reported_buffers, estimate
from edgechat.planner.quant_advice import find_faster_quants
from edgechat.planner.throughput import KernelSpeeds
from edgechat.runtime.backends import kernel_benchmark
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.probe import choose_module
from tests.layered_models import write_wide_llama
from tests.models import KINDS, Kind, write_tiny
from tests.waiting import has_ended, until


def read_profile(path: Path) -> ModelProfile:
    return ModelProfile.from_header(read_header(path))


def exact_memory(path: Path, options: LoadOptions, report: dict[str, dict[str, int]]) -> MemoryEstimate:
    profile = read_profile(path)
    return estimate(profile, options, convert_reported_buffers(profile, options, report))


def load_options(path: Path, **changes: object) -> LoadOptions:
    fields = {"n_ctx": 1024, "n_seqs": default_n_seqs(read_profile(path))} | changes
    return LoadOptions(**fields)  # type: ignore[arg-type]


def probe_memory(engine: EngineClient, path: Path, options: LoadOptions) -> dict[str, dict[str, int]]:
    return engine.probe_memory(protocol.ProbeMemory(id=engine.next_id(), model_path=str(path), options=options)).memory


@pytest.mark.parametrize("kind", [*KINDS, "starter"])
def test_sizes_measured_without_weights_equal_those_of_a_loaded_model(
    empty_engine: EngineClient, tmp_path: Path, kind: Kind, starter: Path
) -> None:
    path = starter if kind == "starter" else write_tiny(tmp_path / "m.gguf", kind)  # type: ignore[comparison-overlap]
    # The heads of the tiny models are too short for quantised keys and values.
    for kv_type in list_kv_types(read_profile(path)):
        options = load_options(path, kv_type=kv_type, use_mmap=False)
        probed = probe_memory(empty_engine, path, options)
        plan = make_manual_plan(str(path), n_threads=1, speculation=False, **msgspec.structs.asdict(options))
        empty_engine.load(protocol.Load(id=empty_engine.next_id(), plan=plan))
        assert empty_engine.stats().memory == probed
        exact, formula = exact_memory(path, options, probed), estimate(read_profile(path), options)
        assert exact.kv_cache == formula.kv_cache
        # The formulas do not know which types this backend repacks.
        exact_bytes = exact.weights + exact.repacked_weights
        estimated_bytes = formula.weights + formula.repacked_weights
        if path == starter and "AMX" in probed:  # adds four bytes to each block of the output matrix, in Q8_0
            matrix = next(t for t in read_profile(path).tensors if t.name == "token_embd.weight")
            estimated_bytes += matrix.size_bytes // 34 * 4
        assert exact_bytes <= estimated_bytes * 1.02
        assert estimated_bytes <= exact_bytes * 1.35


def test_file_with_only_a_header_has_the_same_sizes(empty_engine: EngineClient, starter: Path, tmp_path: Path) -> None:
    header = read_header(starter)
    sparse = tmp_path / "header.gguf"
    with starter.open("rb") as whole, sparse.open("wb") as copy:
        copy.write(whole.read(header.data_offset))
        copy.truncate(header.file_bytes)
    sizes = [probe_memory(empty_engine, path, load_options(starter)) for path in (starter, sparse)]
    with pytest.raises(ModelFileError):
        probe_memory(empty_engine, tmp_path / "none.gguf", load_options(starter))
    assert sizes[0] == sizes[1]


def write_quants(engine: EngineClient, source: Path, directory: Path, quants: tuple[str, ...]) -> list[Path]:
    """Quantise `source` to each quant, and return the paths of the files."""
    paths = [directory / f"{source.stem}.{quant}.gguf" for quant in quants]
    for quant, path in zip(quants, paths, strict=True):
        Quantization(engine, source, quant).run(path, lambda _number, _count: None)
    return paths


# K-quants fall back to other types for rows of 192 values.
@pytest.mark.parametrize("n_embd", [256, 192])
def test_sizes_of_other_quants_are_computed_from_one_header(
    empty_engine: EngineClient, tmp_path: Path, n_embd: int
) -> None:
    source = write_wide_llama(tmp_path / "wide.gguf", n_embd=n_embd, has_output=n_embd == 256)
    header = read_header(source)
    for path in write_quants(empty_engine, source, tmp_path, ("Q2_K", "Q4_K_M", "Q8_0")):
        real = read_header(path)
        preset = requantize.find_preset_number(real.quant)
        types = empty_engine.list_quant_types(requantize.make_quant_model(header), preset)
        computed = requantize.make_requantized_header(header, real.quant, types)
        assert {t.name: (t.type, t.size_bytes) for t in computed.tensors} == {
            t.name: (t.type, t.size_bytes) for t in real.tensors
        }
        assert computed.quant == real.quant
        assert path.name == f"wide.{real.quant}.gguf"


def test_quant_types_of_an_unknown_architecture_do_not_end_the_engine(
    empty_engine: EngineClient, starter: Path
) -> None:
    pid = empty_engine.pid
    quant_model = requantize.make_quant_model(read_header(starter))
    nonsense = msgspec.structs.replace(quant_model, architecture="flux-capacitor", n_layer=0)
    assert empty_engine.list_quant_types(nonsense, 15) == []
    odd = msgspec.structs.replace(quant_model, architecture="flux-capacitor")
    assert isinstance(empty_engine.list_quant_types(odd, 15), list)
    assert empty_engine.list_quant_types(quant_model, 15)
    assert empty_engine.pid == pid


def test_kernel_speeds_are_measured_once_and_cover_common_types(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine, the benchmark would run several times, which the unit tests check.
    monkeypatch.setattr(kernel_benchmark, "_MAX_FULL_RUNS", 1)
    monkeypatch.setattr(kernel_benchmark, "_MAX_QUICK_RUNS", 1)
    monkeypatch.setattr(kernel_benchmark, "_TIMEOUT_S", 3600.0)
    progress: list[str] = []
    engine = EngineClient()
    try:
        assert engine.list_devices(benchmark=False).speeds is None
        speeds = kernel_benchmark.measure_speeds(find_bundle(), choose_module(find_bundle())[0], progress.append)
        saved = engine.list_devices(benchmark=False).speeds
    finally:
        engine.close()
    assert speeds is not None
    assert speeds == saved == kernel_benchmark.load_speeds(find_bundle(), choose_module(find_bundle())[0])
    assert any("Measuring" in line for line in progress)
    rates = [speeds.product_rates[name] for name in ("F16", "Q4_0", "Q4_K", "Q6_K", "Q8_0")]
    assert all(r[size] > 0 for r in rates for size in (1, 32))
    assert speeds.attention_rates["f16"][1] > 0
    assert 1 <= speeds.n_decode_threads <= speeds.max_n_threads
    assert 1 <= speeds.n_prefill_threads <= speeds.max_n_threads
    assert speeds.read_bytes_per_s > 0


def test_cancelled_kernel_benchmark_leaves_no_process_behind() -> None:
    cancellation, progress = Cancellation(), list[str]()
    benchmarks: list[psutil.Process] = []

    def suspend_benchmark() -> bool:
        """Stop the benchmark, so that it cannot end before it is cancelled; return whether it is running."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process().children(recursive=True):
                if "_speeds" in child.cmdline():
                    child.suspend()
                    benchmarks.append(child)
                    return True
        return False

    thread = threading.Thread(target=selection.measure_speeds, args=[cancellation, progress.append])
    thread.start()
    try:
        until(suspend_benchmark)
        until(lambda: any("Measuring the speed" in line for line in progress))
    finally:
        cancellation.cancel()
        thread.join()
    with contextlib.suppress(psutil.NoSuchProcess):
        benchmarks[0].resume()
    until(lambda: has_ended(benchmarks[0]))
    assert kernel_benchmark.load_speeds(find_bundle(), choose_module(find_bundle())[0]) is None


def test_failed_kernel_benchmark_has_no_result() -> None:
    broken = msgspec.structs.replace(choose_module(find_bundle())[0], path="/nowhere/libggml-cpu-x.so")
    assert kernel_benchmark.measure_speeds(find_bundle(), broken) is None


def test_unloadable_files_are_errors_and_the_engine_continues(
    empty_engine: EngineClient, tmp_path: Path, starter: Path
) -> None:
    data, pid = starter.read_bytes()[: 1 << 20], empty_engine.pid
    for number, size in enumerate((10, 5000, 1 << 20)):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(data[:size])
        with pytest.raises(EdgechatError):
            probe_memory(empty_engine, path, load_options(starter))
    assert probe_memory(empty_engine, starter, load_options(starter))
    assert empty_engine.pid == pid


def test_longer_contexts_take_more_memory(empty_engine: EngineClient, starter: Path) -> None:
    totals = [
        exact_memory(starter, options, probe_memory(empty_engine, starter, options)).total
        for options in (load_options(starter, n_ctx=n) for n in (512, 2048, 8192))
    ]
    assert all(a < b for a, b in itertools.pairwise(totals))


def test_sizes_of_faster_quants_are_those_of_quantised_files(empty_engine: EngineClient, tmp_path: Path) -> None:
    source = write_wide_llama(tmp_path / "wide.gguf", n_embd=192, has_output=False)
    profile = read_profile(source)
    fast_rates = {name: {1: rate, 4: rate, 32: rate} for name, rate in (("F16", 1e9), ("Q8_0", 3e9), ("Q4_0", 9e9))}
    speeds = KernelSpeeds(backend="", n_threads=1, product_rates=fast_rates, operations_per_s=1e12)
    advice = find_faster_quants(profile, speeds, load_options(source))
    q8_0, q4_0 = write_quants(empty_engine, source, tmp_path, ("Q8_0", "Q4_0"))
    assert {a.quant: a.weight_bytes for a in advice} == {
        "Q8_0": read_profile(q8_0).tensor_bytes, "Q4_0": read_profile(q4_0).tensor_bytes
    }  # fmt: skip
