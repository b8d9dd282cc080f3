"""Output of `edgechat models info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgechat.humanize import size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.catalogue.hub import Repository
    from edgechat.modelfile.header import ModelHeader


def print_info(model: str, *, as_json: bool) -> None:
    """Print the properties of a model file, a catalogue entry, or a repository on the hub with one model's header.

    Raises EdgechatError.
    """
    from edgechat.catalogue import curated, remote_header, resolve
    from edgechat.errors import ModelFileError
    from edgechat.modelfile.split import read_header

    catalogue_entry = curated.load().get(model.partition(":")[0].lower()) if "/" not in model else None
    path, remote = None, None
    try:
        path = resolve.find_model(model)
    except ModelFileError:
        if catalogue_entry is None and (remote := remote_header.find_remote_model(model)) is None:
            raise
    if path is not None:
        _print(header_facts(read_header(path)), as_json=as_json)
    elif catalogue_entry is not None:
        import msgspec

        facts = {
            name: value for name, value in msgspec.to_builtins(catalogue_entry).items() if value not in (None, (), {})
        }
        facts["shape"] = {name: value for name, value in facts.get("shape", {}).items() if value is not None}
        _print(facts | {"here": "no; download it with `edgechat models pull`"}, as_json=as_json)
    elif remote is not None:
        _print_remote(*remote, as_json=as_json)


def _print_remote(repo: Repository, header: ModelHeader, *, as_json: bool) -> None:
    facts = {"repository": repo.id, "revision": repo.revision, "licence": repo.licence or "?", "gated": repo.is_gated}
    _print(facts | header_facts(header), as_json=as_json, quants=repo)


def header_facts(header: ModelHeader) -> dict[str, Any]:
    """Return the properties in a header for display, in the order of the output. Empty ones are omitted."""
    from edgechat.modelfile.layers import read_layers

    parts, sizes = read_layers(header), dict[str, int]()
    for tensor in header.tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size_bytes
    memories = dict.fromkeys(layer.cache_kind for layer in parts.layers)
    first = next((layer for layer in parts.layers if layer.kv_width), None)
    facts: dict[str, Any] = {
        "file": header.path, "files": header.n_parts, "size_bytes": header.file_bytes, "kind": header.kind,
        "name": header.name, "architecture": header.architecture, "quant": header.quant, "weights": header.n_params,
        "layers": len(parts.layers), "memory": {memory: parts.count(memory) for memory in memories},
        "window": parts.window, "embedding": parts.n_embd,
        "feed_forward": max((layer.n_ff for layer in parts.layers), default=0),
        "heads": first.n_head if first else 0, "kv_heads": first.n_head_kv if first else 0,
        "key_length": first.key_length if first else 0, "value_length": first.value_length if first else 0,
        "kv_numbers_per_token": sum(layer.kv_width for layer in parts.layers),
        "experts": parts.n_experts, "experts_used": parts.n_experts_used, "vocabulary": parts.n_vocab,
        "tokenizer": parts.tokenizer, "context": parts.n_ctx_train, "rope_freq_base": parts.rope_freq_base,
        "rope_scaling": parts.rope_scaling, "chat_template": header.chat_template is not None,
        "licence": header.metadata.get("general.license", ""), "tensor_types": sizes, "tensors": len(header.tensors),
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value not in (0, 0.0, "", {})}


def _print(facts: dict[str, Any], *, as_json: bool, quants: Repository | None = None) -> None:
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(facts | ({"variants": quants.variants} if quants else {})).decode())
        return
    for name, value in facts.items():
        if name == "source":
            for source in value:
                _print_source(source)
        else:
            _line("size" if name == "size_bytes" else name, _format(name, value))
    for variant in quants.variants if quants else ():
        kind = "  (projector for images or audio)" if variant.is_projector else ""
        files = f"  {len(variant.files)} files" if len(variant.files) > 1 else ""
        _line(
            "available",
            f"{variant.quant or Path(variant.files[0].path).name:<14}{size(variant.size_bytes):>9}{files}{kind}",
        )


def _print_source(source: dict[str, Any]) -> None:
    _line("source", source.get("repo") or source.get("url") or source.get("package") or "")
    for quant, file in source.get("quants", {}).items():
        _line("", f"{quant:<12}{size(file['bytes']) if file.get('bytes') else ''}")


def _format(name: str, value: Any) -> str:
    if name == "size_bytes":
        return size(value)
    if name == "tensor_types":
        return ", ".join(f"{kind} {size(n)}" for kind, n in sorted(value.items(), key=lambda item: -item[1]))
    if isinstance(value, dict):
        return ", ".join(
            f"{number} {kind}" if name == "memory" else f"{kind} {number}" for kind, number in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _line(name: str, text: str) -> None:
    click.echo(escape_controls(f"{name.replace('_', ' '):<22}{text}"))
