"""Files with prediction heads that are damaged or do not fit their target, by what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tests.draft_models import copy_truth_to_eagle3, make_eagle3, make_llama, make_qwen35, turn_into_chain
from tests.gemma_drafts import make_assistant, make_gemma4
from tests.models import N_EMBD, write_tiny
from tests.nextn_models import make_nextn
from tests.tiny_files import TinyFile, draw_tensors


class HostilePair(NamedTuple):
    """Files of a target and, unless its own heads are meant, of the heads or the draft model."""

    target: Path
    draft: Path | None = None


def _write_target(
    change: Callable[[TinyFile], TinyFile | None], architecture: str = "qwen35"
) -> Callable[[Path], HostilePair]:
    def write(directory: Path) -> HostilePair:
        file = make_nextn(architecture)
        file = change(file) or file
        return HostilePair(file.write(directory / "target.gguf"))

    return write


def _write_eagle3(change: Callable[[TinyFile], TinyFile | None]) -> Callable[[Path], HostilePair]:
    def write(directory: Path) -> HostilePair:
        target = turn_into_chain(make_llama(n_layer=4)).write(directory / "target.gguf")
        file = copy_truth_to_eagle3(make_eagle3())
        file = change(file) or file
        return HostilePair(target, file.write(directory / "head.gguf"))

    return write


def _write_assistant(change: Callable[[TinyFile], TinyFile | None]) -> Callable[[Path], HostilePair]:
    def write(directory: Path) -> HostilePair:
        target = turn_into_chain(make_gemma4()).write(directory / "target.gguf")
        file = make_assistant()
        file = change(file) or file
        return HostilePair(target, file.write(directory / "assistant.gguf"))

    return write


def _remove(*names: str) -> Callable[[TinyFile], None]:
    """Remove the tensors whose names contain one of `names`."""

    def change(file: TinyFile) -> None:
        file.tensors = {k: v for k, v in file.tensors.items() if not any(name in k for name in names)}

    return change


def _set(**metadata: object) -> Callable[[TinyFile], None]:
    """Set metadata; `__` stands for a period in a key."""

    def change(file: TinyFile) -> None:
        file.metadata |= {key.replace("__", "."): value for key, value in metadata.items()}

    return change


def _reshape(name: str, *shape: int) -> Callable[[TinyFile], None]:
    def change(file: TinyFile) -> None:
        (full,) = [key for key in file.tensors if key.endswith(name)]
        file.tensors |= draw_tensors({full: shape}, seed=1)

    return change


def _fill(name: str, value: float) -> Callable[[TinyFile], None]:
    def change(file: TinyFile) -> None:
        for key, values in file.tensors.items():
            if key.endswith(name):
                file.tensors[key] = np.full_like(values, value)

    return change


def _all(*changes: Callable[[TinyFile], object]) -> Callable[[TinyFile], None]:
    def change(file: TinyFile) -> None:
        for each in changes:
            each(file)

    return change


def _map_draft_vocabulary(kind: type, values: list[int]) -> Callable[[TinyFile], None]:
    """Give an EAGLE-3 head a vocabulary of its own, whose tokens are `values` of the target's vocabulary."""

    def change(file: TinyFile) -> None:
        file.tensors |= draw_tensors({"output.weight": (len(values), N_EMBD)}, seed=1)
        file.tensors["d2t"] = np.array(values, dtype=kind)

    return change


def _split_head(file: TinyFile) -> None:
    """Store query, key and value of the head of mimo2 in three tensors, as its other layers have them."""
    joint = file.tensors.pop("blk.3.attn_qkv.weight")
    for name, rows in zip("qkv", np.split(joint, [N_EMBD, N_EMBD + N_EMBD // 2]), strict=True):
        file.tensors[f"blk.3.attn_{name}.weight"] = np.ascontiguousarray(rows)


def _write_for_sliding_target(directory: Path) -> HostilePair:
    target = write_tiny(directory / "target.gguf", "sliding")
    return HostilePair(target, make_eagle3(layers=(0, 1, 1)).write(directory / "head.gguf"))


def _write_assistant_for_llama(directory: Path) -> HostilePair:
    target = make_llama().write(directory / "target.gguf")
    return HostilePair(target, make_assistant().write(directory / "assistant.gguf"))


def _write_narrow_eagle3(directory: Path) -> HostilePair:
    """The head is as wide as another target, but uses the embeddings of this one."""
    target = make_llama(n_layer=4).write(directory / "target.gguf")
    file = make_eagle3()
    file.metadata |= {"embedding_length": 32, "attention.head_count": 2, "attention.head_count_kv": 1}
    for name, values in file.tensors.items():
        shape = tuple(32 if n == N_EMBD else n for n in values.shape)
        shape = (32, 64) if name.endswith("attn_q.weight") else shape
        shape = (16, 64) if name.endswith(("attn_k.weight", "attn_v.weight")) else shape
        file.tensors |= draw_tensors({name: shape}, seed=1)
    return HostilePair(target, file.write(directory / "head.gguf"))


HOSTILE_PAIRS: Final[dict[str, Callable[[Path], HostilePair]]] = {
    "no tensors of the heads": _write_target(_remove("blk.4.")),
    "no tensors of the heads, which the model may lack": _write_target(_remove("blk.3."), "glm4moe"),
    "no tensor of the joint": _write_target(_remove("nextn.eh_proj")),
    "no norm of the token": _write_target(_remove("nextn.enorm")),
    "no norm of the hidden row": _write_target(_remove("nextn.hnorm"), "glm4moe"),
    "no attention in the head": _write_target(_remove("blk.3.attn_q"), "glm4moe"),
    "wrong shape of the joint": _write_target(_reshape("nextn.eh_proj.weight", N_EMBD, N_EMBD)),
    "wrong shape of the head's output": _write_target(lambda file: file.tensors.update(
        draw_tensors({"blk.4.nextn.shared_head_head.weight": (17, N_EMBD)}, seed=1))
    ),
    "no heads, but their tensors": _write_target(_set(nextn_predict_layers=0)),
    "1,000 heads": _write_target(_set(nextn_predict_layers=1000)),
    "heads in all layers": _write_target(_set(nextn_predict_layers=5)),
    "two heads where llama.cpp takes one": _write_target(lambda file: make_qwen35(n_heads=2)),
    "four billion heads": _write_target(_set(nextn_predict_layers=2**32 - 1)),
    "split attention where llama.cpp takes it joint": _write_target(_split_head, "mimo2"),
    "NaN in the head": _write_target(_fill("nextn.eh_proj.weight", float("nan"))),
    "infinity in the head": _write_target(_fill("nextn.eh_proj.weight", float("inf"))),
    "EAGLE-3 with a layer outside the target": _write_eagle3(_set(target_layers=[1, 2, 99])),
    "EAGLE-3 with a negative layer": _write_eagle3(_set(target_layers=[-1, 1, 2])),
    "EAGLE-3 with the output of the last layer": _write_eagle3(_set(target_layers=[1, 2, 4])),
    "EAGLE-3 with two layers": _write_eagle3(_set(target_layers=[1, 2])),
    "EAGLE-3 without layers": _write_eagle3(lambda file: file.metadata.pop("target_layers") and None),
    "EAGLE-3 for another width": _write_eagle3(lambda file: make_eagle3(n_embd_target=128)),
    "EAGLE-3 without a width": _write_eagle3(lambda file: file.metadata.pop("target_hidden_size") and None),
    "EAGLE-3 of another width than the embeddings": _write_narrow_eagle3,
    "EAGLE-3 with two decoder layers": _write_eagle3(
        _all(_set(block_count=2), lambda f: f.tensors.update(
            {k.replace("blk.0.", "blk.1."): v for k, v in f.tensors.items() if k.startswith("blk.0.")}
        ))
    ),
    "EAGLE-3 with heads of two widths": _write_eagle3(
        _all(
            _set(attention__key_length=16, attention__value_length=32), _reshape("attn_v.weight", 64, 128),
            _reshape("attn_output.weight", N_EMBD, N_EMBD),
        )
    ),
    "EAGLE-3 with a vocabulary map of numbers with fractions": _write_eagle3(_map_draft_vocabulary(np.float32, [5, 6])),
    "EAGLE-3 with a vocabulary map outside the target": _write_eagle3(_map_draft_vocabulary(np.int64, [5, 99_999])),
    "EAGLE-3 with a negative vocabulary map": _write_eagle3(_map_draft_vocabulary(np.int64, [5, -1])),
    "EAGLE-3 with a short table of embeddings": _write_eagle3(
        lambda file: file.tensors.update(draw_tensors({"token_embd.weight": (17, N_EMBD)}, seed=1))
    ),
    "EAGLE-3 with a short output matrix": _write_eagle3(_all(
        lambda file: file.tensors.update(draw_tensors({"output.weight": (17, N_EMBD)}, seed=1)))
    ),
    "EAGLE-3 with NaN": _write_eagle3(_fill("fc.weight", float("nan"))),
    "EAGLE-3 for a model whose layers cannot be read": _write_for_sliding_target,
    "assistant for another architecture": _write_assistant_for_llama,
    "assistant for another width": _write_assistant(_set(embedding_length_out=96)),
    "assistant with heads of another width": _write_assistant(
        _all(
            _set(
                attention__key_length=32, attention__value_length=32, attention__key_length_swa=32,
                attention__value_length_swa=32, attention__head_count=2,
            ),
            lambda file: file.tensors.update(draw_tensors({
                "blk.0.attn_q_norm.weight": (32,), "blk.1.attn_q_norm.weight": (32,), "rope_freqs.weight": (16,)
            }, seed=1)),
        )
    ),
    "assistant with another number of KV heads": _write_assistant(_set(attention__head_count_kv=4)),
    "assistant without layers": _write_assistant(_set(nextn_predict_layers=0)),
    "assistant with too many layers": _write_assistant(_set(nextn_predict_layers=9)),
    "assistant with a shorter window": _write_assistant(_set(attention__sliding_window=8)),
    "assistant without a window": _write_assistant(_set(attention__sliding_window_pattern=[False, False])),
}  # fmt: skip
# With these, llama.cpp of the pinned version ends the process, unless edgechat refuses them before.
PAIRS_THAT_END_LLAMA: Final = (
    "no tensors of the heads, which the model may lack", "1,000 heads", "four billion heads",
    "two heads where llama.cpp takes one", "split attention where llama.cpp takes it joint",
    "EAGLE-3 with a layer outside the target", "EAGLE-3 with a negative layer",
    "EAGLE-3 with the output of the last layer", "EAGLE-3 of another width than the embeddings",
    "EAGLE-3 with two decoder layers", "EAGLE-3 with heads of two widths",
    "EAGLE-3 with a vocabulary map of numbers with fractions", "EAGLE-3 with a vocabulary map outside the target",
    "EAGLE-3 with a negative vocabulary map", "EAGLE-3 with a short table of embeddings",
    "EAGLE-3 for a model whose layers cannot be read", "assistant for another architecture",
    "assistant with heads of another width", "assistant with another number of KV heads",
    "assistant with too many layers", "assistant without a window",
)  # fmt: skip
