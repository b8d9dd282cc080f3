"""Plans against llama.cpp itself: sizes that it reports, types that its rules give, what really lies in memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from edgechat.bench.quants import write_quants
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError, ModelFileError
from edgechat.modelfile.split import read_header
from edgechat.planner import memory, requantize
from edgechat.planner.memory import LoadOptions
from edgechat.planner.plan import default_n_seqs, manual_plan
from edgechat.runtime.backends import kernel_benchmark
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.probe import choose_module
from tests.models import KINDS, Kind, write_tiny


def options(path: Path, **changes: object) -> LoadOptions:
    given = {"n_ctx": 1024, "n_seqs": default_n_seqs(read_header(path))} | changes
    return LoadOptions(**given)  # type: ignore[arg-type]


def probed(engine: EngineClient, path: Path, wanted: LoadOptions) -> dict[str, dict[str, int]]:
    return engine.probe_memory(protocol.ProbeMemory(id=engine.next_id(), model_path=str(path), options=wanted)).memory


@pytest.mark.parametrize("kind", [*KINDS, "starter"])
def test_sizes_without_weights_are_those_with_them(tmp_path: Path, kind: Kind, starter: Path) -> None:
    path = starter if kind == "starter" else write_tiny(tmp_path / "m.gguf", kind)  # type: ignore[comparison-overlap]
    header = read_header(path)
    engine = EngineClient()
    try:
        # The tiny models' heads are too short for Q8_0.
        for kv_type in ("f16", "q8_0") if path == starter else ("f16",):
            wanted = options(path, kv_type=kv_type, use_mmap=False)
            before = probed(engine, path, wanted)
            plan = manual_plan(str(path), n_threads=1, speculation=False, **msgspec.structs.asdict(wanted))
            engine.load(protocol.Load(id=engine.next_id(), plan=plan))
            assert engine.stats().memory == before
            known, guessed = memory.exact(header, wanted, before), memory.estimate(header, wanted)
            assert known.kv_cache == guessed.kv_cache
            # Formulas do not know which types this backend keeps in another layout.
            real, most = known.weights + known.repacked, guessed.weights + guessed.repacked
            assert real <= most * 1.02
            assert most <= real * 1.35
    finally:
        engine.close()


def test_a_file_of_which_only_the_header_is_there_has_the_same_sizes(starter: Path, tmp_path: Path) -> None:
    header = read_header(starter)
    sparse = tmp_path / "far.gguf"
    with starter.open("rb") as whole, sparse.open("wb") as copy:
        copy.write(whole.read(header.data_offset))
        copy.truncate(header.file_bytes)
    engine = EngineClient()
    try:
        sizes = [probed(engine, path, options(starter)) for path in (starter, sparse)]
        with pytest.raises(ModelFileError):
            probed(engine, tmp_path / "none.gguf", options(starter))
    finally:
        engine.close()
    assert sizes[0] == sizes[1]


def test_the_size_of_every_quant_is_known_from_one_header(starter: Path, tmp_path: Path) -> None:
    header = read_header(starter)
    written = {
        read_header(path).quant: read_header(path)
        for path in write_quants(starter, tmp_path, ("Q2_K", "Q4_K_M", "Q8_0"))
    }
    engine = EngineClient()
    try:
        for quant, real in written.items():
            types = engine.list_quant_types(requantize.quant_model(header), requantize.preset_number(quant))
            told = requantize.requantized_header(header, quant, types)
            assert {t.name: (t.type, t.size_bytes) for t in told.tensors} == {
                t.name: (t.type, t.size_bytes) for t in real.tensors
            }
            assert told.quant == quant
        nonsense = msgspec.structs.replace(requantize.quant_model(header), architecture="flux-capacitor", n_layer=0)
        assert engine.list_quant_types(nonsense, 15) == []
        odd = msgspec.structs.replace(requantize.quant_model(header), architecture="flux-capacitor")
        assert isinstance(engine.list_quant_types(odd, 15), list)
        engine.list_quant_types(requantize.quant_model(header), 15)  # it lives
    finally:
        engine.close()


def test_keys_and_values_in_q8_0_say_nearly_the_same(starter: Path) -> None:
    said = []
    for kv_type in ("f16", "q8_0"):
        engine = EngineClient()
        try:
            plan = manual_plan(str(starter), n_threads=2, n_ctx=1024, kv_type=kv_type)
            engine.load(protocol.Load(id=engine.next_id(), plan=plan))
            request = protocol.Generate(
                id=engine.next_id(), tokens=engine.tokenize("The capital of France is"), max_tokens=8, sampling=GREEDY
            )
            said.append(
                [t for e in engine.generate(request) if isinstance(e, protocol.TokensGenerated) for t in e.tokens]
            )
        finally:
            engine.close()
    assert sum(a == b for a, b in zip(*said, strict=False)) >= 4


def test_speeds_are_measured_once_and_cover_common_types(tmp_path: Path) -> None:
    engine = EngineClient()
    words: list[str] = []

    def listen(event: protocol.AnyEvent) -> None:
        if isinstance(event, protocol.BackendTesting):
            words.append(event.message)

    try:
        assert engine.list_devices(benchmark=False).speeds is None
        found = engine.list_devices(benchmark=True, on_event=listen).speeds
        again = engine.list_devices(benchmark=False).speeds
    finally:
        engine.close()
    assert found is not None
    assert found == again == kernel_benchmark.load_speeds(find_bundle(), choose_module(find_bundle())[0])
    assert any("measuring" in line for line in words)
    for name in ("F16", "Q4_0", "Q4_K", "Q6_K", "Q8_0"):
        rates = found.products[name]
        assert 0 < rates[32] < rates[1]
    assert found.attention["f16"][1] > 0
    assert 1 <= found.decode_threads <= found.max_threads
    assert 1 <= found.prefill_threads <= found.max_threads
    assert found.read_bps > 1e8


def test_a_module_that_cannot_be_measured_is_none() -> None:
    broken = msgspec.structs.replace(choose_module(find_bundle())[0], path="/nowhere/libggml-cpu-x.so")
    assert kernel_benchmark.measure_speeds(find_bundle(), broken) is None


def test_files_that_llama_cpp_cannot_load_leave_the_engine_alive(tmp_path: Path, starter: Path) -> None:
    data = starter.read_bytes()[: 1 << 20]
    engine = EngineClient()
    try:
        for number, size in enumerate((10, 5000, 1 << 20)):
            path = tmp_path / f"{number}.gguf"
            path.write_bytes(data[:size])
            with pytest.raises(EdgechatError):
                probed(engine, path, options(starter))
        assert probed(engine, starter, options(starter))
    finally:
        engine.close()


def test_of_more_context_more_is_taken(starter: Path) -> None:
    engine = EngineClient()
    try:
        totals = [
            memory.exact(read_header(starter), wanted, probed(engine, starter, wanted)).total
            for wanted in (options(starter, n_ctx=n) for n in (512, 2048, 8192))
        ]
    finally:
        engine.close()
    assert all(a < b for a, b in itertools.pairwise(totals))
