"""The child process that renders chat templates: `edgechat _render READ WRITE`.

A template is a program out of a model file. It runs in Jinja's sandbox, in a process that holds nothing,
may use `MAX_BYTES` of memory, and is killed by its parent (`renderer`) when it takes too long.
"""

from __future__ import annotations

import datetime as dt
import sys
from typing import Any, Final

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import msgspec

from edgechat.engine.pipe import open_inherited_channel
from edgechat.engine.protocol import frame

MAX_BYTES: Final = 256 << 20
MAX_RESULT_CHARS: Final = 16 << 20
_MAX_REPEATED: Final = 1 << 20
_MAX_EXPONENT: Final = 64


class RenderRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One rendering."""

    template: str
    messages: list[dict[str, Any]]
    bos: str
    eos: str
    variables: dict[str, Any] = {}


class RenderReply(msgspec.Struct, frozen=True, kw_only=True):
    """The text, or what went wrong."""

    text: str = ""
    error: str = ""


class _Refused(jinja2.TemplateError):
    """The template itself refuses these messages, or asks for too much."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks, for training, what a model says; for a prompt it is only its content."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The content of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja as model files expect it, with operators that cannot ask for much memory at once."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse what would be huge before it is made."""
        if operator == "*" and _repeated(left, right) > _MAX_REPEATED:
            raise _Refused("it repeats a text or list more than a million times")
        if operator == "**" and isinstance(right, (int, float)) and right > _MAX_EXPONENT:
            raise _Refused(f"it computes a power above {_MAX_EXPONENT}")
        if operator == "%" and isinstance(left, str):
            raise _Refused("it formats text with %, which has no bound on width")
        return super().call_binop(context, operator, left, right)


def _repeated(left: object, right: object) -> int:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
            return len(sequence) * count
    return 0


def _tojson(value: object, indent: int | None = None) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, indent=min(indent, 16) if indent is not None else None)


def _raise(message: str) -> None:
    raise _Refused(f"it says: {message}")


def _strftime_now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form[:100])


def main(arguments: list[str]) -> int:
    """Render until the parent goes away."""
    channel = open_inherited_channel(arguments)
    limit_memory()
    environment = Sandbox()
    compiled: dict[str, jinja2.Template] = {}
    decoder = msgspec.msgpack.Decoder(RenderRequest)
    while (body := channel.read()) is not None:
        reply = msgspec.msgpack.encode(render(environment, compiled, decoder.decode(body)))
        if not channel.write(frame(reply)):
            break
    return 0


def render(environment: Sandbox, compiled: dict[str, jinja2.Template], request: RenderRequest) -> RenderReply:
    """Render one request; whatever a template does ends in a reply (or in this process's end)."""
    try:
        if request.template not in compiled:
            compiled[request.template] = environment.from_string(request.template)
        text = compiled[request.template].render(
            **({"tools": None} | request.variables),
            messages=request.messages,
            add_generation_prompt=True,
            bos_token=request.bos,
            eos_token=request.eos,
            documents=None,
        )
    except Exception as error:  # noqa: BLE001  (a template can raise anything that Python can)
        return RenderReply(error=_words(error))
    if len(text) > MAX_RESULT_CHARS:
        return RenderReply(error=f"it makes a prompt of {len(text)} characters")
    return RenderReply(text=text)


def _words(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MAX_BYTES >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it recurses without end"
    if isinstance(error, jinja2.exceptions.SecurityError):
        return f"it does what the sandbox forbids: {error}"
    if isinstance(error, jinja2.TemplateError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def limit_memory() -> None:
    """Cap this process's address space; where that cannot be, only the time limit holds."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = MAX_BYTES if most == resource.RLIM_INFINITY else min(MAX_BYTES, most)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        except (OSError, ValueError):
            pass  # macOS knows the limit and refuses to set it: there the clock alone holds
