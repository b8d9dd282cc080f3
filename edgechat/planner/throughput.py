"""How fast a model would be: the products of a step, at the speeds that this machine's kernels were measured at."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.layers import read_layers
from edgechat.modelfile.tensor_types import TENSOR_TYPES

BATCHES: Final = (1, 4, 32)
"""Columns of the products that were measured."""
# Operations of a layer beside its products (norms, rotations, sums, activations, what goes into memory), those of one with
# a state, and what is done once for each token, sampling and telling the client among it, counted in such operations.
# Fitted to 17 files of six kinds of models with two threads: `edgechat bench memory` shows how well they hold.
_SMALL_OPERATIONS: Final = 20
_STATE_OPERATIONS: Final = 40
_TOKEN_OPERATIONS: Final = 260
# Tables of which a token reads one row.
_TABLES: Final = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")


class KernelSpeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What one backend was measured at on this machine."""

    backend: str
    n_threads: int
    products: dict[str, dict[int, float]]
    """Weights multiplied in a second, by type and columns of the batch, in the layout that a model is loaded in."""
    plain: dict[str, dict[int, float]] = {}
    """The same in the layout of the file, for types that have another one here."""
    attention: dict[str, dict[int, float]] = {}
    """Numbers of keys and values that queries pass by in a second, by their type and the size of the batch."""
    operations_per_s: float = 0.0
    """Small ones, one after another; and products of small matrices."""
    products_per_s: float = 0.0
    decode_threads: int = 0
    """So many threads were the fastest for one token, and the next for a batch; 0 if only `n_threads` were tried."""
    prefill_threads: int = 0
    max_threads: int = msgspec.field(default=0, name="most_threads")
    """The largest number that was tried: with more or fewer cores to use, this says nothing."""

    @property
    def read_bps(self) -> float:
        """Bytes of weights that were read in a second at most, decoding: about what memory yields."""
        kinds = {kind.name: kind for kind in TENSOR_TYPES.values()}
        return max(
            (rates[1] * kinds[name].block_bytes / kinds[name].block_size for name, rates in self.products.items()
             if name in kinds and 1 in rates), default=0.0,
        )  # fmt: skip

    @property
    def repacked(self) -> frozenset[str]:
        """Types that are kept in another layout than the file's."""
        return frozenset(self.plain)


class PredictedSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """What to expect."""

    decode_tps: float
    prefill_tps: float
    """At the beginning of a context."""

    def ttft_s(self, n_tokens: int) -> float:
        """Until the first token after so many of a prompt."""
        return n_tokens / self.prefill_tps + 1.0 / self.decode_tps


def predict_speed(
    header: ModelHeader,
    speeds: KernelSpeeds,
    *,
    n_past: int = 256,
    kv_type: str = "F16",
    use_extra_bufts: bool = True,
) -> PredictedSpeed | None:
    """Speeds of a model at a context that holds `n_past` tokens; None if a type in it was not measured."""
    decode_s = _step_s(header, speeds, 1, use_extra_bufts=use_extra_bufts)
    prefill_s = _step_s(header, speeds, BATCHES[-1], use_extra_bufts=use_extra_bufts)
    if decode_s is None or prefill_s is None:
        return None
    kv = sum(layer.kv_width * _queries(layer.n_head, layer.n_head_kv) for layer in read_layers(header).layers) * n_past
    passed = speeds.attention.get(kv_type.lower()) or speeds.attention.get("f16") or {}
    if passed:
        decode_s += kv / passed.get(1, math.inf)
        prefill_s += BATCHES[-1] * kv / passed.get(BATCHES[-1], math.inf)
    if decode_s <= 0 or prefill_s <= 0:  # nothing in the file is a product
        return None
    return PredictedSpeed(decode_tps=1.0 / decode_s, prefill_tps=BATCHES[-1] / prefill_s)


def speed_by_bandwidth(
    header: ModelHeader, read_bps: float, gpu_read_bps: float = 0.0, gpu_part: float = 0.0
) -> PredictedSpeed | None:
    """As if decoding only waited for memory, the part of the weights that is on a GPU for its own.

    Nothing is known of prefill. None without a bandwidth.
    """
    read = sum(t.size_bytes * _share(header, t) for t in _used(header))
    parts = ((1.0 - gpu_part, read_bps), (gpu_part, gpu_read_bps))
    if not read or any(part > 0 and bps <= 0 for part, bps in parts):
        return None
    return PredictedSpeed(
        decode_tps=1.0 / sum(read * part / bps for part, bps in parts if part > 0), prefill_tps=math.nan
    )


def _step_s(header: ModelHeader, speeds: KernelSpeeds, n_tokens: int, *, use_extra_bufts: bool) -> float | None:
    """Seconds of a step of so many tokens, without attention; None if a type was not measured."""
    total_s, n_products = 0.0, 0
    for tensor in _used(header):
        if len(tensor.shape) > 1 and min(tensor.shape[:2]) > 1:
            rates = speeds.products.get(tensor.type)
            if not use_extra_bufts:
                rates = speeds.plain.get(tensor.type, rates or {})
            if not rates:
                return None
            n_products += 1
            total_s += _product_s(header, tensor, rates, n_tokens)
    if n_tokens > 1:  # prompts are computed in batches so large that nothing but products counts
        return total_s
    n_states = sum(layer.memory in {"state", "full and state"} for layer in read_layers(header).layers)
    n_operations = _TOKEN_OPERATIONS + n_states * _STATE_OPERATIONS + (header.n_layers - n_states) * _SMALL_OPERATIONS
    for count, per_s in ((n_operations, speeds.operations_per_s), (n_products, speeds.products_per_s)):
        total_s += count / per_s if per_s else 0.0
    return total_s


def _product_s(header: ModelHeader, tensor: Tensor, rates: dict[int, float], n_tokens: int) -> float:
    weights = math.prod(tensor.shape)
    if tensor.name in {"output.weight", "token_embd.weight"}:
        return weights / rates[1] if n_tokens == 1 else 0.0  # of a prompt only the last token has logits
    share = _share(header, tensor)
    if share == 1.0 or n_tokens == 1:
        return share * weights / rates[n_tokens]
    # Of a batch more experts are used than of a token, and each has fewer columns.
    used = max(share, 1.0 - (1.0 - share) ** n_tokens)
    columns = max(1.0, n_tokens * share / used)
    below = max(b for b in BATCHES if b <= columns)
    return used * weights / rates[below] * columns / below


def _share(header: ModelHeader, tensor: Tensor) -> float:
    """The part of a tensor that a token uses."""
    n_experts, n_used = header.hparam("expert_count"), header.hparam("expert_used_count")
    if n_experts and n_used and "_exps." in tensor.name:
        return min(1.0, n_used / n_experts)
    return 1.0


def _used(header: ModelHeader) -> list[Tensor]:
    """Tensors that a step computes with."""
    tables = set(_TABLES)
    if not any(t.name == "output.weight" for t in header.tensors):  # then the table of embeddings is the output as well
        tables.remove("token_embd.weight")
    return [t for t in header.tensors if t.name not in tables]


def _queries(n_head: int, n_head_kv: int) -> float:
    """Heads that ask the same keys."""
    return n_head / n_head_kv if n_head_kv else 0.0
