"""Marks that a model writes around the content of a reply, such as `<|START_RESPONSE|>`."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from edgechat.prompt.renderer import Renderer
from edgechat.prompt.reply_format import FormatRequest, ReplyFormat, TemplateInfo, apply_template

_CONTENT: Final = "edgechat-content"
# Tag after the content of an earlier reply: the end mark of the content, or the end of the reply.
_END_MARK: Final = re.compile(r"<[^<>\s]{2,40}>(?:[a-z]{2,20}<[^<>\s]{2,40}>)?")
# Mark of JSON content in the channel header of gpt-oss, and the tag at the end of that header, which follows the mark.
_CONSTRAINT, _MESSAGE = " <|constrain|>json", "<|message|>"
_CONSTRAINED_START: Final = re.compile(r"(<\|channel\|>final)(?: (?:<\|constrain\|>)?[A-Za-z0-9_-]+)(?=<\|message\|>)")


class ContentMarks(NamedTuple):
    """Strings that a model writes before and after the content of a reply, and that are not part of it."""

    starts: tuple[str, ...] = ()
    """Alternative marks before the content; empty if the model writes none."""
    end: str = ""
    """Optional mark after the content; "" if the model writes none."""


NO_MARKS: Final = ContentMarks()


def find_content_marks(
    renderer: Renderer, template: TemplateInfo, request: FormatRequest, reply_format: ReplyFormat
) -> ContentMarks:
    """Return the marks around the content of a reply, which the template writes and llama.cpp's parser removes.

    Raises TemplateError if the chat library fails.
    """
    user, reply = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": _CONTENT}
    prompt = apply_template(renderer, template, request, [user])["prompt"]
    text, _, rest = apply_template(renderer, template, request, [user, reply, user])["prompt"].partition(_CONTENT)
    is_open = reply_format.is_reasoning_open(prompt)
    thought_end = reply_format.thinking_ends[0] if is_open else ""

    def is_removed(start: str, end: str) -> bool:
        result: dict[str, Any] = renderer.call_chat_library(
            op="parse", parser=reply_format.parser, format=reply_format.parser_format, is_partial=False,
            generation_prompt=reply_format.generation_prompt, text=f"{thought_end}{start}{_CONTENT}{end}",
        )  # fmt: skip
        return bool(result["content"] == _CONTENT and not result["unparsed"] and not result["reasoning"])

    start = _skip_reasoning(text[_count_common(prompt, text) :], reply_format)
    if not start.strip() or prompt.endswith(start) or not reply_format.parser or not is_removed(start, ""):
        return NO_MARKS
    starts = [start]
    if remove_constraint(constrained_start := start.removesuffix(_MESSAGE) + _CONSTRAINT + _MESSAGE) == start:
        starts.append(constrained_start)
    end = match[0] if (match := _END_MARK.match(rest)) else ""
    return ContentMarks(tuple(starts), end if end and is_removed(start, end) else "")


def remove_constraint(output: str) -> str:
    """Remove the format name, such as `json`, that gpt-oss may write before its final content.

    llama.cpp's parser accepts this name only if llama.cpp also made the grammar for the format.
    """
    return _CONSTRAINED_START.sub(r"\1", output)


def _count_common(prompt: str, text: str) -> int:
    """Return the length of the common prefix of two prompts, without an incomplete tag at its end."""
    differences = (i for i, (x, y) in enumerate(zip(prompt, text, strict=False)) if x != y)
    n_common = next(differences, min(len(prompt), len(text)))
    tag_start = text.rfind("<", 0, n_common)
    return tag_start if tag_start > text.rfind(">", 0, n_common) else n_common


def _skip_reasoning(text: str, reply_format: ReplyFormat) -> str:
    ends = [text.rfind(tag) + len(tag) for tag in (*reply_format.thinking_ends, "</think>") if tag in text]
    return text[max(ends, default=0) :]
