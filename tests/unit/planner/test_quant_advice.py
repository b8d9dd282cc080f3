"""Advice to quantise an installed model on this machine."""

from __future__ import annotations

import msgspec
import pytest

from edgechat.modelfile.header import Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.quant_advice import find_faster_quants, format_quant_advice
from edgechat.planner.ranking import Candidate, evaluate
from edgechat.planner.report import format_row_lines, make_plan_row
from edgechat.planner.requantize import tensor_bytes
from edgechat.planner.throughput import KernelSpeeds
from tests.unit.planner.profiles import GIB, Q4_0, Q8_0, llama, machine, options, two_quants

F32, F16, Q5_0, Q6_K = 0, 1, 6, 14
SPEEDS = KernelSpeeds(
    backend="cpu-x", n_threads=2, operations_per_s=1e9,
    product_rates={
        name: {1: rate, 4: rate, 32: rate}
        for name, rate in {"F16": 5e9, "Q8_0": 10e9, "Q5_0": 9e9, "Q4_0": 20e9, "Q6_K": 12e9}.items()
    },
)  # fmt: skip


def make_profile(quant: str, type_id: int, *, n_columns: int = 2048, n_layers: int = 16) -> ModelProfile:
    """Return a model with one norm and one matrix for each layer, and an output matrix."""
    matrices = [(f"blk.{i}.w.weight", (n_columns, n_columns)) for i in range(n_layers)]
    tensors = [Tensor(name, shape, type_id, 0, 0) for name, shape in [*matrices, ("output.weight", (n_columns, 8000))]]
    tensors = [msgspec.structs.replace(t, size_bytes=tensor_bytes(t, t.type_id)) for t in tensors]
    norms = [Tensor(f"blk.{i}.norm.weight", (n_columns,), F32, 0, 4 * n_columns) for i in range(n_layers)]
    return llama().with_tensors("m.gguf", (*tensors, *norms), quant)


def test_faster_quants_of_a_precise_file_are_listed_by_quality() -> None:
    profile = make_profile("F16", F16)
    advice = find_faster_quants(profile, SPEEDS, options(profile, 512))
    assert [a.quant for a in advice] == ["Q8_0", "Q4_0"]
    assert advice[0].ratio == pytest.approx(2.0, rel=0.02)
    assert advice[1].ratio > 3
    assert advice[1].weight_bytes < advice[0].weight_bytes < profile.tensor_bytes
    text = format_quant_advice("mine", profile, advice)
    assert text.startswith("Q8_0 of this file would decode 2.0 times as fast here, Q4_0 3.")
    assert text.endswith("`edgechat models quantize mine Q8_0`")
    assert "losses" not in text


def test_quant_that_is_hardly_faster_or_larger_is_not_suggested() -> None:
    slow = msgspec.structs.replace(SPEEDS, product_rates=SPEEDS.product_rates | {"Q4_0": {1: 12e9, 4: 1e9, 32: 1e9}})
    precise, small = make_profile("Q8_0", Q8_0), make_profile("Q4_0", Q4_0)
    assert find_faster_quants(precise, slow, options(precise, 512)) == []
    assert find_faster_quants(small, SPEEDS, options(small, 512)) == []  # Q8_0 is larger
    assert [a.quant for a in find_faster_quants(precise, SPEEDS, options(precise, 512))] == ["Q4_0"]


def test_quant_of_a_quantised_file_must_be_much_faster_and_loses_more() -> None:
    profile = make_profile(
        "Q4_K_M", Q5_0, n_columns=896, n_layers=99
    )  # as in Qwen2.5 0.5B: rows without whole blocks of Q4_K
    advice = find_faster_quants(profile, SPEEDS, options(profile, 512))
    assert [a.quant for a in advice] == ["Q4_0"]
    text = format_quant_advice("m", profile, advice)
    assert "Best download Q4_0; `edgechat models quantize m Q4_0` works offline, but its result has the losses" in text
    less = msgspec.structs.replace(SPEEDS, product_rates=SPEEDS.product_rates | {"Q4_0": {1: 12e9, 4: 1e9, 32: 1e9}})
    assert find_faster_quants(profile, less, options(profile, 512)) == []


def test_no_advice_without_speeds_or_with_layers_on_a_gpu() -> None:
    profile = make_profile("F16", F16)
    unknown = msgspec.structs.replace(SPEEDS, product_rates={"Q8_0": {1: 1.0, 4: 1.0, 32: 1.0}})
    assert find_faster_quants(profile, unknown, options(profile, 512)) == []
    assert find_faster_quants(profile, SPEEDS, options(profile, 512, n_gpu_layers=3)) == []
    assert format_quant_advice("m", profile, []) == ""


def test_plan_of_an_installed_model_contains_the_advice() -> None:
    profile = make_profile("F16", F16)
    installed = Candidate(name="mine", quant="F16", profile=profile, quality=two_quants()[0].quality)
    row = make_plan_row(evaluate(installed, machine(8 * GIB), speeds=SPEEDS))
    assert row.reasons["quant"].startswith("Q8_0 of this file would decode")
    assert format_row_lines(row, 8 * GIB)[-1] == row.reasons["quant"]
    download = msgspec.structs.replace(installed, is_installed=False)
    assert "quant" not in make_plan_row(evaluate(download, machine(8 * GIB), speeds=SPEEDS)).reasons
