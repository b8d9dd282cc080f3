"""Grammar rules of tool calls in the generic format, in llguidance's variant of Lark."""

from __future__ import annotations

from collections.abc import Sequence

from edgechat.prompt import tool_formats
from edgechat.prompt.json_schemas import make_json_rule
from edgechat.prompt.output_rules import quote
from edgechat.serve.schemas import Tool


def make_tool_call_rules(tools: Sequence[Tool], *, must_call: bool, allow_parallel: bool) -> str:
    """Return the grammar rules of tool calls in the generic format.

    With `allow_parallel`, a reply may have several calls; with `must_call`, it must have one. Raises GrammarError if
    the parameters of a tool use a schema keyword that is not supported.
    """
    calls, rules = [], []
    for i, tool in enumerate(tools):
        call_prefix, call_suffix = tool_formats.make_call_wrapper(tool.function.name)
        parameters = {"type": "object"} | (tool.function.parameters or {})
        rules.append(f"arguments_{i}: {make_json_rule(parameters, f'tools[{i}].function.parameters')}")
        calls.append(f"{quote(call_prefix)} arguments_{i} {quote(call_suffix)}")
    more_calls = f" ({quote(tool_formats.CALL_SEPARATOR)} call)*" if allow_parallel else ""
    all_calls = f"call{more_calls} {quote(tool_formats.CALL_SUFFIX)}"
    rules.append("call: " + " | ".join(calls))
    if must_call:
        return "\n".join([f"{quote(tool_formats.CALL_PREFIX)} {all_calls}", *rules])
    prefix_rest = tool_formats.CALL_PREFIX.removeprefix(tool_formats.CALL_START)
    rules += [f"head[lazy]: TEXT {quote(tool_formats.CALL_START)}", "TEXT: /(.|\\n)*/"]
    return "\n".join([f"TEXT | head {quote(prefix_rest)} {all_calls}", *rules])
