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
from edgechat.planner.kv_types import DIVERGENCE_BY_KV_TYPE, KvType

# Reference point and slope of the linear conversion from MMLU-Pro scores to the quality index. They come from the two
# catalogue models that have both scores: Qwen3 4B 2507 (MMLU-Pro 64.05, index 18) and Qwen3.5 9B (MMLU-Pro 82.5, index
# 32).
_MMLU_REFERENCE: Final = (64.05, 18.0)
_INDEX_PER_MMLU: Final = (32.0 - 18.0) / (82.5 - 64.05)

# Quality index of a model with 1e9 weights, from a line through the measured models of one generation. Qwen3 has an
# index of 6.5 with 0.75e9 weights, 13 with 2.0e9, and 18 with 4.0e9; 30B-A3B has an effective size of 10e9 weights and
# an index of 24.5, converted from its MMLU-Pro score.
_INDEX_OF_1B: Final = 8.0
POINTS_PER_DOUBLING: Final = 4.9
"""Number of points that doubling the number of weights gains."""
# Points deducted from the index of an unmeasured model, which is probably older, so that a measured model of the same
# size ranks higher.
_UNMEASURED_DEDUCTION: Final = 3.0

# Kullback-Leibler divergence of Llama-3-8B's quants from full precision (tools/perplexity/README.md of the pinned
# llama.cpp), measured with an importance matrix if the table has values with and without one.
_DIVERGENCE_BY_QUANT: Final = {
    "F32": 0.0, "F16": 0.000551, "BF16": 0.000551, "Q8_0": 0.001355, "Q6_K": 0.005452, "Q5_K_M": 0.010762,
    "Q5_K_S": 0.016595, "Q5_1": 0.018045, "Q5_0": 0.022239, "Q4_K_M": 0.028152, "Q4_K_S": 0.031951,
    "IQ4_NL": 0.035742, "IQ4_XS": 0.036334, "Q4_1": 0.071683, "Q4_0": 0.07194, "Q3_K_L": 0.073077,
    "Q3_K_M": 0.084358, "IQ3_M": 0.102534, "IQ3_S": 0.111278, "IQ3_XS": 0.138693, "IQ3_XXS": 0.183625,
    "Q3_K_S": 0.199821, "IQ2_M": 0.325989, "Q2_K": 0.332223, "Q2_K_S": 0.40336, "IQ2_S": 0.439197,
    "IQ2_XS": 0.54629, "IQ2_XXS": 0.812022, "IQ1_M": 1.393084, "IQ1_S": 2.254554,
}  # fmt: skip
_DIVERGENCE_N_PARAMS: Final = 8.03e9
# There are no measurements below this number of weights, so the quality loss is assumed to be constant there.
_MIN_N_PARAMS: Final = 2e9
# The quality loss of a quant is proportional to n_params ** -_SIZE_EXPONENT. The perplexity losses of Llama-3-8B and
# Llama-2-70B give an exponent of 0.39 for Q4_K_M (2.8 % and 1.2 %) and 0.77 for Q2_K (56 % and 8.8 %).
_SIZE_EXPONENT: Final = 0.55
# Divergence that costs as many points as halving the number of weights. With this value, an 8B model at about 3.5 bits
# (Q3_K_S) has the quality of a 4B model at 8 bits, so quants of the 8B model below 4 bits are not worthwhile.
_HALVING_DIVERGENCE: Final = 0.2
# Quants by decreasing size; each is the smallest quant of its quality.
_QUANTS_BY_SIZE: Final = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
# Quant assumed for files of an unknown quant, because most downloads have it.
_USUAL_QUANT: Final = "Q4_K_M"
# Measured quant whose divergence is used for a quant without measurements.
_QUANT_ALIASES: Final = {"MXFP4_MOE": "IQ4_NL", "MXFP4": "IQ4_NL", "NVFP4": "IQ4_NL", "Q8_K": "Q8_0"}


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Quality score of one model file."""

    index: float
    """Score of the model in full precision."""
    is_measured: bool
    """True if the index comes from a benchmark; False if it is estimated from the model's size."""
    loss: float
    """Number of points lost by quantisation; infinite for an unknown quant."""

    @property
    def points(self) -> float:
        """Score of the file: the index minus the loss."""
        return self.index - self.loss


def divergence(quant: str) -> float | None:
    """Return the KL divergence of an 8B model in `quant` from full precision; None if the quant was not measured."""
    name = quant.upper().removeprefix("UD-")
    stem = re.sub("_(XL|L|M|S)$", "", name)
    names = (name, _QUANT_ALIASES.get(stem, stem + "_M"), stem)
    return next((_DIVERGENCE_BY_QUANT[name] for name in names if name in _DIVERGENCE_BY_QUANT), None)


def compute_next_quant_divergence(quant: str) -> float:
    """Return the divergence that the next smaller quant adds to `quant` in a small model.

    Small models are those below `_MIN_N_PARAMS` weights, with which the divergence of KV cache types was measured. For
    quants below Q3_K_M, the result is the step from Q3_K_M to Q2_K.
    """
    quant_divergence = divergence(quant) or _DIVERGENCE_BY_QUANT[_USUAL_QUANT]
    ladder = [_DIVERGENCE_BY_QUANT[name] for name in _QUANTS_BY_SIZE]
    next_divergence = next((d for d in ladder if d > quant_divergence), ladder[-1])
    return (next_divergence - min(quant_divergence, ladder[-2])) * _compute_size_factor(0)


def _compute_size_factor(n_params: int) -> float:
    """Return the factor between a quant's divergence for a model of `n_params` weights and that for an 8B model."""
    return float((_DIVERGENCE_N_PARAMS / max(_MIN_N_PARAMS, n_params)) ** _SIZE_EXPONENT)


def loss(quant: str, n_params: int) -> float:
    """Return the points lost by quantising a model of `n_params` weights; infinite for an unknown quant."""
    quant_divergence = divergence(quant)
    if quant_divergence is None:
        return math.inf
    return POINTS_PER_DOUBLING * quant_divergence * _compute_size_factor(n_params) / _HALVING_DIVERGENCE


def compute_divergence_loss(measured_divergence: float) -> float:
    """Return the points lost by a KL divergence from full precision that was measured with the model itself."""
    return POINTS_PER_DOUBLING * measured_divergence / _HALVING_DIVERGENCE


def kv_loss(kv_type: KvType) -> float:
    """Return the points lost by storing keys and values in `kv_type` instead of F16, measured with small models."""
    return POINTS_PER_DOUBLING * DIVERGENCE_BY_KV_TYPE[kv_type] / _HALVING_DIVERGENCE


def estimate_model_index(
    n_params: int, n_active: int | None = None, model: CatalogueModel | None = None
) -> tuple[float, bool]:
    """Return the index of a model in full precision, and whether the index was measured.

    For an unmeasured mixture of experts with `n_active` weights per token, the effective size is the geometric mean of
    `n_params` and `n_active`.
    """
    if model is not None and model.aa_index is not None:
        return model.aa_index, True
    if model is not None and model.mmlu_pro is not None:
        return _MMLU_REFERENCE[1] + (model.mmlu_pro - _MMLU_REFERENCE[0]) * _INDEX_PER_MMLU, True
    effective_n_params = math.sqrt(n_params * (n_active or n_params)) if n_params else 1.0
    doublings = math.log2(max(1.0, effective_n_params) / 1e9)
    return _INDEX_OF_1B + POINTS_PER_DOUBLING * doublings - _UNMEASURED_DEDUCTION, False


def quality(quant: str, n_params: int, n_active: int | None = None, model: CatalogueModel | None = None) -> Quality:
    """Return the quality of a model file; `model` is the model's catalogue entry, or None without an entry."""
    points, is_measured = estimate_model_index(n_params, n_active, model)
    return Quality(index=points, is_measured=is_measured, loss=loss(quant, n_params))
