"""Plan of a model drafter: the model or the prediction heads that propose draft tokens, and their memory."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

DrafterKind = Literal["draft-model", "mtp", "eagle3", "assistant"]

# Cells of a drafter's context for each sequence. A drafter sees only the last tokens of a long text, so that its memory
# does not grow with the context of the model and it starts at once after a long prompt.
DRAFTER_CELLS: Final = 512
# Maximum number of tokens that a drafter computes at once. Its compute buffers grow with it, and at most half of its
# cells are computed before a draft. The graph of EAGLE-3 computes logits for all tokens of a batch.
DRAFTER_UBATCH: Final = 128
EAGLE3_UBATCH: Final = 16
# Hidden rows that are kept for each sequence. Heads that have not drafted for longer start again at the oldest row.
MAX_HIDDEN_ROWS: Final = 64
# Maximum number of tokens in a draft of a model.
MAX_MODEL_DRAFT_TOKENS: Final = 7
# Maximum number of sequences for which a model drafts at once; with more sequences, steps have no drafts.
MAX_DRAFTED_SEQS: Final = 4


class DrafterPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Options for loading a model drafter beside its target, the model that verifies the drafts, and its memory."""

    name: str = ""
    """Name of the draft model or of the heads for the user; "" if it is unknown."""
    is_named: bool = False
    """True if the user named this drafter."""
    kind: DrafterKind
    """`mtp`: prediction heads in the target's own file; `eagle3` and `assistant`: heads in a file of their own."""
    model_path: str = ""
    """Path of the draft model or of the heads; empty for `mtp`."""
    n_cells: int = DRAFTER_CELLS
    """Cells of the drafter's context for each sequence."""
    n_ubatch: int = DRAFTER_UBATCH
    """Maximum number of tokens that the drafter computes at once (the batch and the micro-batch of its context)."""
    n_seqs: int = 1
    max_tokens: int = MAX_MODEL_DRAFT_TOKENS
    """Maximum number of tokens in a draft."""
    weights: int = 0
    """Estimated CPU memory of the weights, in bytes."""
    mapped_weights: int = 0
    """Part of `weights` that is mapped from the model file."""
    kv_cache: int = 0
    """Estimated CPU memory of the context, in bytes."""
    compute: int = 0
    """Estimated CPU memory of compute buffers and outputs, in bytes."""
    gpu: int = 0
    """Estimated GPU memory of all buffers, in bytes."""
    bytes_per_cell: int = 0
    """Part of `compute`, or of `gpu`, for each token of the target's context: the attention mask of an assistant."""

    @property
    def cpu(self) -> int:
        """Estimated CPU memory of the drafter, in bytes."""
        return self.weights + self.kv_cache + self.compute

    @property
    def total(self) -> int:
        """Estimated memory of the drafter on the CPU and the GPU, in bytes."""
        return self.cpu + self.gpu

    def resize_target(self, n_added: int) -> DrafterPlan:
        """Return the plan for a target whose context is longer by `n_added` tokens; shorter if it is negative."""
        n_bytes = self.bytes_per_cell * n_added
        if self.gpu:
            return msgspec.structs.replace(self, gpu=self.gpu + n_bytes)
        return msgspec.structs.replace(self, compute=self.compute + n_bytes)
