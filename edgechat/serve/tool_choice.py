"""Tools that the model can call in one chat request: `tools` and `tool_choice`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from edgechat.serve.errors import ApiError
from edgechat.serve.schemas import ChatRequest, Tool, ToolChoice

_MODES: Final = {"": "auto", "auto": "auto", "none": "none", "required": "required", "any": "required"}


class SelectedChoice(NamedTuple):
    """Parsed `tool_choice` of a request."""

    mode: str
    """`auto`, `none` or `required`."""
    names: Sequence[str] | None = None
    """Names of the functions that the model can call; None for all functions in `tools`."""
    allow_parallel: bool = True
    """False if the request names one function, which the model must call exactly once."""


def find_tool_choice(body: ChatRequest) -> SelectedChoice:
    """Return the tool choice of a request. Raises ApiError if it has an unknown form."""
    choice = body.tool_choice
    if isinstance(choice, ToolChoice):
        if choice.type == "allowed_tools":
            return _find_allowed_tools(choice)
        name = choice.name if choice.function is None else choice.function.name
        if name is not None and choice.type in {None, "function", "tool"}:
            return SelectedChoice("required", [name], allow_parallel=False)
        choice = choice.type or "an object without a type"
    return SelectedChoice(_find_mode(choice, 'must be "auto", "none", "required" or the name of a function'))


def _find_allowed_tools(choice: ToolChoice) -> SelectedChoice:
    """Parse a tool choice of type `allowed_tools`. In the Responses API, its fields are not in an inner object."""
    allowed_tools = choice if choice.allowed_tools is None else choice.allowed_tools
    if allowed_tools.tools is None:
        raise _make_error('allowed_tools must have "tools", a list of functions')
    names = [tool.name if tool.function is None else tool.function.name for tool in allowed_tools.tools]
    if not names or None in names:
        raise _make_error('the list "tools" of allowed_tools must not be empty, and each entry must name a function')
    mode = _find_mode(allowed_tools.mode, 'the mode of allowed_tools must be "auto" or "required"')
    return SelectedChoice(mode, [name for name in names if name is not None])


def _find_mode(choice: str | None, requirement: str) -> str:
    if (choice or "") not in _MODES:
        raise _make_error(f'{requirement}, not "{choice}"')
    return _MODES[choice or ""]


def select_tools(body: ChatRequest) -> tuple[list[Tool], bool]:
    """Return the tools that the model can call, and whether it must call one of them. Raises ApiError."""
    tools, choice = body.tools or [], find_tool_choice(body)
    counts = Counter(tool.function.name for tool in tools)
    duplicate_name = next((name for name, count in counts.items() if count > 1), None)
    if duplicate_name is not None:
        raise ApiError(400, f"tools: several functions have the name {duplicate_name!r}.", param="tools")
    unknown_name = next((name for name in choice.names or () if name not in counts), None)
    if unknown_name is not None:
        raise _make_error(f"tools has no function with the name {unknown_name!r}")
    if choice.mode == "required" and not tools:
        raise _make_error('"required" needs at least one tool')
    names = counts.keys() if choice.names is None else set(choice.names)
    selected_tools = [tool for tool in tools if tool.function.name in names]
    return ([] if choice.mode == "none" else selected_tools), choice.mode == "required"


def _make_error(problem: str) -> ApiError:
    return ApiError(400, f"tool_choice: {problem}.", param="tool_choice")
