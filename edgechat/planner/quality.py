"""How good answers of a model are, and how much of that a quant costs: figures where somebody measured, rules where not.

Everything is in points of the Artificial Analysis Intelligence Index, of which a doubling of the size brings about five:
for order, not for decimals.
"""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

from edgechat.catalogue.curated import CatalogueModel

# Two models of the catalogue have both figures: MMLU-Pro 64.05 and index 18 (Qwen3 4B 2507), 82.5 and 32 (Qwen3.5 9B).
_MMLU_AT: Final = (64.05, 18.0)
_INDEX_PER_MMLU: Final = (32.0 - 18.0) / (82.5 - 64.05)

# A line through the models of one generation that were measured (Qwen3: 0.75e9 weights 6.5, 2.0e9 13, 4.0e9 18, and
# 30B-A3B, an effective 10e9, 24.5 by its MMLU-Pro).
_INDEX_OF_1B: Final = 8.0
DOUBLING: Final = 4.9
"""Points that twice the weights bring."""
# What nobody measured is rather older: it must not win over what was measured at the same size.
_UNMEASURED: Final = 3.0

# Kullback-Leibler divergence from the full precision, Llama-3-8B, with an importance matrix where llama.cpp's tables
# have both (tools/perplexity/README.md of the pinned version).
_DIVERGENCE: Final = {
    "F32": 0.0, "F16": 0.000551, "BF16": 0.000551, "Q8_0": 0.001355, "Q6_K": 0.005452, "Q5_K_M": 0.010762,
    "Q5_K_S": 0.016595, "Q5_1": 0.018045, "Q5_0": 0.022239, "Q4_K_M": 0.028152, "Q4_K_S": 0.031951,
    "IQ4_NL": 0.035742, "IQ4_XS": 0.036334, "Q4_1": 0.071683, "Q4_0": 0.07194, "Q3_K_L": 0.073077,
    "Q3_K_M": 0.084358, "IQ3_M": 0.102534, "IQ3_S": 0.111278, "IQ3_XS": 0.138693, "IQ3_XXS": 0.183625,
    "Q3_K_S": 0.199821, "IQ2_M": 0.325989, "Q2_K": 0.332223, "Q2_K_S": 0.40336, "IQ2_S": 0.439197,
    "IQ2_XS": 0.54629, "IQ2_XXS": 0.812022, "IQ1_M": 1.393084, "IQ1_S": 2.254554,
}  # fmt: skip
_MEASURED_AT: Final = 8.03e9
# Below this, nothing shows how the loss goes on.
_SMALLEST: Final = 2e9
# From Llama-3-8B to Llama-2-70B the loss of perplexity shrinks with the size to the power of 0.39 (Q4_K_M: 2.8 % to
# 1.2 %) and of 0.77 (Q2_K: 56 % to 8.8 %).
_SIZE_EXPONENT: Final = 0.55
# A divergence that costs as much as half of the weights: 8B at about 3.5 bits (Q3_K_S) and 4B at 8 are even, which is
# where 4-bit and 3-bit quants of the larger model stop being worth it.
_DIVERGENCE_OF_HALF: Final = 0.2
# Of keys and values in Q8_0: ggml-org/llama.cpp#7412, at short contexts.
_KV_Q8_DIVERGENCE: Final = 0.001
# Names that stand beside llama.cpp's own: mixtures of other makers, counted as what they are built from.
_ALIASES: Final = {"MXFP4_MOE": "IQ4_NL", "MXFP4": "IQ4_NL", "NVFP4": "IQ4_NL", "Q8_K": "Q8_0"}


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How good a file is."""

    index: float
    """Of the model, in full precision."""
    is_measured: bool
    """False where the index is a rule's."""
    loss: float
    """Points that the quant costs; infinite if nobody knows it."""

    @property
    def points(self) -> float:
        """What is left."""
        return self.index - self.loss


def divergence(quant: str) -> float | None:
    """Of an 8B model's answers from those of the full precision; None for a quant that nobody measured."""
    name = quant.upper().removeprefix("UD-")
    base = re.sub("_(XL|L|M|S)$", "", name)
    return next((_DIVERGENCE[n] for n in (name, _ALIASES.get(base, base + "_M"), base) if n in _DIVERGENCE), None)


def loss(quant: str, n_params: int, *, kv_q8: bool = False) -> float:
    """Points of index that a quant of a model of so many weights costs; infinite for a quant that nobody knows."""
    known = divergence(quant)
    if known is None:
        return math.inf
    scale = float((_MEASURED_AT / max(_SMALLEST, n_params)) ** _SIZE_EXPONENT)
    return DOUBLING * (known * scale + (_KV_Q8_DIVERGENCE if kv_q8 else 0.0)) / _DIVERGENCE_OF_HALF


def index(n_params: int, n_active: int | None = None, known: CatalogueModel | None = None) -> tuple[float, bool]:
    """The index of a model, and whether it was measured.

    Of a mixture of experts with `n_active` weights for each token, the geometric mean of both counts stands for its
    size where nothing was measured.
    """
    if known is not None and known.aa_index is not None:
        return known.aa_index, True
    if known is not None and known.mmlu_pro is not None:
        return _MMLU_AT[1] + (known.mmlu_pro - _MMLU_AT[0]) * _INDEX_PER_MMLU, True
    size = math.sqrt(n_params * (n_active or n_params)) if n_params else 1.0
    return _INDEX_OF_1B + DOUBLING * math.log2(max(1.0, size) / 1e9) - _UNMEASURED, False


def quality(quant: str, n_params: int, n_active: int | None = None, known: CatalogueModel | None = None) -> Quality:
    """How good a file of this quant is; `known` is what the catalogue says of the model."""
    points, is_measured = index(n_params, n_active, known)
    return Quality(index=points, is_measured=is_measured, loss=loss(quant, n_params))
