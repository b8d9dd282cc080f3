"""Reasoning formats of model families: splits replies into reasoning and content, and formats replies for a prompt."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from edgechat.engine.stop_strings import find_partial_match_length


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

    @property
    def control_tokens(self) -> list[str]:
        """Control tokens in the tags, which the engine must not remove from its output."""
        return find_control_tokens(self.start_tag + self.end_tag + self.content_prefix)


_CONTROL_TOKEN_PATTERN: Final = re.compile(r"<\|?/?[\w:]+\|?>|\[/?[A-Z_]+\]")


def find_control_tokens(tags: str) -> list[str]:
    """Return the substrings of `tags` that have the form of control tokens, such as <|end|>."""
    return _CONTROL_TOKEN_PATTERN.findall(tags)


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
_SWITCH_VARIABLES: Final = ("enable_thinking", "thinking", "reasoning_effort")


def detect_reasoning_format(template: str) -> ReasoningFormat | None:
    """Return the reasoning format whose tags occur in a chat template; None if the model does not reason."""
    return next((f for f in REASONING_FORMATS if f.end_tag in template or f.start_tag in template), None)


def can_switch_reasoning(template: str) -> bool:
    """Return whether a chat template has a variable that switches reasoning on or off."""
    return detect_reasoning_format(template) is not None and any(name in template for name in _SWITCH_VARIABLES)


def make_reasoning_variables(template: str, *, on: bool) -> dict[str, bool | str]:
    """Return the template variables that switch reasoning on or off.

    Some templates have levels of reasoning effort. `reasoning_effort` is the first level that occurs in the template:
    of "medium" and "high" if `on` is True, of "no_think" and "low" otherwise.
    """
    levels = ("medium", "high") if on else ("no_think", "low")
    effort = next((level for level in levels if level in template), levels[-1])
    return {"enable_thinking": on, "thinking": on, "reasoning_effort": effort}


ReplyPhase = Literal["start", "reasoning", "gap", "content"]
"""Position in a raw reply: before the start tag, in the reasoning, between reasoning and content, or in the content."""


def find_phase_after_prompt(reasoning_format: ReasoningFormat | None, prompt: str) -> ReplyPhase:
    """Return the phase in which a reply to `prompt` begins: "reasoning" if the prompt ends with the start tag."""
    if reasoning_format is None:
        return "content"
    return "reasoning" if prompt.rstrip().endswith(reasoning_format.start_tag) else "start"


class ReasoningSplitter:
    """Splits a streamed reply into reasoning and content. Holds back text that may be the beginning of a tag."""

    def __init__(
        self, reasoning_format: ReasoningFormat | None, phase: ReplyPhase, *, continues_reasoning: bool = False
    ) -> None:
        """`phase` is the phase of the first token. If `continues_reasoning` is True, leading newlines are kept."""
        self._format = reasoning_format
        self._phase: ReplyPhase = phase
        self._pending_text = ""
        self._tag_matched = False
        self._trims_newlines = phase == "reasoning" and not continues_reasoning

    def feed(self, text: str) -> tuple[str, str]:
        """Append generated text; return the new reasoning and content, without text that may be part of a tag."""
        self._pending_text += text
        return self._split(is_final=False)

    def finish(self) -> tuple[str, str]:
        """Finish the reply; return the text that was held back, as reasoning and content."""
        return self._split(is_final=True)

    def _split(self, *, is_final: bool) -> tuple[str, str]:
        reasoning = content = ""
        tags = self._format
        if tags is None:
            content, self._pending_text = self._pending_text, ""
            return "", content
        if self._phase == "start" and self._skip_tag(tags.start_tag, is_final=is_final):
            self._phase = "reasoning" if self._tag_matched else "gap"
            self._trims_newlines = self._tag_matched
        if self._phase == "reasoning":
            reasoning = self._take_reasoning(tags.end_tag, is_final=is_final)
        if self._phase == "gap" and self._skip_tag(tags.content_prefix, is_final=is_final):
            self._phase = "content"
        if self._phase == "content":
            content, self._pending_text = self._trim_newlines(self._pending_text), ""
        return reasoning, content

    def _skip_tag(self, tag: str, *, is_final: bool) -> bool:
        """Remove `tag` if the pending text begins with it; return False if more text is needed to decide."""
        text = self._pending_text.lstrip()
        self._tag_matched = bool(tag) and text.startswith(tag)
        if self._tag_matched:
            self._pending_text = text[len(tag) :]
        return self._tag_matched or is_final or not tag or not tag.startswith(text)

    def _take_reasoning(self, end_tag: str, *, is_final: bool) -> str:
        self._pending_text = self._trim_newlines(self._pending_text)
        end = self._pending_text.find(end_tag)
        if end >= 0:
            reasoning, self._pending_text = self._pending_text[:end], self._pending_text[end + len(end_tag) :]
            self._phase, self._trims_newlines = "gap", True
            return reasoning
        n_pending_chars = 0 if is_final else find_partial_match_length(self._pending_text, end_tag)
        reasoning = self._pending_text[: len(self._pending_text) - n_pending_chars]
        self._pending_text = self._pending_text[len(reasoning) :]
        return reasoning

    def _trim_newlines(self, text: str) -> str:
        """Remove the leading newlines of `text` if no other text has followed the last tag."""
        if self._trims_newlines:
            text = text.lstrip("\n")
            self._trims_newlines = not text
        return text


def format_reply(reasoning_format: ReasoningFormat | None, reasoning: str, content: str, prompt: str = "") -> str:
    """Format a reply as the model would generate it after `prompt`: reasoning in its tags, then content.

    If `content` is empty, the end tag is omitted, so that the model can continue its reasoning.
    """
    if reasoning_format is None:
        return content
    tags, prompt_end = reasoning_format, prompt.rstrip()
    if not reasoning or prompt_end.endswith(tags.end_tag):
        return tags.content_prefix + content
    start = "" if prompt_end.endswith(tags.start_tag) else tags.start_tag + tags.padding
    if not content:
        return start + reasoning
    return f"{start}{reasoning}{tags.padding}{tags.end_tag}{tags.content_prefix}{tags.separator}{content}"
