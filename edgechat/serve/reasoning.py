"""Reasoning options of chat completions, in the forms of several APIs: on or off, and the limit of the reasoning."""

from __future__ import annotations

from typing import Final

from edgechat.config import Settings
from edgechat.prompt.thinking import is_thinking_on
from edgechat.serve.errors import ApiError
from edgechat.serve.schemas import ChatRequest, ReasoningOptions, ThinkingOptions

EFFORTS: Final = {
    "none": "off", "minimal": "off", "low": "low", "medium": "medium", "high": "high", "xhigh": "on", "max": "on",
}  # fmt: skip
"""Values of `reasoning_effort` that OpenAI's clients send, and the values of the setting `thinking` that they mean."""
# Values that some clients send for a missing value.
_NO_EFFORTS: Final = (None, "", "default")


def is_reasoning_enabled(body: ChatRequest, *, default: bool | None) -> bool:
    """Return whether the model reasons before it replies.

    The fields of the request override `default`. If neither has a value, reasoning is on. Raises ApiError for an
    unknown effort.
    """
    effort = find_effort(body)
    switch = _find_switch(body)
    if switch is not None:
        return switch
    if effort is not None:
        return EFFORTS[effort] != "off"
    return True if default is None else default


def find_server_default(settings: Settings) -> bool | None:
    """Return whether the settings of the server turn reasoning on; None if they do not decide."""
    return is_thinking_on(reasoning=settings.reasoning, thinking=settings.thinking, decode_tps=None)


def find_effort(body: ChatRequest) -> str | None:
    """Return the reasoning effort of a request; None if it has none. Raises ApiError for an unknown effort."""
    options = body.reasoning or ReasoningOptions()
    for param, effort in (("reasoning_effort", body.reasoning_effort), ("reasoning.effort", options.effort)):
        if effort in _NO_EFFORTS:
            continue
        if effort not in EFFORTS:
            message = f"{param}: must be one of {', '.join(EFFORTS)}, got {str(effort)[:40]!r}."
            raise ApiError(400, message, param=param.partition(".")[0])
        return effort
    return None


def choose_thinking(body: ChatRequest, settings: Settings) -> str | int | None:
    """Return the limit of the reasoning, as a value of the setting `thinking`; None for no limit.

    A number of tokens in the request overrides its effort, and both override the setting of the server. Raises ApiError
    for an unknown effort.
    """
    effort, options = find_effort(body), body.reasoning or ReasoningOptions()
    thinking = body.thinking if isinstance(body.thinking, ThinkingOptions) else ThinkingOptions()
    max_tokens = thinking.budget_tokens if thinking.budget_tokens is not None else options.max_tokens
    if max_tokens is not None:
        return int(max_tokens) if max_tokens >= 0 else None
    if effort is not None:
        return EFFORTS[effort]
    is_server_off = settings.thinking == "off" and (_find_switch(body) is not None or settings.reasoning is not None)
    return None if is_server_off else settings.thinking


def _find_switch(body: ChatRequest) -> bool | None:
    """Return the value of the first switch in a request; None if it has none."""
    template_variables, options = body.chat_template_kwargs or {}, body.reasoning or ReasoningOptions()
    thinking = body.thinking.type != "disabled" if isinstance(body.thinking, ThinkingOptions) else body.thinking
    switches = (
        template_variables.get("enable_thinking"), template_variables.get("thinking"), body.enable_thinking, thinking,
        options.enabled,
    )  # fmt: skip
    return next((bool(value) for value in switches if isinstance(value, int)), None)
