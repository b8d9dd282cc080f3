"""Session of a coding agent: chat completion requests, one for each turn, generated or recorded as JSON lines."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat.decode_errors import describe_syntax_error
from edgechat.errors import UsageError

_WORDS: Final = (
    "module", "function", "branch", "commit", "error", "test", "path", "buffer", "index", "value", "parser", "reader",
    "writer", "cache", "token", "server", "client", "request", "reply", "folder", "option", "number", "string", "table",
    "check", "update", "remove", "rename", "return", "raise", "before", "after", "without", "between", "every", "only",
)  # fmt: skip
_N_WORDS_PER_LINE: Final = 12
_HEADER: Final = "x-anthropic-billing-header:"
_TOOLS: Final = (
    ("read_file", "Read a file and return its lines.", ("path",)),
    ("run_command", "Run a shell command and return its output.", ("command", "directory")),
    ("edit_file", "Replace a text in a file.", ("path", "old_text", "new_text")),
)


class SessionSize(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of a generated session, in lines of about 16 tokens each."""

    n_turns: int = 20
    n_system_lines: int = 750
    n_result_lines: int = 16
    """Number of lines in the result of each tool call."""


def make_session(size: SessionSize) -> list[dict[str, Any]]:
    """Generate the requests of a session; each repeats the conversation so far, as agents do.

    The system prompt begins with a header whose hash changes from request to request, like that of Claude Code. In each
    turn after the first one, the model has called a tool and gets its result.
    """
    generator = random.Random(size.n_system_lines)  # noqa: S311
    rules = "\n".join(f"{i}. {_make_line(generator)}" for i in range(size.n_system_lines))
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Find out why the tests fail, and mend it."}]
    requests = []
    for turn in range(size.n_turns):
        if turn:
            messages += _make_exchange(generator, turn, size.n_result_lines)
        digest = hashlib.sha256(str(turn).encode()).hexdigest()
        fields = f"cc_version=2.1.{turn}.{digest[:3]}; cc_entrypoint=cli; cch={digest[3:8]};"
        system = {
            "role": "system",
            "content": f"{_HEADER} {fields}\nYou are a coding agent. Follow these rules:\n{rules}",
        }
        requests.append({"messages": [system, *messages], "tools": [_make_tool(*tool) for tool in _TOOLS]})
    return requests


def remove_header(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request without the lines of its system prompt that begin like the header of a generated session."""
    messages = [
        message | {"content": _remove_header_lines(message["content"])}
        if message.get("role") == "system" and isinstance(message.get("content"), str)
        else message
        for message in request["messages"]
    ]
    return request | {"messages": messages}


def _remove_header_lines(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if not line.startswith(_HEADER))


def read_session(path: Path) -> list[dict[str, Any]]:
    """Read a recorded session: in each line, the JSON body of a chat completion request.

    Raises UsageError if a line is not a request with messages.
    """
    requests = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            request = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise UsageError(f"{path}, line {number}: not valid JSON: {describe_syntax_error(error, line)}.") from error
        if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
            raise UsageError(f"{path}, line {number}: not the body of a chat completion request (no messages).")
        requests.append(request)
    if not requests:
        raise UsageError(f"{path} has no lines. Write the body of one chat completion request into each line.")
    return requests


def _make_line(generator: random.Random) -> str:
    return " ".join(generator.choices(_WORDS, k=_N_WORDS_PER_LINE)).capitalize() + "."


def _make_exchange(generator: random.Random, turn: int, n_lines: int) -> list[dict[str, Any]]:
    """Return a tool call and its result."""
    arguments = msgspec.json.encode({"path": f"src/{generator.choice(_WORDS)}_{turn}.py"}).decode()
    call = {"id": f"call_{turn}", "type": "function", "function": {"name": "read_file", "arguments": arguments}}
    result = "\n".join(f"{i + 1}: {_make_line(generator)}" for i in range(n_lines))
    return [
        {"role": "assistant", "content": "I read the file.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"call_{turn}", "content": result},
    ]


def _make_tool(name: str, description: str, parameters: tuple[str, ...]) -> dict[str, Any]:
    schema = {"type": "object", "properties": {p: {"type": "string"} for p in parameters}, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
