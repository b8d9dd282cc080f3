"""How families of models write calls of tools: told from their templates, and read back from what they say."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from edgechat.engine.stop_strings import partial_match_length
from edgechat.prompt.reasoning import control_tokens_in
from edgechat.serve.schemas import Tool


class ToolFormat(msgspec.Struct, frozen=True):
    """Calls between marks: each a JSON object with a name and arguments."""

    opening: str
    """Before the first call."""
    between: str
    """Between two calls."""
    closing: str
    """After the last one."""
    trigger: str
    """The part of `opening` that no text holds otherwise; "" if a call is told by its first brace."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    is_native: bool = True
    """False if the template knows no tools: then the system prompt explains them."""

    def around(self, name: str) -> tuple[str, str]:
        """What stands before and after the arguments of a call."""
        return f'{{"{self.name_key}": {json.dumps(name)}, "{self.arguments_key}": ', "}"

    @property
    def control_tokens(self) -> list[str]:
        """Control tokens that marks are made of: the engine leaves such tokens out of a text unless asked."""
        return control_tokens_in(self.opening + self.between + self.closing)

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls, names and arguments, as a model writes them."""
        each = (arguments.join(self.around(name)) for name, arguments in calls)
        return f"{self.opening}{self.between.join(each)}{self.closing}"


_HERMES: Final = ToolFormat("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "<tool_call>")
_LLAMA: Final = ToolFormat("", "; ", "", "", "name", "parameters")

# Marks read from the templates of the families; the more particular ones first.
_FORMATS: Final = (
    ToolFormat("[TOOL_CALLS][", ", ", "]", "[TOOL_CALLS]"),  # Mistral
    ToolFormat("<|tool_call|>[", ", ", "]", "<|tool_call|>"),  # Granite
    ToolFormat("<|START_ACTION|>[", ", ", "]<|END_ACTION|>", "<|START_ACTION|>", "tool_name", "parameters"),  # Command
    _HERMES,  # Qwen, Hermes, SmolLM3
    _LLAMA,  # Llama 3
)
# What has marks of its own, which are not JSON: there our own words are used.
_OTHERS: Final = ("<function=", "<arg_key>", "<|channel|>commentary", "[ARGS]")
GENERIC: Final = msgspec.structs.replace(_HERMES, is_native=False)


def detect(template: str) -> ToolFormat:
    """The format of a model, by its chat template; `GENERIC` if it knows none that is known here."""
    if "tools" not in template or any(mark in template for mark in _OTHERS):
        return GENERIC
    for form in _FORMATS:
        if form.trigger and form.trigger in template:
            return form
    if '"parameters": ' in template and "<|start_header_id|>" in template:
        return _LLAMA
    return GENERIC


def explained(tools: Sequence[Tool]) -> str:
    """What a model that was not told of tools by its template is told in the system prompt."""
    described = "\n".join(json.dumps(each, ensure_ascii=False) for each in as_given(tools))
    example = f'{GENERIC.opening}{{"name": <name>, "arguments": <object>}}{GENERIC.closing}'
    return (
        "You can call functions. Here they are, with JSON schemas of their arguments:\n"
        f"{described}\nTo call one, answer with its name and arguments in JSON between these marks:\n{example}"
    )


def as_given(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates expect them."""
    found = []
    for tool in tools:
        function = tool.function
        parameters = function.parameters or {"type": "object", "properties": {}}
        described = {"name": function.name, "description": function.description or "", "parameters": parameters}
        found.append({"type": "function", "function": described})
    return found


class Call(msgspec.Struct, frozen=True):
    """One call, as it is sent."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""
    id: str


class CallReader:
    """Parts an answer into text and calls; a mark that is cut in two is held back until it is whole."""

    def __init__(self, form: ToolFormat | None, *, must: bool = False) -> None:
        """`form` None: there are no calls. With `must` the answer is all calls."""
        self._form = form
        self._held = ""
        self._calling = must and form is not None
        self._started = self._calling

    def feed(self, text: str) -> tuple[str, list[Call]]:
        """More of the answer; returns the text and the whole calls in it that are certain."""
        form = self._form
        if form is None:
            return text, []
        self._held += text
        shown = ""
        if not self._calling:
            if form.trigger:
                at = self._held.find(form.trigger)
                keep = len(self._held) - partial_match_length(self._held, form.trigger) if at < 0 else at
                shown, self._held = self._held[:keep], self._held[keep:]
                self._calling = at >= 0
            elif self._started or not self._held.startswith("{"):
                shown, self._held = self._held, ""
            else:
                self._calling = True
            self._started = self._started or bool(shown)
        return shown, self._calls() if self._calling else []

    def finish(self) -> str:
        """The end: what was held back, if it was no call after all. A call that was cut off is nothing."""
        held, self._held = self._held, ""
        return "" if self._calling else held

    def _calls(self) -> list[Call]:
        found = []
        while (start := self._held.find("{")) >= 0 and self._form is not None:
            try:
                call, length = _decoder.raw_decode(self._held[start:])
            except (ValueError, RecursionError):
                break  # not whole yet, or nothing that could be read
            name, raw = str(call.get(self._form.name_key)), self._held[start : start + length]
            opening, closing = self._form.around(name)
            found.append(Call(name, raw[len(opening) : -len(closing)], f"call_{secrets.token_hex(12)}"))
            self._held = self._held[start + length :]
        return found


_decoder = json.JSONDecoder()
