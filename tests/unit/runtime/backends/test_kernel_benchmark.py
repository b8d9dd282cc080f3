"""Kernel benchmark: grouping of the results, and the cache file."""

from __future__ import annotations

from edgechat import paths
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from edgechat.runtime.backends.kernel_benchmark import kernel_speeds_from_rates, load_speeds

BUNDLE = Bundle(directory="/b", build_id="1", llama_cpp_python="1", llama_cpp_commit="1", compiler="cc", modules=())


def test_types_with_an_extra_layout_have_loaded_and_plain_rates() -> None:
    speeds = kernel_speeds_from_rates(
        {
            ("Q4_0", "CPU", 1): 10.0, ("Q4_0", "CPU_REPACK", 1): 20.0, ("Q4_0", "CPU_REPACK", 32): 90.0,
            ("F16", "CPU", 1): 5.0, ("attention f16", "", 1): 7.0, ("operation", "", 1): 3.0, ("product", "", 1): 2.0,
            ("DONE", "", 0): 0.0,
        },
        "cpu-x64", 2,
    )  # fmt: skip
    assert speeds.product_rates == {"Q4_0": {1: 20.0, 32: 90.0}, "F16": {1: 5.0}}
    assert speeds.file_layout_product_rates == {"Q4_0": {1: 10.0}}
    assert speeds.attention_rates == {"f16": {1: 7.0}}
    assert (speeds.operations_per_s, speeds.products_per_s) == (3.0, 2.0)


def test_oversized_cache_file_is_not_read() -> None:
    path = paths.kernel_speeds_file()
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 36)
    assert load_speeds(BUNDLE, BackendModule(name="cpu-x64", path="/none")) is None
