"""Descriptions of the served models in the form of the Ollama API."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any, Final

from edgechat.errors import EdgechatError
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import read_header
from edgechat.serve.dialects.ollama import format_time
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.served_models import LATEST_TAG

API_VERSION: Final = "0.13.0"
"""Version of Ollama whose API the server follows. Some clients refuse a server with an older version than 0.6.4."""
# Served models are never unloaded. Ollama reports a time about 292 years ahead for such models.
_NO_EXPIRY_NS: Final = 292 * 365 * 86_400 * 10**9
_MAX_LISTED_VALUES: Final = 5


class ModelDescriber:
    """Describes the served models. Reads the header of each model file once."""

    def __init__(self) -> None:
        self._headers: dict[str, ModelHeader | None] = {}

    async def make_list_entry(self, queue: ModelQueue, name: str) -> dict[str, Any]:
        """Build the entry of a model in the list of models; `name` is its name or an alias."""
        return await self._make_entry(queue, name) | {
            "modified_at": _find_modification_time(queue), "capabilities": await find_capabilities(queue)
        }  # fmt: skip

    async def make_running_entry(self, queue: ModelQueue) -> dict[str, Any]:
        """Build the entry of a model in the list of loaded models."""
        return await self._make_entry(queue, queue.name) | {
            "expires_at": format_time(time.time_ns() + _NO_EXPIRY_NS),
            "size_vram": queue.plan.estimate.gpu if queue.plan is not None else 0,
            "context_length": queue.model_properties.n_ctx,
        }  # fmt: skip

    async def _make_entry(self, queue: ModelQueue, name: str) -> dict[str, Any]:
        name = make_tagged_name(name)
        return {
            "name": name, "model": name, "size": queue.model_properties.size_bytes, "digest": _make_digest(queue),
            "details": make_details(queue, await self._find_header(queue)),
        }  # fmt: skip

    async def make_description(self, queue: ModelQueue) -> dict[str, Any]:
        """Build the detailed description of a model."""
        properties, header = queue.model_properties, await self._find_header(queue)
        return {
            "modelfile": f"FROM {queue.path.name}\n", "parameters": f"num_ctx {properties.n_ctx}",
            "template": properties.chat_template or "", "details": make_details(queue, header),
            "model_info": make_model_info(queue, header), "capabilities": await find_capabilities(queue),
            "modified_at": _find_modification_time(queue),
        }  # fmt: skip

    async def _find_header(self, queue: ModelQueue) -> ModelHeader | None:
        """Return the header of the model file; None if the file was deleted after it was loaded."""
        if queue.name not in self._headers:
            try:
                self._headers[queue.name] = await asyncio.to_thread(read_header, queue.path)
            except EdgechatError:
                self._headers[queue.name] = None
        return self._headers[queue.name]


def make_tagged_name(name: str) -> str:
    """Return a model name with a tag, which Ollama's names always have."""
    return name if ":" in name else name + LATEST_TAG


def make_details(queue: ModelQueue, header: ModelHeader | None) -> dict[str, Any]:
    """Build the short description of a model."""
    properties, family = queue.model_properties, header.architecture if header is not None else ""
    return {
        "parent_model": "", "format": "gguf", "family": family, "families": [family] if family else [],
        "parameter_size": format_n_params(properties.n_params),
        "quantization_level": header.quant if header is not None else "",
        "context_length": properties.n_ctx,
    }  # fmt: skip


def make_model_info(queue: ModelQueue, header: ModelHeader | None) -> dict[str, Any]:
    """Return the metadata of a model file without names, templates and long lists.

    The context length is the largest that this server offers, because clients size their prompts by it.
    """
    if header is None:
        return {}
    omitted_keys = ("general.name", "tokenizer.chat_template")
    info = {
        key: value for key, value in header.metadata.items()
        if key not in omitted_keys and not (isinstance(value, list) and len(value) > _MAX_LISTED_VALUES)
    }  # fmt: skip
    properties = queue.model_properties
    return info | {
        "general.parameter_count": properties.n_params,
        f"{header.architecture}.context_length": properties.n_ctx,
    }  # fmt: skip


async def find_capabilities(queue: ModelQueue) -> list[str]:
    """Return what a model can do, in Ollama's terms. Every chat model can call tools."""
    if queue.kind != "text":
        return [queue.kind]
    can_reason = await asyncio.to_thread(lambda: queue.prompt_builder.can_reason)
    insert = ["insert"] if queue.model_properties.fim_tokens is not None else []
    return ["completion", "tools", *insert, *(["thinking"] if can_reason else [])]


def format_n_params(n_params: int) -> str:
    """Format the number of weights as Ollama does, such as `134.52M` or `4.0B`."""
    if n_params >= 10**9:
        return f"{n_params / 10**9:.1f}B"
    return f"{n_params / 10**6:.2f}M" if n_params >= 10**6 else f"{n_params / 10**3:.2f}K"


def _make_digest(queue: ModelQueue) -> str:
    """Return an identifier of a model in the form of Ollama's digests; it is not the hash of the file.

    Hashing a file of several gigabytes takes many seconds, and clients only compare digests.
    """
    identity = f"{queue.path.name}\n{queue.model_properties.size_bytes}\n{_find_modification_time(queue)}"
    return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()


def _find_modification_time(queue: ModelQueue) -> str:
    try:
        return format_time(queue.path.stat().st_mtime_ns)
    except OSError:  # the file was deleted after it was loaded
        return format_time(0)
