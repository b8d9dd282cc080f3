"""Rotary position embeddings (RoPE): finds the models whose context YaRN can extend beyond the training length."""

from __future__ import annotations

from typing import Final

from edgechat.modelfile.header import ModelHeader

_MIN_N_CTX_TRAIN: Final = 16
"""Shortest plausible training length; a shorter value in a header is ignored as invalid."""
# Architectures whose graph in llama.cpp (src/models/*.cpp) passes all YaRN parameters to each rotation. The list omits
# models without RoPE, with M-RoPE (llama_model_rope_type), with recurrent states only, with sliding windows (which do
# not need longer positions), and with a scaling of their own.
_YARN_ARCHITECTURES: Final = frozenset((
    "arcee", "bailingmoe", "bailingmoe2", "command-r", "deepseek", "dots1", "ernie4_5", "ernie4_5-moe", "exaone",
    "gemma", "granite", "granitemoe", "internlm2", "llama", "maincoder", "mistral3", "nemotron", "olmo", "olmoe",
    "orion", "phi2", "plm", "qwen", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen3next", "seed_oss", "smollm3",
    "stablelm", "starcoder2", "xverse",
))  # fmt: skip
# Prefixes of the names of tensors that scale the frequencies, such as those of Llama 3.1.
_FREQUENCY_TENSORS: Final = ("rope_freqs.", "rope_factors_")


def supports_yarn(header: ModelHeader) -> bool:
    """Return whether YaRN can extend the context of a model, that is, whether it has plain RoPE without scaling."""
    return (
        header.architecture in _YARN_ARCHITECTURES
        and header.n_ctx_train >= _MIN_N_CTX_TRAIN
        and not header.is_embedding
        and not _has_own_scaling(header)
        and f"{header.architecture}.rope.dimension_sections" not in header.metadata
    )


def _has_own_scaling(header: ModelHeader) -> bool:
    start = f"{header.architecture}.rope."
    factors = [header.metadata.get(start + name) for name in ("scaling.factor", "scale_linear")]
    # llama.cpp ignores a scaling type without a factor, except for LongRoPE, whose factors are tensors.
    return (
        any(factor not in (None, 0, 1) for factor in factors)
        or header.metadata.get(start + "scaling.type") in ("yarn", "longrope")
        or start + "scaling.alpha" in header.metadata
        or any(part in tensor.name for tensor in header.tensors for part in _FREQUENCY_TENSORS)
    )
