"""Render process for chat templates: `edgechat _render READ_FD WRITE_FD`.

A chat template is a program from a downloaded model file, so it must not be trusted. It runs in Jinja's sandbox, in a
process that has no data except the messages and at most `MAX_BYTES` of memory. The parent process (module `renderer`)
kills the render process after a time limit.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
import msgspec

from edgechat.decode_errors import replace_type_names
from edgechat.engine.pipe import Channel, open_inherited_channel
from edgechat.errors import MAX_MESSAGE_CHARS, RuntimeLoadError
from edgechat.humanize import shorten
from edgechat.prompt.render_protocol import ChatLibraryRequest, RenderReply, RenderRequest, encode

if TYPE_CHECKING:
    from edgechat.prompt.chat_library import ChatLibrary

MAX_BYTES: Final = 256 << 20
# llama.cpp processes templates, values and outputs recursively (`stack_bytes` in native/src/chat/nesting.h).
STACK_BYTES: Final = 64 << 20
MAX_RESULT_CHARS: Final = 16 << 20
_MAX_REPEATED_ITEMS: Final = 1 << 20
_MAX_EXPONENT: Final = 64
_MAX_INDENT_CHARS: Final = 64
# Conversion of a %-format whose width or precision comes from a value, or has more than four digits.
_WIDE_CONVERSION: Final = re.compile(r"%(\([^)]*\))?[-+ #0]*\d*\.?(\*|\d{5})")


class _TemplateRefusedError(jinja2.TemplateError):
    """Raised when a template rejects the messages or exceeds a limit."""


class _GenerationBlock(jinja2.ext.Extension):
    """Jinja extension for `{% generation %}` blocks, which mark replies for training; renders only their content.

    As in transformers, a block is called like a macro: variables that are set in the block are undefined after it.
    """

    tags = {"generation"}  # noqa: RUF012  (declared without ClassVar in Jinja)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render_content"), [], [], body).set_lineno(line)

    def _render_content(self, caller: Callable[[], str]) -> str:
        return caller()


class _TemplateDict:
    """Global function `dict` of templates, without the attributes of the class, as in transformers."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(jinja2.utils.Namespace):
    """Global class `namespace` of templates, without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _check_attribute_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute_name(name)
        super().__setitem__(name, value)


def _check_attribute_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {name!r} in a namespace begins with an underscore")


class TemplateSandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja environment with the extensions, filters and globals of transformers, for which templates are written.

    Results of operators and filters have size limits.
    """

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationBlock])
        self.filters |= {"tojson": _tojson, "format": _format}
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": _TemplateDict(),
            "namespace": _TemplateNamespace,
        }  # fmt: skip

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Evaluate an operator. Raises _TemplateRefusedError if the result could become too large."""
        if operator == "*" and _count_repeated_items(left, right) > _MAX_REPEATED_ITEMS:
            raise _TemplateRefusedError("it repeats a string or list to more than a million items")
        if operator == "**" and isinstance(right, (int, float)) and right > _MAX_EXPONENT:
            raise _TemplateRefusedError(f"it computes a power above {_MAX_EXPONENT}")
        if operator == "%":
            _check_conversions(left)
        return super().call_binop(context, operator, left, right)


def _count_repeated_items(left: object, right: object) -> int:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
            return len(sequence) * count
    return 0


def _check_conversions(text: object) -> None:
    """Raise _TemplateRefusedError if `text` is a %-format whose result could be much longer than its values."""
    if isinstance(text, str) and _WIDE_CONVERSION.search(text):
        raise _TemplateRefusedError("it formats text with % and a width above 9999 or from a value")


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    """Implement Jinja's filter `format` with the limits of the operator %."""
    _check_conversions(value)
    return jinja2.filters.do_format(value, *args, **kwargs)


def _tojson(
    value: object, ensure_ascii: bool = False, indent: int | str | None = None,  # noqa: FBT001, FBT002  (transformers)
    separators: tuple[str, str] | None = None, sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:  # fmt: skip
    """Return `value` in JSON, with the parameters and defaults of the filter in transformers."""
    import json

    if (len(indent) if isinstance(indent, str) else indent or 0) > _MAX_INDENT_CHARS:
        raise _TemplateRefusedError(f"it indents JSON by more than {_MAX_INDENT_CHARS} characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _TemplateRefusedError(f"it rejects these messages: {message}")


def _strftime_now(format: str) -> str:  # noqa: A002  (the name in transformers)
    return dt.datetime.now().strftime(format)  # noqa: DTZ005  (transformers takes the local time without a zone, too)


def main(arguments: list[str]) -> int:
    """Process render requests until the parent closes the pipe."""
    channel = open_inherited_channel(arguments)
    limit_memory()
    threading.stack_size(STACK_BYTES)
    server = threading.Thread(target=_serve, args=(channel,))
    server.start()
    server.join()
    return 0


def _serve(channel: Channel) -> None:
    environment = TemplateSandbox()
    compiled_templates: dict[str, jinja2.Template] = {}
    call_library = _LibraryCaller()
    decoder = msgspec.msgpack.Decoder(RenderRequest | ChatLibraryRequest)
    while (body := channel.read()) is not None:
        try:
            request = decoder.decode(body)
            if isinstance(request, ChatLibraryRequest):
                reply = call_library(request)
            else:
                reply = render(environment, compiled_templates, request)
        except MemoryError as error:  # the messages alone need too much memory
            reply = RenderReply(error=_format_error(error))
        if not channel.write(encode(reply)):
            break


class _LibraryCaller:
    """Passes requests to the chat library, which it loads at its creation, while the engine still loads the model."""

    def __init__(self) -> None:
        from edgechat.prompt.chat_library import ChatLibrary

        self._library: ChatLibrary | None = None
        self._error = ""
        try:
            self._library = ChatLibrary()
        except RuntimeLoadError as error:
            self._error = str(error)

    def __call__(self, request: ChatLibraryRequest) -> RenderReply:
        if self._library is None:
            return RenderReply(error=self._error)
        return RenderReply(text=self._library.call(request.json).decode("utf-8", "replace"))


def render(
    environment: TemplateSandbox, compiled_templates: dict[str, jinja2.Template], request: RenderRequest
) -> RenderReply:
    """Render the template of a request; return the text, or the error of the template, in the reply.

    `compiled_templates` caches compiled templates by source text.
    """
    try:
        if request.template not in compiled_templates:
            compiled_templates[request.template] = environment.from_string(request.template)
        text = compiled_templates[request.template].render(
            **({"tools": None} | request.variables),
            messages=request.messages,
            add_generation_prompt=True,
            bos_token=request.bos,
            eos_token=request.eos,
            documents=None,
        )
        text.encode()
    except UnicodeEncodeError as error:
        return RenderReply(error=f"its prompt is not valid Unicode: it has a lone surrogate at character {error.start}")
    except Exception as error:  # noqa: BLE001  (a template can raise any Python exception)
        return RenderReply(error=_format_error(error).encode(errors="backslashreplace").decode())
    if len(text) > MAX_RESULT_CHARS:
        return RenderReply(error=f"its prompt has {len(text)} characters; at most {MAX_RESULT_CHARS} are allowed")
    return RenderReply(text=text)


def _format_error(error: Exception) -> str:
    return shorten(_describe_error(error), MAX_MESSAGE_CHARS)


def _describe_error(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MAX_BYTES >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it exceeds the recursion limit"
    if isinstance(error, jinja2.exceptions.SecurityError):
        return f"the sandbox forbids an operation in it: {error}"
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    if isinstance(error, (jinja2.TemplateError, TypeError, ValueError)):
        return replace_type_names(str(error)) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def limit_memory() -> None:
    """Limit the address space to `MAX_BYTES` plus the stack, on systems that support it, and disable core dumps."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
        max_bytes = MAX_BYTES + STACK_BYTES
        limit = max_bytes if hard_limit == resource.RLIM_INFINITY else min(max_bytes, hard_limit)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        except (OSError, ValueError):
            pass  # macOS rejects this limit; the parent process still enforces its time limit
