"""Fields of a request to a remote that follow from the settings: sampling, limits, reasoning and output format."""

from __future__ import annotations

from typing import Any, Final

from edgechat.config import Sampling, Settings
from edgechat.prompt.thinking import THINKING_OFF

_DEFAULTS: Final = Sampling()
_EFFORTS: Final = ("low", "medium", "high")
_SEEDS: Final = 1 << 32
CONTINUATION_FIELDS: Final[dict[str, Any]] = {"continue_final_message": True, "add_generation_prompt": False}
"""Fields that let vLLM and SGLang continue the last message instead of replying to it.

Some services refuse them; the client then repeats the request without them.
"""
JsonSchema = dict[str, Any] | bool
"""JSON schema, which can be a boolean."""


def make_options(settings: Settings, schema: JsonSchema | None = None, seed_offset: int = 0) -> dict[str, Any]:
    """Return the fields of a request for one reply.

    Sampling settings are only sent if they differ from their defaults, so that a server can use those that suit its
    model. `schema` is the JSON schema of the reply; None for free text. `seed_offset` distinguishes parallel replies.
    """
    options: dict[str, Any] = {
        name: value
        for name in Sampling.__struct_fields__
        if name != "seed" and (value := getattr(settings, name)) != getattr(_DEFAULTS, name)
    }
    if "repeat_penalty" in options:
        options["repetition_penalty"] = options["repeat_penalty"]  # its name in vLLM and SGLang
    if settings.seed is not None:
        options["seed"] = (settings.seed + seed_offset) % _SEEDS
    if settings.max_tokens is not None:
        options["max_tokens"] = settings.max_tokens
    options |= _make_reasoning_options(settings)
    if isinstance(schema, dict):
        options["response_format"] = {
            "type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema},
        }  # fmt: skip
    elif schema is not None:
        options["response_format"] = {"type": "json_object"}
    return options


def _make_reasoning_options(settings: Settings) -> dict[str, Any]:
    """Return the fields that turn reasoning on or off, or limit it; none if the settings leave it to the server."""
    thinking = settings.thinking
    if isinstance(thinking, str) and thinking in _EFFORTS:
        return {"reasoning_effort": thinking}
    if thinking is not None and str(thinking) in THINKING_OFF:
        return {"chat_template_kwargs": {"enable_thinking": False}}
    if thinking is None and settings.reasoning is None:
        return {}
    is_on = thinking is not None or bool(settings.reasoning)
    return {"chat_template_kwargs": {"enable_thinking": is_on}}
