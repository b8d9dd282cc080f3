"""Quality score of a model and quant, from published benchmarks if available, otherwise from the model's size.

Scores are points of the Artificial Analysis Intelligence Index. Doubling the number of weights gains about five points.
The scores are precise enough to rank models, but small differences mean nothing.
"""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

from edgechat.catalogue.curated import CatalogueModel

# Line that converts MMLU-Pro to the index. Two models of the catalogue have both scores: MMLU-Pro 64.05 and index 18
# (Qwen3 4B 2507), 82.5 and 32 (Qwen3.5 9B).
_MMLU_REFERENCE: Final = (64.05, 18.0)
_INDEX_PER_MMLU: Final = (32.0 - 18.0) / (82.5 - 64.05)

# Index of a model with 1e9 weights, from a line through the measured models of one generation (Qwen3: 0.75e9 weights
# 6.5, 2.0e9 13, 4.0e9 18, and 30B-A3B, with an effective 10e9 weights, 24.5 by its MMLU-Pro).
_INDEX_OF_1B: Final = 8.0
POINTS_PER_DOUBLING: Final = 4.9
"""Points gained by doubling the number of weights."""
# Deduction in points for an unmeasured model: it is probably older, so a measured model of the same size ranks first.
_UNMEASURED_DEDUCTION: Final = 3.0

# Kullback-Leibler divergence of Llama-3-8B's quants from full precision (tools/perplexity/README.md of the pinned
# llama.cpp), with an importance matrix where both were measured.
_DIVERGENCE: Final = {
    "F32": 0.0, "F16": 0.000551, "BF16": 0.000551, "Q8_0": 0.001355, "Q6_K": 0.005452, "Q5_K_M": 0.010762,
    "Q5_K_S": 0.016595, "Q5_1": 0.018045, "Q5_0": 0.022239, "Q4_K_M": 0.028152, "Q4_K_S": 0.031951,
    "IQ4_NL": 0.035742, "IQ4_XS": 0.036334, "Q4_1": 0.071683, "Q4_0": 0.07194, "Q3_K_L": 0.073077,
    "Q3_K_M": 0.084358, "IQ3_M": 0.102534, "IQ3_S": 0.111278, "IQ3_XS": 0.138693, "IQ3_XXS": 0.183625,
    "Q3_K_S": 0.199821, "IQ2_M": 0.325989, "Q2_K": 0.332223, "Q2_K_S": 0.40336, "IQ2_S": 0.439197,
    "IQ2_XS": 0.54629, "IQ2_XXS": 0.812022, "IQ1_M": 1.393084, "IQ1_S": 2.254554,
}  # fmt: skip
_DIVERGENCE_N_PARAMS: Final = 8.03e9
# Smallest size with measurements: below it, the loss is assumed to be constant.
_MIN_N_PARAMS: Final = 2e9
# From Llama-3-8B to Llama-2-70B, the perplexity loss shrinks with the size to the power of 0.39 (Q4_K_M: 2.8 % to
# 1.2 %) and 0.77 (Q2_K: 56 % to 8.8 %).
_SIZE_EXPONENT: Final = 0.55
# Divergence that costs as many points as halving the number of weights. With this value, an 8B model at about 3.5 bits
# (Q3_K_S) equals a 4B model at 8 bits, where quants below 4 bits of the larger model are no longer worthwhile.
_DIVERGENCE_OF_HALF: Final = 0.2
# Divergence of a KV cache in Q8_0 at short contexts (ggml-org/llama.cpp#7412).
_KV_Q8_DIVERGENCE: Final = 0.001
# Quants without measurements, with the measured quant whose divergence is used.
_ALIASES: Final = {"MXFP4_MOE": "IQ4_NL", "MXFP4": "IQ4_NL", "NVFP4": "IQ4_NL", "Q8_K": "Q8_0"}


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Quality score of one model file."""

    index: float
    """Score of the model in full precision."""
    is_measured: bool
    """False if the index is estimated from the size."""
    loss: float
    """Points lost by quantisation; infinite for an unknown quant."""

    @property
    def points(self) -> float:
        """Score of the file: the index minus the loss."""
        return self.index - self.loss


def divergence(quant: str) -> float | None:
    """Return the divergence of a quant of an 8B model from full precision; None if it was not measured."""
    name = quant.upper().removeprefix("UD-")
    base = re.sub("_(XL|L|M|S)$", "", name)
    return next((_DIVERGENCE[n] for n in (name, _ALIASES.get(base, base + "_M"), base) if n in _DIVERGENCE), None)


def loss(quant: str, n_params: int, *, kv_q8: bool = False) -> float:
    """Return the points lost by quantising a model of `n_params` weights; infinite for an unknown quant."""
    quant_divergence = divergence(quant)
    if quant_divergence is None:
        return math.inf
    scale = float((_DIVERGENCE_N_PARAMS / max(_MIN_N_PARAMS, n_params)) ** _SIZE_EXPONENT)
    return (
        POINTS_PER_DOUBLING * (quant_divergence * scale + (_KV_Q8_DIVERGENCE if kv_q8 else 0.0)) / _DIVERGENCE_OF_HALF
    )


def index(n_params: int, n_active: int | None = None, model: CatalogueModel | None = None) -> tuple[float, bool]:
    """Return the index of a model in full precision, and True if the index was measured.

    For an unmeasured mixture of experts with `n_active` weights per token, the effective size is the geometric mean of
    the two numbers of weights.
    """
    if model is not None and model.aa_index is not None:
        return model.aa_index, True
    if model is not None and model.mmlu_pro is not None:
        return _MMLU_REFERENCE[1] + (model.mmlu_pro - _MMLU_REFERENCE[0]) * _INDEX_PER_MMLU, True
    size = math.sqrt(n_params * (n_active or n_params)) if n_params else 1.0
    return _INDEX_OF_1B + POINTS_PER_DOUBLING * math.log2(max(1.0, size) / 1e9) - _UNMEASURED_DEDUCTION, False


def quality(quant: str, n_params: int, n_active: int | None = None, model: CatalogueModel | None = None) -> Quality:
    """Return the quality of a model file; `model` is its entry in the catalogue."""
    points, is_measured = index(n_params, n_active, model)
    return Quality(index=points, is_measured=is_measured, loss=loss(quant, n_params))
