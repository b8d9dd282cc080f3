"""Weights of a mapped file that have a copy leave the memory of the engine, and the replies stay the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgechat.bench.quants import write_quants
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.load_plan import make_manual_plan
from edgechat.planner.mapped_file import FileRange, list_unused_ranges
from edgechat.planner.memory import LoadOptions, convert_reported_buffers
from tests.resident_pages import count_resident_bytes

MIB = 1 << 20
N_PROMPT, N_REPLY = 100, 12

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/smaps")


def generate(engine: EngineClient) -> list[int]:
    request = protocol.Generate(
        id=engine.next_id(), tokens=[100 + i % 100 for i in range(N_PROMPT)], max_tokens=N_REPLY, ignore_eog=True,
        sampling=GREEDY, bypass_cache=True, speculate=False,
    )  # fmt: skip
    return [t for e in engine.generate(request) if isinstance(e, protocol.TokensGenerated) for t in e.tokens]


def run(
    engine: EngineClient, path: Path, options: LoadOptions, unused_ranges: tuple[FileRange, ...]
) -> tuple[list[int], int]:
    """Load a model; return the tokens of a reply, and the bytes of the mapped file in memory after it."""
    plan = make_manual_plan(
        str(path), n_threads=1, n_ctx=options.n_ctx, n_seqs=options.n_seqs, use_extra_bufts=options.use_extra_bufts
    )
    engine.load(protocol.Load(id=engine.next_id(), plan=plan, unused_ranges=unused_ranges))
    return generate(engine), count_resident_bytes(path, engine.pid or 0)


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K_M"])
def test_only_the_used_weights_stay_in_memory(
    empty_engine: EngineClient, starter: Path, tmp_path: Path, quant: str
) -> None:
    (path,) = write_quants(starter, tmp_path, (quant,))
    profile = ModelProfile.from_header(read_header(path))
    options = LoadOptions(n_ctx=512, n_seqs=2)
    probe = protocol.ProbeMemory(id=empty_engine.next_id(), model_path=str(path), options=options)
    sizes = convert_reported_buffers(profile, options, empty_engine.probe_memory(probe).memory)
    assert sizes.weights + sizes.file_cache == profile.tensor_bytes
    before, before_bytes = run(empty_engine, path, options, ())
    after, after_bytes = run(empty_engine, path, options, list_unused_ranges(profile, options))
    assert before == after
    assert before_bytes >= profile.tensor_bytes - MIB
    # Rows of the token embedding return with their neighbours.
    assert after_bytes <= sizes.weights + before_bytes // 8


def test_ranges_that_are_needed_only_cost_time(empty_engine: EngineClient, starter: Path) -> None:
    """A wrong range is read again: no weights get lost."""
    options = LoadOptions(n_ctx=512, n_seqs=2, use_extra_bufts=False)
    whole_file = (FileRange(0, 0, starter.stat().st_size),)
    assert run(empty_engine, starter, options, whole_file)[0] == run(empty_engine, starter, options, ())[0]
