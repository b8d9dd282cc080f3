"""Formats of the replies of one loaded model, requested from the chat library on first use and then cached."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from edgechat.errors import EngineDiedError, TemplateError
from edgechat.prompt import reasoning
from edgechat.prompt.call_enforcement import CallEnforcement, find_call_enforcement
from edgechat.prompt.content_marks import NO_MARKS, ContentMarks, find_content_marks
from edgechat.prompt.renderer import Renderer
from edgechat.prompt.reply_format import FormatRequest, ReplyFormat, TemplateInfo, ToolChoice, find_reply_format

# Maximum number of cached formats; one per set of tools and options.
_MAX_REPLY_FORMATS: Final = 48
# Time after which a format is requested again if the chat library failed. It may always fail with this template, or the
# failure may be temporary, because the machine was busy or short of memory.
_FALLBACK_S: Final = 60.0
# Sample tool for checking whether the template supports tools.
_SAMPLE_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "lookup", "description": "Look up a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}  # fmt: skip
_NOTHING_ENFORCED: Final = CallEnforcement(*[False] * len(CallEnforcement._fields))


class PromptOptions(NamedTuple):
    """Template options of one prompt."""

    think: bool
    """True to enable reasoning before the content; ignored if the template cannot turn reasoning on or off."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions that the model may call, in the format of the OpenAI API."""
    tool_choice: ToolChoice = "auto"
    allow_parallel: bool = False
    """Whether one reply may have several tool calls."""
    enforced_tools: Sequence[Mapping[str, Any]] | None = None
    """`tools` with the schemas that the grammar enforces; None if the grammar enforces the schemas in `tools`."""


class ReplyFormats:
    """Formats of the replies to prompts of one template. Thread-safe."""

    def __init__(self, renderer: Renderer, template: TemplateInfo) -> None:
        self._renderer = renderer
        self._template = template
        self._formats: dict[bytes, tuple[ReplyFormat, float]] = {}
        """Formats and the times when they expire (on the monotonic clock), by encoded request."""
        self._content_marks: dict[bool, ContentMarks] = {}
        self._lock = threading.Lock()

    def make_request(self, options: PromptOptions) -> FormatRequest:
        """Build the request for the format of the replies to prompts with these options."""
        return FormatRequest(
            think=options.think,
            variables=dict(reasoning.make_reasoning_variables(self._template.source, on=options.think)),
            tools=[dict(t) for t in (options.tools if options.enforced_tools is None else options.enforced_tools)],
            tool_choice=options.tool_choice, allow_parallel=options.allow_parallel,
        )  # fmt: skip

    def find(self, options: PromptOptions) -> ReplyFormat:
        """Return the format of the replies to prompts with these options.

        Raises TemplateError if the chat library cannot use the tools, and EngineDiedError.
        """
        request = self.make_request(options)
        key = msgspec.json.encode(request)
        with self._lock:
            reply_format, expires_at = self._formats.get(key, (None, 0.0))
            if reply_format is None or time.monotonic() > expires_at:
                reply_format = find_reply_format(self._renderer, self._template, request)
                if len(self._formats) >= _MAX_REPLY_FORMATS:
                    self._formats.pop(next(iter(self._formats)))
                expires_at = time.monotonic() + _FALLBACK_S if reply_format.is_fallback else math.inf
                self._formats[key] = reply_format, expires_at
            return reply_format

    def prepare(self, options: PromptOptions) -> None:
        """Find the format for these options in the background, so that the first reply does not wait for it."""

        def find() -> None:
            with contextlib.suppress(TemplateError, EngineDiedError):  # the first prompt reports the error
                self.find(options)

        threading.Thread(target=find, name="find reply format", daemon=True).start()

    def find_content_marks(self, options: PromptOptions) -> ContentMarks:
        """Return the marks around the content of replies to prompts with these options. Raises EngineDiedError.

        Return `NO_MARKS` if the chat library fails.
        """
        plain_options = PromptOptions(options.think)
        if options.think not in self._content_marks:
            request = self.make_request(plain_options)
            try:
                reply_format = _check_is_known(self.find(plain_options))
                marks = find_content_marks(self._renderer, self._template, request, reply_format)
            except TemplateError:
                return NO_MARKS
            self._content_marks[options.think] = marks
        return self._content_marks[options.think]

    @property
    def has_native_tools(self) -> bool:
        """Whether the template describes tools and the format of the calls is known. Raises EngineDiedError."""
        try:
            return self.find(PromptOptions(think=False, tools=[_SAMPLE_TOOL])).has_native_tools
        except TemplateError:
            return False

    @functools.cached_property
    def _capabilities(self) -> Mapping[str, Any]:
        template = self._template
        capabilities: Mapping[str, Any] = self._renderer.call_chat_library(
            op="capabilities", template=template.source, bos=template.bos, eos=template.eos
        )
        return capabilities

    @property
    def can_call_several_tools(self) -> bool:
        """Whether the template accepts replies with several tool calls. Raises EngineDiedError."""
        with contextlib.suppress(TemplateError):
            return bool(self._capabilities["supports_parallel_tool_calls"])
        return False

    @property
    def call_enforcement(self) -> CallEnforcement:
        """Parts of the arguments' schemas that the grammars of native tool calls enforce. Raises EngineDiedError."""
        with contextlib.suppress(TemplateError):
            return self._call_enforcement
        return _NOTHING_ENFORCED

    @functools.cached_property
    def _call_enforcement(self) -> CallEnforcement:
        return find_call_enforcement(self._make_call_gbnf)

    def _make_call_gbnf(self, parameters: Mapping[str, Any]) -> str:
        tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}
        request = self.make_request(PromptOptions(think=False, tools=[tool], tool_choice="required"))
        grammar = _check_is_known(find_reply_format(self._renderer, self._template, request)).tool_grammar
        return grammar.gbnf if grammar is not None else ""


def _check_is_known(reply_format: ReplyFormat) -> ReplyFormat:
    """Return `reply_format`. Raises TemplateError for a fallback, because its properties may be temporary."""
    if reply_format.is_fallback:
        raise TemplateError("The format of the replies is unknown, because the chat library failed.")
    return reply_format
