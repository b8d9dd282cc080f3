"""Speed prediction for a model, from the kernel benchmark of this machine or from memory bandwidth."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from edgechat.modelfile.header import Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.planner.memory import LoadOptions, is_on_gpu

BATCH_SIZES: Final = (1, 4, 32)
"""Batch sizes (columns of a matrix product) that the kernel benchmark measures."""
# Numbers of small operations (norms, rotations, sums, activations, KV cache writes) per layer, per layer with a
# recurrent state, and per token (including sampling and the message to the client). The numbers were fitted to 17 files
# of six model families with two threads; `edgechat bench memory` shows the prediction error.
_N_LAYER_OPERATIONS: Final = 20
_N_STATE_LAYER_OPERATIONS: Final = 40
_N_TOKEN_OPERATIONS: Final = 260
# Lowest published ratio of prefill to decode speed on a processor: an 8B model in Q4_K_M on an Apple M4
# (ggml-org/llama.cpp#18888); a Raspberry Pi 5 reaches 4.2 to 7.8. Used if only the memory bandwidth is known.
_MIN_PREFILL_RATIO: Final = 2.6
# Factor by which prefill of expert weights is slower than that of dense weights: Qwen3-30B-A3B on a Raspberry Pi 5
# prefills 10.9 tokens/s, where the rate of dense models would give 21.
_EXPERT_PREFILL_FACTOR: Final = 2.0
# Tensors that are only lookup tables: each token reads one row of them.
_LOOKUP_TENSORS: Final = (
    "token_embd.weight",
    "per_layer_token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
)
OUTPUT_TENSORS: Final = ("output.weight", "token_embd.weight")
"""Tensors that compute logits: `output.weight`, or the token embedding in models without it."""


class KernelSpeeds(msgspec.Struct, frozen=True, kw_only=True):
    """Kernel benchmark results of one backend on this machine. The encoded field names are part of the cache file."""

    backend: str
    n_threads: int
    product_rates: dict[str, dict[int, float]] = msgspec.field(name="products")
    """Number of weights multiplied per second in the layout of a loaded model, by tensor type and batch size."""
    file_layout_product_rates: dict[str, dict[int, float]] = msgspec.field(default_factory=dict, name="plain")
    """Weights multiplied per second without repacking, for tensor types that are normally repacked on load."""
    attention_rates: dict[str, dict[int, float]] = msgspec.field(default_factory=dict, name="attention")
    """Number of KV cache elements that attention reads per second, by KV cache type and batch size."""
    operations_per_s: float = 0.0
    """Number of small ggml operations that the backend executes per second, one after another."""
    products_per_s: float = 0.0
    """Number of products of small matrices that the backend computes per second."""
    n_decode_threads: int = msgspec.field(default=0, name="decode_threads")
    """Number of threads that decodes fastest; 0 if only `n_threads` was measured."""
    n_prefill_threads: int = msgspec.field(default=0, name="prefill_threads")
    """Number of threads that prefills fastest; 0 if only `n_threads` was measured."""
    max_n_threads: int = msgspec.field(default=0, name="most_threads")
    """Largest number of threads in the benchmark. The results are outdated if the number of usable CPUs differs."""
    measured_at: float = 0.0
    """Time of the benchmark in seconds since 1970; 0.0 if it was measured by a version that ignored other programs."""
    is_disturbed: bool = False
    """True if other programs or a pause made the benchmark slower; the rates are the fastest of several runs."""

    @property
    def read_bytes_per_s(self) -> float:
        """Highest rate at which decoding reads weights, in bytes per second: about the memory bandwidth."""
        types = {tensor_type.name: tensor_type for tensor_type in TENSOR_TYPES.values()}
        return max(
            (rates[1] * types[name].block_bytes / types[name].block_size for name, rates in self.product_rates.items()
             if name in types and 1 in rates), default=0.0,
        )  # fmt: skip

    @property
    def repacked_types(self) -> frozenset[str]:
        """Tensor types that this backend repacks into a layout that differs from the layout of the file."""
        return frozenset(self.file_layout_product_rates)


class PredictedSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted speed of a model in tokens per second."""

    decode_tps: float
    prefill_tps: float
    """Prefill speed at the start of a context."""

    def ttft_s(self, n_tokens: int) -> float:
        """Return the time to first token for a prompt of `n_tokens`, in seconds."""
        return n_tokens / self.prefill_tps + 1.0 / self.decode_tps


class DeviceRates(msgspec.Struct, frozen=True, kw_only=True):
    """Speed of a processor or GPU whose kernels were not measured."""

    read_bytes_per_s: float = 0.0
    """Memory bandwidth in bytes per second; 0.0 if unknown."""
    prefill_weights_per_s: float = 0.0
    """Number of weights multiplied per second in prefill, counted once per token; 0.0 if unknown."""


SLOWEST_GPU_RATES: Final = DeviceRates(read_bytes_per_s=48e9)
"""Rates of a discrete GPU whose speed is unknown: the memory bandwidth of a GeForce GT 1030 with GDDR5."""


def predict_speed(
    profile: ModelProfile, speeds: KernelSpeeds, *, n_past: int = 256, kv_type: str = "F16",
    use_extra_bufts: bool = True, options: LoadOptions | None = None, gpu_rates: DeviceRates | None = None,
) -> PredictedSpeed | None:  # fmt: skip
    """Predict the speed with `n_past` tokens in the context; None if `speeds` lacks a tensor type of the model.

    The layers that `options` put on a GPU are predicted from `gpu_rates`, without their attention. The result is None
    if the bandwidth of the GPU is unknown.
    """
    cpu_tensors, gpu_tensors = split_tensors(profile, options)
    gpu_token_s = _predict_token_s_by_bandwidth(profile, gpu_tensors, gpu_rates or DeviceRates())
    decode_s = _predict_step_s(profile, cpu_tensors, speeds, 1, use_extra_bufts=use_extra_bufts)
    prefill_s = _predict_step_s(profile, cpu_tensors, speeds, BATCH_SIZES[-1], use_extra_bufts=use_extra_bufts)
    if decode_s is None or prefill_s is None or gpu_token_s is None:
        return None
    n_gpu_layers = max(0, options.n_gpu_layers - 1) if options is not None else 0
    n_elements = n_past * sum(
        layer.kv_width * layer.n_head / layer.n_head_kv
        for layer in profile.layers[: max(0, profile.n_layers - n_gpu_layers)]
        if layer.n_head_kv
    )  # each query head reads the keys and values of its group
    rates = speeds.attention_rates.get(kv_type.lower()) or speeds.attention_rates.get("f16") or {}
    if rates:
        decode_s += n_elements / rates.get(1, math.inf)
        prefill_s += BATCH_SIZES[-1] * n_elements / rates.get(BATCH_SIZES[-1], math.inf)
    decode_s += gpu_token_s[0]
    prefill_s += BATCH_SIZES[-1] * gpu_token_s[1]
    if decode_s <= 0 or prefill_s <= 0:  # the model has no matrix products
        return None
    return PredictedSpeed(decode_tps=1.0 / decode_s, prefill_tps=BATCH_SIZES[-1] / prefill_s)


def predict_speed_by_bandwidth(
    profile: ModelProfile, cpu: DeviceRates, gpu: DeviceRates | None = None, options: LoadOptions | None = None
) -> PredictedSpeed | None:
    """Predict the speed from memory bandwidth and prefill rate; the layers in `options` are on `gpu`.

    Decoding reads all used weights once per token. Prefill is limited by computation, so its rate in weights per second
    is about the same for all quants (61e9 for Q4_K and 70e9 for Q8_0 on two cores with AVX2; 63e9, 74e9 and 76e9 for
    Q5_K, Q6_K and Q8_0 on a Raspberry Pi 5). Without a prefill rate, prefill counts as 2.6 times as fast as decoding.
    Returns None if the bandwidth of a device that holds weights is unknown.
    """
    cpu_tensors, gpu_tensors = split_tensors(profile, options)
    cpu_token_s = _predict_token_s_by_bandwidth(profile, cpu_tensors, cpu)
    gpu_token_s = _predict_token_s_by_bandwidth(profile, gpu_tensors, gpu or DeviceRates())
    if cpu_token_s is None or gpu_token_s is None:
        return None
    decode_s, prefill_s = cpu_token_s[0] + gpu_token_s[0], cpu_token_s[1] + gpu_token_s[1]
    if decode_s <= 0 or prefill_s <= 0:
        return None
    # A batch never takes more time per token than single tokens do.
    return PredictedSpeed(decode_tps=1.0 / max(decode_s, prefill_s), prefill_tps=1.0 / prefill_s)


def split_tensors(profile: ModelProfile, options: LoadOptions | None) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors that each step multiplies: those in CPU memory, and those in GPU memory with `options`."""
    tensors = used_tensors(profile)
    if options is None or not options.n_gpu_layers:
        return tensors, []
    gpu_tensors = [t for t in tensors if t.name in OUTPUT_TENSORS or is_on_gpu(profile, t, options)]
    gpu_names = {t.name for t in gpu_tensors}
    return [t for t in tensors if t.name not in gpu_names], gpu_tensors


def _predict_token_s_by_bandwidth(
    profile: ModelProfile, tensors: list[Tensor], rates: DeviceRates
) -> tuple[float, float] | None:
    """Return the times per token of decoding and prefill, in seconds; None if `tensors` need an unknown bandwidth."""
    if tensors and rates.read_bytes_per_s <= 0:
        return None
    decode_s = prefill_s = 0.0
    for tensor in tensors:
        fraction = used_fraction(profile, tensor)
        read_s = tensor.size_bytes * fraction / rates.read_bytes_per_s
        decode_s += read_s
        if tensor.name in OUTPUT_TENSORS:  # only the last token of a prompt needs logits
            continue
        if rates.prefill_weights_per_s > 0:
            product_s = math.prod(tensor.shape) * fraction / rates.prefill_weights_per_s
            prefill_s += product_s * (_EXPERT_PREFILL_FACTOR if fraction < 1 else 1.0)
        else:
            prefill_s += read_s / _MIN_PREFILL_RATIO
    return decode_s, prefill_s


def _predict_step_s(
    profile: ModelProfile, tensors: list[Tensor], speeds: KernelSpeeds, n_tokens: int, *, use_extra_bufts: bool
) -> float | None:
    """Return the time of a step of `n_tokens` without attention, in seconds; None if `speeds` lacks a tensor type."""
    total_s, n_products = 0.0, 0
    for tensor in tensors:
        if len(tensor.shape) > 1 and min(tensor.shape[:2]) > 1:
            rates = speeds.product_rates.get(tensor.type)
            if not use_extra_bufts:
                rates = speeds.file_layout_product_rates.get(tensor.type, rates or {})
            if not rates:
                return None
            n_products += 1
            total_s += _predict_product_s(profile, tensor, rates, n_tokens)
    if n_tokens > 1:  # in a large prefill batch, only matrix products take noticeable time
        return total_s
    n_state_layers = profile.n_state_layers
    n_operations = (
        _N_TOKEN_OPERATIONS
        + n_state_layers * _N_STATE_LAYER_OPERATIONS
        + (profile.n_layers - n_state_layers) * _N_LAYER_OPERATIONS
    )
    for count, rate_per_s in ((n_operations, speeds.operations_per_s), (n_products, speeds.products_per_s)):
        total_s += count / rate_per_s if rate_per_s else 0.0
    return total_s


def _predict_product_s(profile: ModelProfile, tensor: Tensor, rates: dict[int, float], n_tokens: int) -> float:
    n_weights = math.prod(tensor.shape)
    if tensor.name in OUTPUT_TENSORS:
        return n_weights / rates[1] if n_tokens == 1 else 0.0  # only the last token of a prompt needs logits
    fraction = used_fraction(profile, tensor)
    if fraction == 1.0 or n_tokens == 1:
        return fraction * n_weights / rates[n_tokens]
    # A batch activates more experts than a single token does, but each expert processes only some of the batch's
    # tokens.
    batch_fraction = max(fraction, 1.0 - (1.0 - fraction) ** n_tokens)
    n_columns = max(1.0, n_tokens * fraction / batch_fraction)
    batch_size = max(b for b in BATCH_SIZES if b <= n_columns)
    return batch_fraction * n_weights / rates[batch_size] * n_columns / batch_size


def used_fraction(profile: ModelProfile, tensor: Tensor) -> float:
    """Return the fraction of a tensor's weights that one token uses: below 1 for expert tensors, otherwise 1."""
    if profile.n_experts and profile.n_experts_used and "_exps." in tensor.name:
        return min(1.0, profile.n_experts_used / profile.n_experts)
    return 1.0


def used_tensors(profile: ModelProfile) -> list[Tensor]:
    """Return the tensors that each step multiplies, that is, all except lookup tables."""
    table_names = set(_LOOKUP_TENSORS)
    if not profile.has_output_tensor:  # the token embedding is also the output matrix
        table_names.remove("token_embd.weight")
    return [t for t in profile.loaded_tensors if t.name not in table_names]
