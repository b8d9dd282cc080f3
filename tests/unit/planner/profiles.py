"""Model profiles and machines for the tests of the planner."""

from __future__ import annotations

import msgspec

from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.heads import DraftingHeads
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.load_plan import make_manual_plan
from edgechat.planner.load_variants import default_n_seqs
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions, MemoryEstimate
from edgechat.planner.quality import Quality, quality
from edgechat.planner.ranking import Candidate, Evaluation
from edgechat.planner.throughput import KernelSpeeds

GIB = 1 << 30
Q4_0, Q8_0, Q4_K, I8 = 2, 8, 12, 24
"""Type numbers of ggml; no backend repacks I8."""

# Measured on a machine with 2 cores: with AMX, the kernels of Q8_0 are faster than those of Q4_K.
WITH_AMX = KernelSpeeds(
    backend="cpu-sapphirerapids", n_threads=2, operations_per_s=1e7,
    product_rates={"Q4_K": {1: 11e9, 4: 8e9, 32: 3.1e9}, "Q8_0": {1: 17e9, 4: 14e9, 32: 11e9}},
)  # fmt: skip
WITHOUT_AMX = KernelSpeeds(
    backend="cpu-haswell", n_threads=2, operations_per_s=1e7,
    product_rates={"Q4_K": {1: 27e9, 4: 11e9, 32: 1.9e9}, "Q8_0": {1: 17e9, 4: 16e9, 32: 2.2e9}},
)  # fmt: skip
# Measured on two cores of an EPYC (Zen 4).
ZEN4 = KernelSpeeds(
    backend="cpu-zen4", n_threads=2, operations_per_s=1.03e6, products_per_s=1.86e6,
    product_rates={
        "Q4_0": {1: 39e9, 4: 27e9, 32: 4.4e9}, "Q4_K": {1: 44e9, 4: 23e9, 32: 4.6e9},
        "Q5_K": {1: 34e9, 4: 12e9, 32: 5.4e9}, "Q6_K": {1: 37e9, 4: 17e9, 32: 4.5e9},
        "Q8_0": {1: 27e9, 4: 28e9, 32: 3.7e9}, "IQ4_XS": {1: 37e9, 4: 12e9, 32: 5.7e9},
    },
)  # fmt: skip


def llama(
    weights: int = GIB, n_ctx_train: int = 32768, type_id: int = I8, path: str = "m.gguf", **metadata: object
) -> ModelProfile:
    """Return the profile of a llama of 16 layers whose weights are one tensor of `weights` bytes."""
    fields = {
        "general.architecture": "llama", "llama.block_count": 16, "llama.embedding_length": 2048,
        "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8, "llama.feed_forward_length": 8192,
        "llama.context_length": n_ctx_train, "llama.vocab_size": 32000,
    } | {f"llama.{key.replace('__', '.')}": value for key, value in metadata.items()}  # fmt: skip
    tensor = Tensor("blk.0.w", (2048, weights // 2048), type_id, 0, weights)
    return ModelProfile.from_header(ModelHeader(path, weights, 3, fields, {}, (tensor,), 0))


def with_layers(profile: ModelProfile, layer_bytes: int) -> ModelProfile:
    """Return the profile with one tensor of `layer_bytes` for each of 16 layers."""
    tensors = tuple(Tensor(f"blk.{i}.w", (2048, layer_bytes // 2048), I8, 0, layer_bytes) for i in range(16))
    return profile.with_tensors(profile.path, tensors)


def options(profile: ModelProfile, n_ctx: int, **changes: object) -> LoadOptions:
    return LoadOptions(n_ctx=n_ctx, n_seqs=default_n_seqs(profile), **changes)  # type: ignore[arg-type]


def machine(available_bytes: int, **more: object) -> Machine:
    return Machine(available_bytes=available_bytes, n_threads=2, **more)  # type: ignore[arg-type]


def candidates() -> list[Candidate]:
    """Return models of four sizes in four quants each."""
    bits_per_weight = {"Q2_K": 3.16, "Q4_K_M": 4.89, "Q8_0": 8.5, "F16": 16.0}
    models = []
    for billions in (1, 3, 8, 30):
        for quant, bits in bits_per_weight.items():
            name = f"{billions}-{quant}"
            profile = llama(weights=int(billions * 1e9 * bits / 8) // 2048 * 2048, path=name)
            score = quality(quant, billions * 10**9)
            models.append(Candidate(name=name, quant=quant, profile=profile, quality=score))
    return models


def two_quants() -> list[Candidate]:
    """Return one model of about 10^9 weights in Q4_K_M and in Q8_0."""
    return [
        Candidate(
            name=quant, quant=quant, quality=quality(quant, 10**9),
            profile=llama().with_tensors(
                "m.gguf", (Tensor("blk.0.w", (2048, 500_000), type_id, 0, int(1.024e9 * bits / 8)),)
            ),
        )
        for quant, type_id, bits in (("Q4_K_M", Q4_K, 4.5), ("Q8_0", Q8_0, 8.5))
    ]  # fmt: skip


def make_evaluation(name: str, *, points: float, seconds: float | None, weights: int = GIB) -> Evaluation:
    """Return the evaluation of a model that fits, with the given quality and time of a typical turn."""
    quant = name.partition(":")[2]
    score = Quality(index=points, is_measured=True, loss=0.0)
    candidate = Candidate(name=name, quant=quant, profile=llama(path=name), quality=score)
    memory = MemoryEstimate(weights=weights, repacked_weights=0, kv_cache=0, compute=0)
    load_plan = make_manual_plan(name, n_threads=1, n_ctx=8192)
    return Evaluation(
        candidate=candidate, plan=load_plan, memory=memory, speed=None, points=points, verdict="fits",
        ranking_s=seconds,
    )  # fmt: skip


def with_heads(profile: ModelProfile, n_heads: int = 1) -> ModelProfile:
    """Return the profile of a model of 16 layers whose last `n_heads` layers predict further tokens."""
    layers = [
        msgspec.structs.replace(layer, cache_kind="none") if i >= 16 - n_heads else layer
        for i, layer in enumerate(profile.layers)
    ]
    heads = DraftingHeads(kind="mtp", n_layers=n_heads, size_bytes=1, is_separate=False)
    return msgspec.structs.replace(
        with_layers(profile, 64 << 20), layers=tuple(layers), n_skipped_layers=n_heads, heads=heads
    )
