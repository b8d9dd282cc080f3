"""The planner against llama.cpp: buffer sizes, quantisation types, and measured memory use."""

from __future__ import annotations

import contextlib
import itertools
import threading
from pathlib import Path

import msgspec
import psutil
import pytest

from edgechat.bench.quants import write_quants
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError, ModelFileError
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models import selection
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
from tests.models import KINDS, Kind, write_tiny
from tests.waiting import until


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
    tmp_path: Path, kind: Kind, starter: Path
) -> None:
    path = starter if kind == "starter" else write_tiny(tmp_path / "m.gguf", kind)  # type: ignore[comparison-overlap]
    engine = EngineClient()
    try:
        # The heads of the tiny models are too short for quantised keys and values.
        for kv_type in list_kv_types(read_profile(path)):
            options = load_options(path, kv_type=kv_type, use_mmap=False)
            probed = probe_memory(engine, path, options)
            plan = make_manual_plan(str(path), n_threads=1, speculation=False, **msgspec.structs.asdict(options))
            engine.load(protocol.Load(id=engine.next_id(), plan=plan))
            assert engine.stats().memory == probed
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
    finally:
        engine.close()


def test_file_with_only_a_header_has_the_same_sizes(starter: Path, tmp_path: Path) -> None:
    header = read_header(starter)
    sparse = tmp_path / "header.gguf"
    with starter.open("rb") as whole, sparse.open("wb") as copy:
        copy.write(whole.read(header.data_offset))
        copy.truncate(header.file_bytes)
    engine = EngineClient()
    try:
        sizes = [probe_memory(engine, path, load_options(starter)) for path in (starter, sparse)]
        with pytest.raises(ModelFileError):
            probe_memory(engine, tmp_path / "none.gguf", load_options(starter))
    finally:
        engine.close()
    assert sizes[0] == sizes[1]


def test_sizes_of_other_quants_are_computed_from_one_header(starter: Path, tmp_path: Path) -> None:
    header = read_header(starter)
    headers = {
        read_header(path).quant: read_header(path)
        for path in write_quants(starter, tmp_path, ("Q2_K", "Q4_K_M", "Q8_0"))
    }
    engine = EngineClient()
    try:
        for quant, real in headers.items():
            types = engine.list_quant_types(requantize.make_quant_model(header), requantize.find_preset_number(quant))
            computed = requantize.make_requantized_header(header, quant, types)
            assert {t.name: (t.type, t.size_bytes) for t in computed.tensors} == {
                t.name: (t.type, t.size_bytes) for t in real.tensors
            }
            assert computed.quant == quant
        quant_model = requantize.make_quant_model(header)
        nonsense = msgspec.structs.replace(quant_model, architecture="flux-capacitor", n_layer=0)
        assert engine.list_quant_types(nonsense, 15) == []
        odd = msgspec.structs.replace(quant_model, architecture="flux-capacitor")
        assert isinstance(engine.list_quant_types(odd, 15), list)
        engine.list_quant_types(requantize.make_quant_model(header), 15)  # the engine is still alive
    finally:
        engine.close()


def test_q8_0_kv_cache_generates_nearly_the_same(starter: Path) -> None:
    replies = []
    for kv_type in ("f16", "q8_0"):
        engine = EngineClient()
        try:
            plan = make_manual_plan(str(starter), n_threads=2, n_ctx=1024, kv_type=kv_type)
            engine.load(protocol.Load(id=engine.next_id(), plan=plan))
            request = protocol.Generate(
                id=engine.next_id(), tokens=engine.tokenize("The capital of France is"), max_tokens=8, sampling=GREEDY
            )
            replies.append(
                [t for e in engine.generate(request) if isinstance(e, protocol.TokensGenerated) for t in e.tokens]
            )
        finally:
            engine.close()
    assert sum(a == b for a, b in zip(*replies, strict=False)) >= 4


def test_kernel_speeds_are_measured_once_and_cover_common_types(tmp_path: Path) -> None:
    engine = EngineClient()
    progress: list[str] = []

    def on_event(event: protocol.AnyEvent) -> None:
        if isinstance(event, protocol.BackendTesting):
            progress.append(event.message)

    try:
        assert engine.list_devices(benchmark=False).speeds is None
        speeds = engine.list_devices(benchmark=True, on_event=on_event).speeds
        saved = engine.list_devices(benchmark=False).speeds
    finally:
        engine.close()
    assert speeds is not None
    assert speeds == saved == kernel_benchmark.load_speeds(find_bundle(), choose_module(find_bundle())[0])
    assert any("Measuring" in line for line in progress)
    rates = [speeds.product_rates[name] for name in ("F16", "Q4_0", "Q4_K", "Q6_K", "Q8_0")]
    assert all(r[size] > 0 for r in rates for size in (1, 32))
    # Not for each type: other programs can disturb a measurement.
    assert sum(r[32] for r in rates) < sum(r[1] for r in rates)
    assert speeds.attention_rates["f16"][1] > 0
    assert 1 <= speeds.n_decode_threads <= speeds.max_n_threads
    assert 1 <= speeds.n_prefill_threads <= speeds.max_n_threads
    assert speeds.read_bytes_per_s > 1e6


def test_cancelled_kernel_benchmark_leaves_no_process_behind() -> None:
    cancellation = Cancellation()
    thread = threading.Thread(target=selection.measure_speeds, args=[cancellation])
    thread.start()

    benchmarks: list[psutil.Process] = []

    def is_benchmark_running() -> bool:
        with contextlib.suppress(psutil.Error):
            children = psutil.Process().children(recursive=True)
            benchmarks.extend(c for c in children if "_speeds" in c.cmdline() and c.cmdline()[-1] == "0")  # not quick
        return bool(benchmarks)

    def is_benchmark_over() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return all(benchmark.status() == psutil.STATUS_ZOMBIE for benchmark in benchmarks)
        return True

    try:
        until(is_benchmark_running, timeout_s=60)
    finally:
        cancellation.cancel()
    thread.join(60)
    assert not thread.is_alive()
    until(is_benchmark_over, timeout_s=5)
    assert kernel_benchmark.load_speeds(find_bundle(), choose_module(find_bundle())[0]) is None


def test_failed_kernel_benchmark_has_no_result() -> None:
    broken = msgspec.structs.replace(choose_module(find_bundle())[0], path="/nowhere/libggml-cpu-x.so")
    assert kernel_benchmark.measure_speeds(find_bundle(), broken) is None


def test_unloadable_files_are_errors_and_the_engine_continues(tmp_path: Path, starter: Path) -> None:
    data = starter.read_bytes()[: 1 << 20]
    engine = EngineClient()
    try:
        for number, size in enumerate((10, 5000, 1 << 20)):
            path = tmp_path / f"{number}.gguf"
            path.write_bytes(data[:size])
            with pytest.raises(EdgechatError):
                probe_memory(engine, path, load_options(starter))
        assert probe_memory(engine, starter, load_options(starter))
    finally:
        engine.close()


def test_longer_contexts_take_more_memory(starter: Path) -> None:
    engine = EngineClient()
    try:
        totals = [
            exact_memory(starter, options, probe_memory(engine, starter, options)).total
            for options in (load_options(starter, n_ctx=n) for n in (512, 2048, 8192))
        ]
    finally:
        engine.close()
    assert all(a < b for a, b in itertools.pairwise(totals))


def test_sizes_of_faster_quants_are_those_of_quantised_files(starter: Path, tmp_path: Path) -> None:
    (source,) = write_quants(starter, tmp_path, ("F16",))
    profile = read_profile(source)
    fast_rates = {name: {1: rate, 4: rate, 32: rate} for name, rate in (("F16", 1e9), ("Q8_0", 3e9), ("Q4_0", 9e9))}
    speeds = KernelSpeeds(backend="", n_threads=1, product_rates=fast_rates, operations_per_s=1e12)
    advice = find_faster_quants(profile, speeds, load_options(source))
    sizes = {
        path.name.split(".")[1]: read_profile(path).tensor_bytes
        for path in write_quants(source, tmp_path, ("Q8_0", "Q4_0"))
    }
    assert {a.quant: a.weight_bytes for a in advice} == {quant: sizes[quant] for quant in ("Q8_0", "Q4_0")}
