"""Check whether a model or a file of heads can draft tokens for a target, the model that verifies the drafts."""

from __future__ import annotations

from typing import Final

from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.heads import read_heads
from edgechat.modelfile.heads_check import find_pair_problem
from edgechat.modelfile.shared_vocabulary import find_vocabulary_difference
from edgechat.modelfile.vocabulary import check_vocabulary

# Architectures with an encoder (llama_model_has_encoder), and those that do not generate texts token by token
# (llm_arch_is_diffusion).
_OTHER_ARCHITECTURES: Final = frozenset(("dream", "llada", "llada-moe", "rnd1", "t5", "t5encoder"))


def find_draft_problem(header: ModelHeader, target: ModelHeader) -> str:
    """Return why a draft model or a file of heads cannot draft for `target`, as a predicate; "" if it can.

    Heads in the file of the target itself are checked by `heads.read_heads`. Reads the vocabularies, which takes 0.2 to
    0.6 s for 150,000 tokens. Raises ModelFileError if a file cannot be read, or has a damaged vocabulary.
    """
    problem = _find_problem(header, target)
    if not problem:
        check_vocabulary(header)
    return problem


def _find_problem(header: ModelHeader, target: ModelHeader) -> str:
    if problem := find_kind_problem(header):
        return problem
    return find_pair_problem(header, target) if header.kind == "heads" else find_vocabulary_difference(target, header)


def find_kind_problem(header: ModelHeader) -> str:
    """Return why a file cannot draft for any target, as a predicate; "" if it is a model or heads that can draft."""
    if header.kind == "heads":
        heads = read_heads(header)
        return heads.problem if heads is not None else "contains no heads with which edgechat can draft"
    if header.kind != "model":
        return f"is no model, but of the kind {header.kind!r}"
    if header.is_embedding:
        return "is an embedding model, which generates no text"
    if header.architecture in _OTHER_ARCHITECTURES:
        return f"is of the architecture {header.architecture!r}, which does not generate text token by token"
    return ""
