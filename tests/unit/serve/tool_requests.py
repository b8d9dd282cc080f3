"""Requests with tools to a chat template without a model, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.renderer import Renderer
from edgechat.serve.output_format import FREE_TEXT, OutputFormat
from edgechat.serve.tool_choice import select_tools
from edgechat.serve.tool_support import PreparedTools, check_tools, prepare_tools
from tests.llama_cpp import read_templates
from tests.unit.serve.examples import chat_request

TEMPLATES = sorted(read_templates())
"""Names of llama.cpp's chat templates."""


class RecordingEngine:
    """An engine that records the text of the last prompt instead of converting it to tokens."""

    text = ""

    def tokenize(self, text: str, _guard: str = "", **_options: Any) -> list[int]:
        self.text = text
        return [0]


def make_builder(renderer: Renderer, template: str, engine: RecordingEngine | None = None) -> PromptBuilder:
    """Return the prompt builder for one of `TEMPLATES`, or for a template that knows no tools."""
    properties = Loaded(
        id=0, backend="", n_ctx=4096, n_ctx_train=4096, n_threads=1, n_params=1, n_vocab=2, size_bytes=1,
        chat_template=read_templates().get(template, "{{ messages }}"), bos="", eos="",
        control_tokens=["<think>", "</think>"], can_truncate=True, load_s=0.0,
    )  # fmt: skip
    return PromptBuilder(cast("EngineClient", engine or RecordingEngine()), renderer, properties)


def prepare_request(
    builder: PromptBuilder, functions: Mapping[str, Any], output_format: OutputFormat = FREE_TEXT, *,
    think: bool = False, strict: bool | None = None, **fields: Any,
) -> PreparedTools:  # fmt: skip
    """Prepare a request with functions, given by name with the JSON schemas of their parameters."""
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}
        for name, parameters in functions.items()
    ]
    body = chat_request(tools=tools, **fields)
    check_tools(body.tools or [])
    selected_tools, must_call = select_tools(body)
    return prepare_tools(builder, body, selected_tools, must_call=must_call, think=think, output_format=output_format)
