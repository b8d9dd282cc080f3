"""Reply formats of model families (reasoning, content and tool calls), as determined by llama.cpp's chat code."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from edgechat.errors import TemplateError
from edgechat.prompt.renderer import Renderer
from edgechat.runtime.tool_grammar import ToolGrammar, Trigger

ToolChoice = Literal["auto", "required", "none"]

# Sample messages for the request of a format, which does not depend on the messages.
_SAMPLE_MESSAGES: Final = [{"role": "user", "content": "Hello"}]
# Types of nodes in parsers that treat the whole output as content.
_PLAIN_NODES: Final = frozenset(("start", "end", "epsilon", "until", "tag", "sequence", "literal", "space"))


class TemplateInfo(msgspec.Struct, frozen=True):
    """A chat template and the tokens that it inserts."""

    source: str
    bos: str
    eos: str


class ReplyFormat(msgspec.Struct, frozen=True, kw_only=True):
    """Format of the replies to prompts with the same tools and template variables."""

    parser: str = ""
    """Serialised parser of the chat library; "" if the whole output is content."""
    parser_format: int = 0
    """Number of the parser's format in llama.cpp (`common_chat_format`)."""
    generation_prompt: str = ""
    """End of the prompt that the parser expects before the output, such as the start tag of the reasoning."""
    tool_grammar: ToolGrammar | None = None
    """Grammar of the tool calls; None without tools, or if llama.cpp has no grammar for this family."""
    has_native_tools: bool = False
    """True if the template describes tools and the parser recognises the calls."""
    control_tokens: tuple[str, ...] = ()
    """Control tokens in the output that the engine must not remove."""
    stop_strings: tuple[str, ...] = ()
    thinking_start: str = ""
    thinking_ends: tuple[str, ...] = ()
    """Possible end tags of the reasoning, after `thinking_start`; empty if the model does not reason."""
    is_fallback: bool = False
    """True if the chat library failed, perhaps temporarily, so the whole output is treated as content."""

    def is_reasoning_open(self, prompt: str) -> bool:
        """Return whether a prompt ends within the reasoning, after a start tag that is not followed by an end tag."""
        tail = prompt[-len(self.thinking_start) - len(self.generation_prompt) :]
        start = tail.rfind(self.thinking_start) if self.thinking_start else -1
        return start > max((tail.rfind(end) for end in self.thinking_ends), default=-1)


class FormatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of a prompt that determine the format of the reply."""

    think: bool
    variables: dict[str, Any] = {}
    tools: list[dict[str, Any]] = []
    """Functions in the format of the OpenAI API."""
    tool_choice: ToolChoice = "auto"
    allow_parallel: bool = False


def find_reply_format(renderer: Renderer, template: TemplateInfo, request: FormatRequest) -> ReplyFormat:
    """Return the format of the replies to prompts of a template.

    If the chat library cannot use the template, the whole output is treated as content. Raises TemplateError if it can
    use the template but not the tools, because the parameters of a tool have an invalid or unsupported schema.
    """
    plain_request = msgspec.structs.replace(request, tools=[])
    try:
        plain_result = apply_template(renderer, template, plain_request, _SAMPLE_MESSAGES)
    except TemplateError:
        return ReplyFormat(is_fallback=True)
    if not request.tools:
        return make_reply_format(plain_result, request, has_native_tools=False)
    result = apply_template(renderer, template, request, _SAMPLE_MESSAGES)
    has_native_tools = bool(result["grammar"]) or (
        request.tool_choice == "auto" and result["parser"] != plain_result["parser"]
    )
    return make_reply_format(result if has_native_tools else plain_result, request, has_native_tools=has_native_tools)


def apply_template(
    renderer: Renderer, template: TemplateInfo, request: FormatRequest, messages: Sequence[Mapping[str, Any]], *,
    continues_reply: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Apply a template with llama.cpp; see `apply` in `native/src/chat/edgechat_chat.h`. Raises TemplateError.

    If `continues_reply` is True, the last message is the beginning of the reply.
    """
    result: dict[str, Any] = renderer.call_chat_library(
        op="apply", template=template.source, bos=template.bos, eos=template.eos, messages=messages,
        tools=request.tools, tool_choice=request.tool_choice, parallel_tool_calls=request.allow_parallel,
        thinking=request.think, variables=request.variables, continues_reply=continues_reply,
        now_s=int(time.time()),
    )  # fmt: skip
    return result


def make_reply_format(result: Mapping[str, Any], request: FormatRequest, *, has_native_tools: bool) -> ReplyFormat:
    """Convert the result of `apply_template` to a reply format."""
    tool_grammar = None
    triggers = [Trigger(t["value"], is_pattern=t["type"] != "word") for t in result["triggers"]]
    if result["grammar"] and request.tools:
        is_lazy = result["grammar_is_lazy"]
        tool_grammar = ToolGrammar(
            gbnf=result["grammar"], delimiters=result["delimiters"], triggers=triggers if is_lazy else [],
            prompt_end=result["generation_prompt"], thinking_start=result["thinking_start"] if is_lazy else "",
            thinking_ends=result["thinking_ends"] if is_lazy else [], allow_parallel=request.allow_parallel,
        )  # fmt: skip
    tags = [result["thinking_start"], *result["thinking_ends"]]
    return ReplyFormat(
        parser="" if _is_plain(result["parser"], result["generation_prompt"]) else result["parser"],
        parser_format=result["format"], generation_prompt=result["generation_prompt"], tool_grammar=tool_grammar,
        has_native_tools=has_native_tools, control_tokens=tuple(filter(None, [*result["preserved_tokens"], *tags])),
        stop_strings=tuple(result["stop_strings"]), thinking_start=result["thinking_start"],
        thinking_ends=tuple(result["thinking_ends"]),
    )  # fmt: skip


def _is_plain(parser: str, generation_prompt: str) -> bool:
    """Return whether a parser treats all output after the generation prompt as content."""
    nodes = msgspec.json.decode(parser)["parsers"] if parser else []
    return all(
        node["type"] in _PLAIN_NODES and not node.get("delimiters")
        and generation_prompt.endswith(node.get("literal", ""))
        for node in nodes
    )  # fmt: skip
