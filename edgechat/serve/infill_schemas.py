"""Request bodies of llama-server's own endpoints for completions, and of Mistral's endpoint for infilling."""

from __future__ import annotations

from typing import Any

from edgechat.serve.infill import InfillFile
from edgechat.serve.schemas import GenerationParams, Limit, TextInput


class NativeParams(GenerationParams, frozen=True, kw_only=True):
    """Fields that all of llama-server's own endpoints have."""

    n_predict: Limit | None = None
    """Maximum number of generated tokens, in place of `max_tokens`."""
    response_fields: list[str] | None = None
    """Paths of the fields of the response to return, such as `timings/prompt_n`; all if the list is empty."""
    n_probs: Any = None
    """Unsupported; refused."""


class NativeCompletionRequest(NativeParams, frozen=True, kw_only=True):
    """Request body of /completion."""

    prompt: TextInput


class InfillRequest(NativeParams, frozen=True, kw_only=True):
    """Request body of /infill."""

    input_prefix: str
    """Text before the gap."""
    input_suffix: str
    """Text after the gap."""
    input_extra: list[InfillFile] | None = None
    """Other files, the most important last."""
    prompt: str | None = None
    """Beginning of the text in the gap."""


class FimRequest(GenerationParams, frozen=True, kw_only=True):
    """Request body of /v1/fim/completions."""

    prompt: str
    """Text before the gap."""
    suffix: str | None = None
    """Text after the gap."""
    max_completion_tokens: Limit | None = None
