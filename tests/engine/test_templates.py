"""The chat templates that llama.cpp collects, rendered in the sandbox: reasoning is found, dropped and switched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.errors import TemplateError
from edgechat.prompt.builder import PromptBuilder, PromptOptions
from edgechat.prompt.reasoning import (
    REASONING_FORMATS,
    can_switch_reasoning,
    detect_reasoning_format,
    find_phase_after_prompt,
    make_reasoning_variables,
)
from edgechat.prompt.renderer import PromptMessage, Renderer
from tests.llama_cpp import read_templates

# Shapes of conversations: s(ystem), u(ser), a(ssistant); a reply at the end is continued.
SHAPES = (
    "u", "su", "uau", "suau", "uasu", "suasu", "us", "uas", "au", "sau", "uaau", "uu", "s", "ssu", "ua", "sua", "a",
)  # fmt: skip
QUESTION = [PromptMessage("user", "What is one?")]
LATER = [*QUESTION, PromptMessage("assistant", "It is a number.", "Let me count."), PromptMessage("user", "And two?")]
# Templates that fail without tools, but not in llama.cpp.
TOOL_TEMPLATES = {
    "CohereForAI-c4ai-command-r-plus-tool_use", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "fireworks-ai-llama-3-firefunction-v2",
}  # fmt: skip
# Templates that keep the reasoning of earlier replies.
KEEP_REASONING = {
    "Bielik-11B-v3.0-Instruct", "ByteDance-Seed-OSS", "Cohere2MoE", "HuggingFaceTB-SmolLM3-3B", "LFM2.5-Instruct",
    "MiniMax-M3", "Spark2.5", "ibm-granite-granite-3.3-2B-Instruct", "inclusionai-ling-3.0-flash",
    "poolside-Laguna-S-2.1", "poolside-Laguna-XS-2.1", "poolside-Laguna-XS.2",
}  # fmt: skip


@pytest.fixture(scope="module")
def templates() -> dict[str, str]:
    """Templates by name."""
    return {name: text for name, text in read_templates().items() if name not in TOOL_TEMPLATES}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


def render(renderer: Renderer, template: str, messages: list[PromptMessage], *, think: bool) -> str:
    return renderer.render(
        template, messages, bos="<s>", eos="</s>", control_tokens=[],
        variables=make_reasoning_variables(template, on=think), reasoning_format=detect_reasoning_format(template),
    ).text  # fmt: skip


def test_every_template_renders_and_only_known_ones_keep_earlier_reasoning(
    templates: dict[str, str], renderer: Renderer
) -> None:
    assert len(templates) > 50
    formats, with_earlier_reasoning = set(), set()
    for name, template in templates.items():
        form = detect_reasoning_format(template)
        for think in (True, False):
            try:
                text = render(renderer, template, LATER, think=think)
            except TemplateError as error:
                pytest.fail(f"{name}: {error}")
            assert "It is a number." in text, name
            assert "And two?" in text, name
            if form is not None:
                formats.add(form)
                with_earlier_reasoning |= {name} if "Let me count." in text else set()
                assert find_phase_after_prompt(form, text) in ("start", "reasoning"), name
    assert with_earlier_reasoning == KEEP_REASONING
    assert formats == set(REASONING_FORMATS)  # every format is used by some template


def test_reasoning_can_be_switched_off_where_the_template_supports_it(
    templates: dict[str, str], renderer: Renderer
) -> None:
    for name in (
        "Qwen-Qwen3-0.6B",
        "Qwen3.5-4B",
        "HuggingFaceTB-SmolLM3-3B",
        "google-gemma-4-31B-it",
        "openai-gpt-oss-120b",
    ):
        template = templates[name]
        assert can_switch_reasoning(template), name
        on, off = (render(renderer, template, QUESTION, think=think) for think in (True, False))
        assert on != off, name


class TextEngine:
    """Stands for an engine: keeps the text of the last prompt."""

    text = ""

    def tokenize(self, text: str, guard: str = "", **_limits: object) -> list[int]:
        self.text = text
        return [0]


def test_every_template_takes_every_shape_of_conversation_with_all_its_texts(renderer: Renderer) -> None:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    for name, template in read_templates().items():
        engine = TextEngine()
        properties = Loaded(
            id=0, backend="", n_ctx=4096, n_ctx_train=4096, n_threads=1, n_params=1, n_vocab=2, size_bytes=1,
            chat_template=template, bos="<s>", eos="</s>", control_tokens=[], can_truncate=True, load_s=0.0,
        )  # fmt: skip
        builder = PromptBuilder(cast("EngineClient", engine), renderer, properties)
        for shape in SHAPES:
            messages = [PromptMessage(roles[letter], f"text {i} of {letter}") for i, letter in enumerate(shape)]
            try:
                builder.build(messages, PromptOptions(think=True))
            except TemplateError as error:
                pytest.fail(f"{name}, {shape}: {error}")
            assert all(message.content in engine.text for message in messages), (name, shape, engine.text)
