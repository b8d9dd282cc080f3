"""Reasoning formats of model families: detection in chat templates, and formatting of replies with reasoning."""

from __future__ import annotations

from typing import Final, Literal

import msgspec


class ReasoningFormat(msgspec.Struct, frozen=True):
    """Tags and white space that a model family generates around reasoning."""

    start_tag: str
    end_tag: str
    content_prefix: str = ""
    """Text before the content of every reply, with or without reasoning."""
    padding: str = "\n"
    """Text between the reasoning and its tags."""
    separator: str = "\n\n"
    """Text between the end tag and the content."""


# Tags from the chat templates in llama.cpp's repository. More specific formats come first.
REASONING_FORMATS: Final = (
    ReasoningFormat(
        "<|channel|>analysis<|message|>", "<|end|><|start|>assistant", "<|channel|>final<|message|>", "", ""
    ),  # gpt-oss
    ReasoningFormat("<|channel>thought", "<channel|>", separator=""),  # Gemma 4
    ReasoningFormat("[THINK]", "[/THINK]", padding="", separator=""),  # Ministral, Magistral
    ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>", padding="", separator=""),  # Command
    ReasoningFormat("<seed:think>", "</seed:think>"),
    ReasoningFormat("<mm:think>", "</mm:think>"),
    ReasoningFormat("<thinking>", "</thinking>"),  # Apriel
    ReasoningFormat("<think>", "</think>"),  # Qwen, DeepSeek, SmolLM, Granite, LFM, GLM, Nemotron, Kimi and most others
)

# Names of the template variables that switch reasoning on or off.
_SWITCH_VARIABLES: Final = ("enable_thinking", "thinking", "reasoning_effort", "reasoning_strength")


def detect_reasoning_format(template: str) -> ReasoningFormat | None:
    """Return the reasoning format whose tags occur in a chat template; None if the model does not reason."""
    return next((f for f in REASONING_FORMATS if f.end_tag in template or f.start_tag in template), None)


def can_switch_reasoning(template: str) -> bool:
    """Return whether a chat template has a variable that switches reasoning on or off."""
    return detect_reasoning_format(template) is not None and any(name in template for name in _SWITCH_VARIABLES)


def make_reasoning_variables(template: str, *, on: bool) -> dict[str, bool | str]:
    """Return the template variables that switch reasoning on or off.

    Some templates have levels of reasoning effort, in the variable `reasoning_effort` or `reasoning_strength`. Its
    value is "medium" or "high" if `on` is True, and "no_think" or "low" otherwise: the first of the two levels if it
    occurs in the template, else the second.
    """
    levels = ("medium", "high") if on else ("no_think", "low")
    effort = next((level for level in levels if level in template), levels[-1])
    return {"enable_thinking": on, "thinking": on, "reasoning_effort": effort, "reasoning_strength": effort}


ReplyPhase = Literal["start", "reasoning", "content"]
"""Position in a raw reply: before the start tag, in the reasoning, or in the content."""


def find_phase_after_prompt(reasoning_format: ReasoningFormat | None, prompt: str) -> ReplyPhase:
    """Return the phase in which a reply to `prompt` begins: "reasoning" if the prompt ends with the start tag."""
    if reasoning_format is None:
        return "content"
    return "reasoning" if prompt.rstrip().endswith(reasoning_format.start_tag) else "start"


def format_reply(
    reasoning_format: ReasoningFormat | None, reasoning: str, content: str, prompt: str = "", *,
    is_finished: bool = False,
) -> str:  # fmt: skip
    """Format a reply as the model would generate it after `prompt`: reasoning in its tags, then content.

    If `content` is empty, the end tag is omitted, so that the model can continue its reasoning. With `is_finished`, the
    end tag is always added, because a reply of an agent may consist of reasoning and tool calls only.
    """
    if reasoning_format is None:
        return content
    tags, prompt_end = reasoning_format, prompt.rstrip()
    if not reasoning and prompt_end.endswith(tags.start_tag):
        blank_line = tags.padding if prompt_end != prompt else 2 * tags.padding
        return f"{blank_line}{tags.end_tag}{tags.content_prefix}{tags.separator}{content}"
    if not reasoning or prompt_end.endswith(tags.end_tag):
        return tags.content_prefix + content
    start = "" if prompt_end.endswith(tags.start_tag) else tags.start_tag + tags.padding
    if not content and not is_finished:
        return start + reasoning
    return f"{start}{reasoning}{tags.padding}{tags.end_tag}{tags.content_prefix}{tags.separator}{content}"
