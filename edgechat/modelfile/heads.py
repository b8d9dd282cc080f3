"""Heads that draft tokens for a model: prediction layers (MTP) in its own file, and files that contain only heads.

The tensors and keys are those that llama.cpp reads (src/models/*.cpp of the pinned version).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from edgechat.modelfile.header import ModelHeader

HeadsKind = Literal["mtp", "eagle3", "assistant", "dflash"]

# Architectures for which llama.cpp can compute the prediction layers (LLM_GRAPH_TYPE_DECODER_MTP), and whether it
# accepts more than one such layer. With other numbers of layers, making a context for them ends the process.
_MTP_ARCHITECTURES: Final = {
    "bailingmoe3": False, "cohere2moe": False, "deepseek2": False, "deepseek32": False, "glm-dsa": False,
    "glm4moe": False, "hy_v3": True, "mimo2": True, "nemotron_h_moe": False, "qwen35": False, "qwen35moe": False,
    "step35": True,
}  # fmt: skip
# Architectures from whose recurrent state llama.cpp cannot remove rejected tokens (llm_arch_supports_rs_rollback).
_MTP_ARCHITECTURES_WITHOUT_ROLLBACK: Final = ("qwen3next",)
# Tensors without which llama.cpp ends the process when it makes a context for the prediction layers.
_MTP_TENSORS: Final = ("nextn.eh_proj", "nextn.enorm", "nextn.hnorm")
_EXPERT_TENSORS: Final = ("ffn_gate_inp",)
_LATENT_TENSORS: Final = ("attn_q_a", "attn_k_b", "ffn_gate_inp")
_MORE_MTP_TENSORS: Final = {
    "cohere2moe": _EXPERT_TENSORS, "deepseek2": _LATENT_TENSORS, "deepseek32": _LATENT_TENSORS,
    "glm-dsa": _LATENT_TENSORS, "glm4moe": _EXPERT_TENSORS, "mimo2": ("attn_qkv", "ffn_gate", "ffn_down", "ffn_up"),
    "nemotron_h_moe": _EXPERT_TENSORS, "qwen35moe": _EXPERT_TENSORS,
}  # fmt: skip
_KINDS_BY_ARCHITECTURE: Final[dict[str, HeadsKind]] = {
    "eagle3": "eagle3", "gemma4-assistant": "assistant", "dflash": "dflash",
}  # fmt: skip
_N_EAGLE3_LAYERS: Final = 3
"""Number of layers of the target whose output EAGLE-3 reads."""

_LABELS: Final[dict[HeadsKind, str]] = {
    "mtp": "MTP heads", "eagle3": "EAGLE-3 head", "assistant": "Gemma 4 assistant", "dflash": "DFlash head",
}  # fmt: skip


class DraftingHeads(msgspec.Struct, frozen=True, kw_only=True):
    """Heads in a model file that draft tokens for a target, the model that verifies the drafts."""

    kind: HeadsKind
    """`mtp`: prediction layers of an otherwise complete model, or of its target; others: a file of heads."""
    n_layers: int
    """Number of layers of the heads."""
    size_bytes: int
    """Size of the tensors that belong only to the heads, in bytes."""
    is_separate: bool
    """True if the file contains only the heads, for a target in another file."""
    problem: str = ""
    """Reason why edgechat cannot draft with the heads, as a predicate; "" if it can."""
    target_n_embd: int = 0
    """Width of the hidden rows of the target that the heads read; 0 if it is not in the file."""
    target_layers: tuple[int, ...] = ()
    """Layers of the target whose output the heads read; empty if they read only the last one."""
    n_vocab: int = 0
    """Number of tokens in the vocabulary of the target; 0 if it is not in the file."""

    @property
    def label(self) -> str:
        """Name of the heads for the user, such as `EAGLE-3 head`."""
        return _LABELS[self.kind]


def read_heads(header: ModelHeader) -> DraftingHeads | None:
    """Return the drafting heads in a model file; None if it has none."""
    kind = _KINDS_BY_ARCHITECTURE.get(header.architecture)
    if kind is not None:
        return _read_separate_heads(header, kind)
    n_layers, first_layer = header.n_layers, header.n_layers - header.hparam("nextn_predict_layers")
    if not 0 <= first_layer < n_layers or header.architecture == "granite-switch":  # its layer routes between adapters
        return None
    heads_tensors = [t for t in header.tensors if t.layer_index is not None and t.layer_index >= first_layer]
    if not heads_tensors:  # the converter left the heads out
        return None
    return DraftingHeads(
        kind="mtp", n_layers=n_layers - first_layer, size_bytes=sum(t.size_bytes for t in heads_tensors),
        is_separate=header.kind == "heads", problem=_find_mtp_problem(header, first_layer), target_n_embd=header.n_embd,
        n_vocab=header.n_vocab,
    )  # fmt: skip


def _find_mtp_problem(header: ModelHeader, first_layer: int) -> str:
    architecture, n_heads = header.architecture, header.n_layers - first_layer
    if architecture in _MTP_ARCHITECTURES_WITHOUT_ROLLBACK:
        return f"has MTP heads, but llama.cpp cannot undo tokens of the architecture {architecture!r}"
    if architecture not in _MTP_ARCHITECTURES:
        return f"has MTP heads of the architecture {architecture!r}, which llama.cpp cannot compute"
    if n_heads > 1 and not _MTP_ARCHITECTURES[architecture]:
        return f"has {n_heads} MTP heads; llama.cpp computes only one for the architecture {architecture!r}"
    if header.kind == "heads":
        return "contains only the MTP heads of a model; edgechat needs a file that also contains the model"
    names = {t.name for t in header.tensors}
    parts = (*_MTP_TENSORS, *_MORE_MTP_TENSORS.get(architecture, ()))
    layers = range(first_layer, header.n_layers)
    needed_names = (f"blk.{layer}.{part}.weight" for layer in layers for part in parts)
    missing_name = next((name for name in needed_names if name not in names), "")
    return f"has MTP heads without the tensor {missing_name!r}" if missing_name else ""


def _read_separate_heads(header: ModelHeader, kind: HeadsKind) -> DraftingHeads:
    architecture = header.architecture
    layers = header.metadata.get(f"{architecture}.target_layers")
    target_layers = tuple(n for n in layers if isinstance(n, int)) if isinstance(layers, list) else ()
    if kind == "eagle3":
        target_n_embd = header.hparam("target_hidden_size")
    else:
        target_n_embd = header.hparam("embedding_length_out") if kind == "assistant" else 0
    problem = ""
    if kind == "dflash":
        problem = "contains a DFlash head, with which edgechat cannot draft"
    elif kind == "eagle3" and len(target_layers) != _N_EAGLE3_LAYERS:
        problem = f"names {len(target_layers)} layers of its target; EAGLE-3 reads {_N_EAGLE3_LAYERS}"
    elif not target_n_embd:
        problem = "does not say how wide the hidden rows of its target are"
    return DraftingHeads(
        kind=kind, n_layers=header.n_layers, size_bytes=header.tensor_bytes, is_separate=True, problem=problem,
        target_n_embd=target_n_embd, target_layers=target_layers, n_vocab=_read_n_vocab(header),
    )  # fmt: skip


def _read_n_vocab(header: ModelHeader) -> int:
    """Return the size of the vocabulary from which the heads read tokens, which is that of the target."""
    table = next((t for t in header.tensors if t.name == "token_embd.weight"), None)
    if table is not None and len(table.shape) > 1:
        return table.shape[1]
    return header.n_vocab


def find_misfit(heads: DraftingHeads, target: ModelHeader) -> str:
    """Return why `heads` in a file of their own cannot draft for `target`, as a predicate; "" if they can.

    The width of the hidden rows, the layers and the size of the vocabulary are compared; files do not name the model
    for which heads were trained.
    """
    if heads.problem:
        return heads.problem
    if heads.kind == "assistant" and target.architecture != "gemma4":
        return f"drafts only for Gemma 4, and the model is of the architecture {target.architecture!r}"
    if heads.target_n_embd != target.n_embd:
        return f"reads hidden rows of {heads.target_n_embd} values, and those of the model have {target.n_embd}"
    n_layers = target.n_layers - target.hparam("nextn_predict_layers")
    if wrong_layers := [layer for layer in heads.target_layers if not 0 <= layer <= n_layers]:
        return f"reads layer {wrong_layers[0]}, and the model has {n_layers} layers"
    if heads.n_vocab and target.n_vocab and heads.n_vocab != target.n_vocab:
        return f"has a vocabulary of {heads.n_vocab:,} tokens, and the model has {target.n_vocab:,}"
    return ""
