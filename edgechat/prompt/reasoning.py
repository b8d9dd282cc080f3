"""Reasoning formats: separate reasoning from content in streamed output, and format earlier reasoning for a prompt."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from edgechat.engine.stop_strings import partial_match_length


class ReasoningFormat(msgspec.Struct, frozen=True):
    """Tags with which a model family marks its reasoning."""

    start_tag: str
    end_tag: str
    content_prefix: str = ""
    """Text before the content of every reply, with or without reasoning."""
    padding: str = "\n"
    """Text between the reasoning and its tags."""
    separator: str = "\n\n"
    """Text between the end tag and the content."""

    @property
    def control_tokens(self) -> list[str]:
        """Control tokens in the tags. The engine removes control tokens from its output unless asked to keep them."""
        return control_tokens_in(self.start_tag + self.end_tag + self.content_prefix)


_CONTROL_TOKEN: Final = re.compile(r"<\|?/?[\w:]+\|?>|\[/?[A-Z_]+\]")


def control_tokens_in(tags: str) -> list[str]:
    """Return the substrings of `tags` that look like control tokens."""
    return _CONTROL_TOKEN.findall(tags)


# Tags from the chat templates that llama.cpp collects; more specific formats first.
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
_SWITCH_VARIABLES: Final = ("enable_thinking", "thinking", "reasoning_effort")


def detect_reasoning_format(template: str) -> ReasoningFormat | None:
    """Return the reasoning format whose tags occur in a chat template, or None."""
    return next((f for f in REASONING_FORMATS if f.end_tag in template or f.start_tag in template), None)


def can_switch_reasoning(template: str) -> bool:
    """Return True if a chat template has a variable that switches reasoning off."""
    return detect_reasoning_format(template) is not None and any(name in template for name in _SWITCH_VARIABLES)


def reasoning_variables(template: str, *, on: bool) -> dict[str, bool | str]:
    """Return the template variables that switch reasoning on or off.

    A template with levels of reasoning effort gets "medium" (else "high") for on, "no_think" (else "low") for off.
    """
    levels = ("medium", "high") if on else ("no_think", "low")
    effort = next((level for level in levels if level in template), levels[-1])
    return {"enable_thinking": on, "thinking": on, "reasoning_effort": effort}


ReplyPhase = Literal["start", "reasoning", "gap", "content"]
"""Position in a raw reply: before any tag, in the reasoning, between reasoning and content, or in the content."""


def phase_after_prompt(reasoning_format: ReasoningFormat | None, prompt: str) -> ReplyPhase:
    """Return the phase in which output after `prompt` begins. Some templates write the start tag themselves."""
    if reasoning_format is None:
        return "content"
    return "reasoning" if prompt.rstrip().endswith(reasoning_format.start_tag) else "start"


class ReasoningSplitter:
    """Splits streamed output into reasoning and content. Holds back text that may be the beginning of a tag."""

    def __init__(
        self, reasoning_format: ReasoningFormat | None, phase: ReplyPhase, *, continues_reasoning: bool = False
    ) -> None:
        """Start in `phase`. `continues_reasoning`: keep leading newlines, because earlier reasoning precedes them."""
        self._format = reasoning_format
        self._phase: ReplyPhase = phase
        self._pending = ""
        self._matched = False
        self._trim = phase == "reasoning" and not continues_reasoning

    def feed(self, text: str) -> tuple[str, str]:
        """Append output; return the reasoning and the content that can no longer be part of a tag."""
        self._pending += text
        return self._split(final=False)

    def finish(self) -> tuple[str, str]:
        """End the output; return the pending text as reasoning and content."""
        return self._split(final=True)

    def _split(self, *, final: bool) -> tuple[str, str]:
        reasoning = content = ""
        tags = self._format
        if tags is None:
            content, self._pending = self._pending, ""
            return "", content
        if self._phase == "start" and self._skip_tag(tags.start_tag, final=final):
            self._phase = "reasoning" if self._matched else "gap"
            self._trim = self._matched
        if self._phase == "reasoning":
            reasoning = self._take_reasoning(tags.end_tag, final=final)
        if self._phase == "gap" and self._skip_tag(tags.content_prefix, final=final):
            self._phase = "content"
        if self._phase == "content":
            content, self._pending = self._trimmed(self._pending), ""
        return reasoning, content

    def _skip_tag(self, tag: str, *, final: bool) -> bool:
        """Remove `tag`, and blanks before it, from the pending text; return False while it may still be incomplete."""
        text = self._pending.lstrip()
        self._matched = bool(tag) and text.startswith(tag)
        if self._matched:
            self._pending = text[len(tag) :]
        return self._matched or final or not tag or not tag.startswith(text)

    def _take_reasoning(self, end_tag: str, *, final: bool) -> str:
        self._pending = self._trimmed(self._pending)
        end = self._pending.find(end_tag)
        if end >= 0:
            reasoning, self._pending = self._pending[:end], self._pending[end + len(end_tag) :]
            self._phase, self._trim = "gap", True
            return reasoning
        n_held = 0 if final else partial_match_length(self._pending, end_tag)
        reasoning = self._pending[: len(self._pending) - n_held]
        self._pending = self._pending[len(reasoning) :]
        return reasoning

    def _trimmed(self, text: str) -> str:
        """Return `text` without the newlines after a tag."""
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        return text


def format_reply(reasoning_format: ReasoningFormat | None, reasoning: str, content: str, prompt: str = "") -> str:
    """Return a reply as the model writes it after `prompt`. Without content, the reasoning stays open."""
    if reasoning_format is None:
        return content
    tags, prompt_end = reasoning_format, prompt.rstrip()
    if not reasoning or prompt_end.endswith(tags.end_tag):
        return tags.content_prefix + content
    start = "" if prompt_end.endswith(tags.start_tag) else tags.start_tag + tags.padding
    if not content:
        return start + reasoning
    return f"{start}{reasoning}{tags.padding}{tags.end_tag}{tags.content_prefix}{tags.separator}{content}"
