"""Print the properties of a model for `edgechat models info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.json_output import echo_json
from edgechat.humanize import format_size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.catalogue.hub import Repository
    from edgechat.modelfile.header import ModelHeader
    from edgechat.modelfile.heads import DraftingHeads

# Labels of the properties whose JSON names would not be clear labels.
_LABELS: Final = {
    "size_bytes": "size", "weights": "parameters", "memory": "layers by cache kind",
    "window": "sliding window", "embedding": "embedding size", "feed_forward": "feed-forward size",
    "kv_numbers_per_token": "KV elements per token", "vocabulary": "vocabulary size", "context": "context length",
    "experts_used": "experts per token", "kv_heads": "KV heads", "rope_freq_base": "RoPE base frequency",
    "rope_scaling": "RoPE scaling", "drafting_heads": "heads for drafts",
}  # fmt: skip


def print_info(model: str, *, as_json: bool) -> None:
    """Print the properties of an installed model, a catalogue model, or a model on the hub. Raises EdgechatError."""
    from edgechat.catalogue import curated, remote_header, resolve
    from edgechat.errors import ModelFileError
    from edgechat.modelfile.split import read_header

    catalogue_entry = curated.load_catalogue().get(model.partition(":")[0].lower()) if "/" not in model else None
    path, remote = None, None
    try:
        path = resolve.find_model(model)
    except ModelFileError:
        resolve.check_is_not_remote(model)
        if catalogue_entry is None and (remote := remote_header.find_remote_model(model)) is None:
            raise
    if path is not None:
        _print_facts(read_header_facts(header := read_header(path)), as_json=as_json)
        if not as_json:
            _print_speed(model, header)
    elif catalogue_entry is not None:
        curated.check_quant(catalogue_entry, model.partition(":")[2])
        if not as_json:
            from edgechat.cli.catalogue_info import print_properties

            print_properties(catalogue_entry)
            return
        import msgspec

        facts = {
            name: value for name, value in msgspec.to_builtins(catalogue_entry).items() if value not in (None, (), {})
        }
        facts["shape"] = {name: value for name, value in facts.get("shape", {}).items() if value is not None}
        _print_facts(facts | {"here": "no; download it with `edgechat models pull`"}, as_json=True)
    elif remote is not None:
        _print_remote(*remote, as_json=as_json)


def _print_remote(repo: Repository, header: ModelHeader, *, as_json: bool) -> None:
    facts = {"repository": repo.id, "revision": repo.revision, "licence": repo.licence or "?", "gated": repo.is_gated}
    _print_facts(facts | read_header_facts(header), as_json=as_json, repo=repo)


def read_header_facts(header: ModelHeader) -> dict[str, Any]:
    """Return the properties of a model file from its header, in display order and without empty values."""
    from edgechat.modelfile.heads import read_heads
    from edgechat.modelfile.layers import read_layers

    model_layers, type_bytes = read_layers(header), dict[str, int]()
    for tensor in header.tensors:
        type_bytes[tensor.type] = type_bytes.get(tensor.type, 0) + tensor.size_bytes
    cache_kinds = dict.fromkeys(layer.cache_kind for layer in model_layers.layers)
    kv_layer = next((layer for layer in model_layers.layers if layer.kv_width), None)
    heads = read_heads(header)
    facts: dict[str, Any] = {
        "file": header.path, "files": header.n_parts, "size_bytes": header.file_bytes, "kind": header.kind,
        "name": header.name, "architecture": header.architecture, "quant": header.quant, "weights": header.n_params,
        "layers": len(model_layers.layers), "memory": {kind: model_layers.count_layers(kind) for kind in cache_kinds},
        "window": model_layers.window, "embedding": model_layers.n_embd,
        "feed_forward": max((layer.n_ff for layer in model_layers.layers), default=0),
        "heads": kv_layer.n_head if kv_layer else 0, "kv_heads": kv_layer.n_head_kv if kv_layer else 0,
        "key_length": kv_layer.key_length if kv_layer else 0, "value_length": kv_layer.value_length if kv_layer else 0,
        "kv_numbers_per_token": sum(layer.kv_width for layer in model_layers.layers),
        "experts": model_layers.n_experts, "experts_used": model_layers.n_experts_used,
        "vocabulary": model_layers.n_vocab, "tokenizer": model_layers.tokenizer, "context": model_layers.n_ctx_train,
        "rope_freq_base": model_layers.rope_freq_base, "rope_scaling": model_layers.rope_scaling,
        "chat_template": header.chat_template is not None, "licence": header.metadata.get("general.license", ""),
        "drafting_heads": _describe_heads(heads) if heads is not None else {},
        "tensor_types": type_bytes, "tensors": len(header.tensors),
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value not in (0, 0.0, "", {})}


def _describe_heads(heads: DraftingHeads) -> dict[str, Any]:
    """Return the properties of drafting heads by JSON name, without empty values."""
    properties = {
        "kind": heads.kind, "name": heads.label, "layers": heads.n_layers, "size_bytes": heads.size_bytes,
        "usable": not heads.problem, "problem": heads.problem, "target_embedding": heads.target_n_embd,
        "target_layers": list(heads.target_layers),
    }  # fmt: skip
    return {name: value for name, value in properties.items() if value not in (0, "", []) or name == "usable"}


def _format_heads(heads: dict[str, Any]) -> str:
    """Format the result of `_describe_heads` for the user: `MTP heads in 1 layer, 12.6 MB`."""
    n_layers = heads.get("layers", 0)
    text = f"{heads['name']}: {n_layers} layer{'' if n_layers == 1 else 's'}, {format_size(heads['size_bytes'])}"
    if heads["kind"] in {"eagle3", "assistant"}:
        text += f", for models with an embedding size of {heads.get('target_embedding', 0):,}"
    return f"{text}; the file {heads['problem']}" if heads.get("problem") else text


def _print_facts(facts: dict[str, Any], *, as_json: bool, repo: Repository | None = None) -> None:
    if as_json:
        echo_json(facts | ({"variants": repo.variants} if repo else {}))
        return
    for name, value in facts.items():
        _print_line(_LABELS.get(name, name.replace("_", " ")), _format_value(name, value))
    for variant in repo.variants if repo else ():
        projector_note = "  (projector for images or audio)" if variant.is_projector else ""
        n_files_text = f"  {len(variant.files)} files" if len(variant.files) > 1 else ""
        name = variant.quant or Path(variant.files[0].path).name
        _print_line("available", f"{name:<14}{format_size(variant.size_bytes):>9}{n_files_text}{projector_note}")


def _print_speed(name: str, header: ModelHeader) -> None:
    """Print the predicted decode speed of an installed model, if the speed of this machine was measured."""
    from edgechat.cli.session_factory import load_settings
    from edgechat.models.selection import evaluate_all, make_candidate

    if header.kind == "model" and not header.is_embedding:
        [evaluation] = evaluate_all([make_candidate(name, header)], load_settings())
        if evaluation.speed is not None:
            _print_line("decode speed", f"{evaluation.speed.decode_tps:.3g} tokens/s (predicted for this machine)")


def _format_value(name: str, value: Any) -> str:
    if name == "size_bytes":
        return format_size(value)
    if name == "tensor_types":
        return ", ".join(f"{kind} {format_size(n)}" for kind, n in sorted(value.items(), key=lambda item: -item[1]))
    if isinstance(value, dict):
        return _format_heads(value) if name == "drafting_heads" else ", ".join(
            f"{number} {kind}" if name == "memory" else f"{kind} {number}" for kind, number in value.items()
        )  # fmt: skip
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_line(label: str, text: str) -> None:
    click.echo(escape_controls(f"{label:<22}{text}"))
