"""The chat templates that llama.cpp collects, rendered in the sandbox: reasoning is found, dropped and switched."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import pytest

from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.errors import TemplateError
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.inline_thoughts import find_searched_tags
from edgechat.prompt.reasoning import (
    REASONING_FORMATS,
    can_switch_reasoning,
    detect_reasoning_format,
    find_phase_after_prompt,
    make_reasoning_variables,
)
from edgechat.prompt.renderer import PromptMessage, Renderer
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.thoughts import KNOWN_TAGS
from tests.fuzzing import shorten
from tests.llama_cpp import read_templates

T = TypeVar("T")
# Shapes of conversations: s(ystem), u(ser), a(ssistant); a reply at the end is continued.
SHAPES = (
    "u", "su", "uau", "suau", "uasu", "suasu", "us", "uas", "au", "sau", "uaau", "uu", "s", "ssu", "ua", "sua", "a",
)  # fmt: skip
THINK = PromptOptions(think=True)
ROLES = {"s": "system", "u": "user", "a": "assistant"}
# Conversations with tools, see `make_messages`.
TOOL_SHAPES = (
    "ucr", "ucru", "ucu", "ucua", "ucrau", "ucrcr", "ucrcru", "uprr", "uprru", "uprrau", "upr", "tprr", "utr", "utru",
    "sutru", "uautr", "ucrautr", "utrau", "utrtr", "utrtru", "ucrs", "ucrsu", "ucsr", "ucur", "uccrr", "ucrraau", "ur",
    "sraucr", "rau", "cr", "scru", "uprrtrrapu",
)  # fmt: skip
# Templates that know tools, but do not render the calls of earlier replies.
WITHOUT_CALLS = {
    "HuggingFaceTB-SmolLM3-3B", "LFM2-8B-A1B", "LFM2.5-Instruct", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "ibm-granite-granite-3.3-2B-Instruct",
}  # fmt: skip
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


def select(items: Sequence[T], number: int) -> Sequence[T]:
    """Return what to try with the template of a number: a quarter of `items`, so that four templates have all.

    If no test is shortened, each template has all.
    """
    step = shorten(1, 4)
    return items[number % step :: step]


class TextEngine:
    """Stands for an engine: keeps the text of the last prompt."""

    text = ""

    def tokenize(self, text: str, guard: str = "", **_limits: object) -> list[int]:
        self.text = text.replace(guard, "") if guard else text
        return [0]


TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Look it up.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
    }}}
    for name in ("get_weather", "get_time")
]  # fmt: skip


def make_calls(*cities: str, first_id: int = 0) -> dict[str, Any]:
    """Return the extra fields of a reply with calls, whose IDs have the nine characters that some templates require."""
    return {"tool_calls": [
        {"id": f"abcdef{first_id + i:03}", "type": "function", "function": {
            "name": "get_weather", "arguments": {"city": city},
        }}
        for i, city in enumerate(cities)
    ]}  # fmt: skip


def make_messages(shape: str) -> list[PromptMessage]:
    """Return messages with unique texts.

    The letters of the shape are s(ystem), u(ser), a(ssistant), c(all), t(ext and call), p(arallel calls), r(esult).
    """
    roles = {"s": "system", "u": "user", "r": "tool"}
    messages = []
    n_calls = n_results = 0
    for i, letter in enumerate(shape):
        text = f"text {i} of {letter}"
        fields: dict[str, Any] = {}
        if letter in "ctp":
            cities = [f"city {i}", f"town {i}"] if letter == "p" else [f"city {i}"]
            fields = make_calls(*cities, first_id=n_calls)
            n_calls += len(cities)
        elif letter == "r":
            fields = {"tool_call_id": f"abcdef{n_results:03}"}
            n_results += 1
        messages.append(PromptMessage(roles.get(letter, "assistant"), "" if letter in "cp" else text, "", fields))
    return messages


@functools.cache  # each builder first finds out what its template does
def make_builder(template: str, renderer: Renderer) -> tuple[PromptBuilder, TextEngine]:
    engine = TextEngine()
    properties = Loaded(
        id=0, backend="", n_ctx=4096, n_ctx_train=4096, n_threads=1, n_params=1, n_vocab=2, size_bytes=1,
        chat_template=template, bos="<s>", eos="</s>", control_tokens=[], can_truncate=True, load_s=0.0,
    )  # fmt: skip
    return PromptBuilder(cast("EngineClient", engine), renderer, properties), engine


def build(template: str, renderer: Renderer, messages: list[PromptMessage], *, with_tools: bool = False) -> str:
    """Build a prompt and return its text without guards."""
    builder, engine = make_builder(template, renderer)
    builder.build(messages, PromptOptions(think=True, tools=TOOLS if with_tools else ()))
    return engine.text


def read_native_templates(renderer: Renderer) -> dict[str, str]:
    """Return the templates by name that describe tools; tools are explained in the system prompt of the others."""
    templates = read_templates()
    return {name: text for name, text in templates.items() if make_builder(text, renderer)[0].formats.has_native_tools}


def check_texts(name: str, template: str, renderer: Renderer, messages: list[PromptMessage]) -> None:
    """Check that the template accepts a conversation with tools, and that the prompt has all texts and calls."""
    try:
        text = build(template, renderer, messages, with_tools=True)
    except TemplateError as error:
        pytest.fail(f"{name}, {messages}: {error}")
    assert all(message.content in text for message in messages), (name, messages, text)
    calls = [call for message in messages for call in message.extra_fields.get("tool_calls", [])]
    is_rendered = [call["function"]["arguments"]["city"] in text for call in calls]
    assert all(is_rendered) if name not in WITHOUT_CALLS else not any(is_rendered), (name, messages, text)


def test_templates_take_every_shape_of_conversation_with_all_its_texts(renderer: Renderer) -> None:
    for number, (name, template) in enumerate(read_templates().items()):
        for shape in select(SHAPES, number):
            messages = [PromptMessage(ROLES[letter], f"text {i} of {letter}") for i, letter in enumerate(shape)]
            try:
                text = build(template, renderer, messages)
            except TemplateError as error:
                pytest.fail(f"{name}, {shape}: {error}")
            assert all(message.content in text for message in messages), (name, shape, text)


def test_no_template_leaves_out_a_short_or_repeated_text(renderer: Renderer) -> None:
    contents = {
        "uasu": [*"bcde"], "suasu": ["Be brief.", "One?", "Yes", "Be brief.", "Two?"], "us": ["Hi", "user"],
        "suas": ["You are a bot. Answer in English.", "Hi", "Hello.", "Answer in English."], "uaau": ["a"] * 4,
        "ssu": ["system", "system", "Hi"],
    }  # fmt: skip
    for number, (name, template) in enumerate(read_templates().items()):
        for shape, texts in select(list(contents.items()), number):
            messages = [PromptMessage(ROLES[letter], text) for letter, text in zip(shape, texts, strict=True)]
            prompt = build(template, renderer, messages)
            for i, message in enumerate(messages):
                other = [*messages[:i], PromptMessage(message.role, "q"), *messages[i + 1 :]]
                assert build(template, renderer, other) != prompt, (name, shape, i, prompt)


@pytest.mark.parametrize("tags", [("<think>", "</think>"), ("<think>\n", "\n</think>\n\n"), ("[THINK]", "[/THINK]")])
def test_reply_with_reasoning_in_its_content_is_accepted(renderer: Renderer, tags: tuple[str, str]) -> None:
    for name, template in read_templates().items():
        messages = [
            PromptMessage("user", "What is one?"),
            PromptMessage("assistant", f"{tags[0]}Let me count.{tags[1]}It is a number."),
            PromptMessage("user", "And two?"),
        ]
        text = build(template, renderer, messages)
        assert text.index("What is one?") < text.index("It is a number.") < text.index("And two?"), name


def test_reply_that_mentions_tags_of_the_template_keeps_its_text(renderer: Renderer) -> None:
    for number, (name, template) in enumerate(read_templates().items()):
        tags = [*find_searched_tags(template), *(tag for pair in KNOWN_TAGS for tag in pair)]
        for tag in select(list(dict.fromkeys(tags)), number):
            reply = f"They close it with {tag} there."
            text = build(template, renderer, [*QUESTION, PromptMessage("assistant", reply), LATER[-1]])
            assert reply in text, (name, tag)


def test_templates_with_tools_take_every_shape_of_calls_and_results(renderer: Renderer) -> None:
    for number, (name, template) in enumerate(read_native_templates(renderer).items()):
        for shape in select(TOOL_SHAPES, number):
            check_texts(name, template, renderer, make_messages(shape))


def test_reply_that_begins_with_a_start_tag_continues_the_thought(renderer: Renderer) -> None:
    n_reasoning = 0
    for name, template in read_templates().items():
        form = detect_reasoning_format(template)
        if form is None:
            continue
        n_reasoning += 1
        builder, engine = make_builder(template, renderer)
        for thought in ("", "Okay, the user"):
            for start_tag in dict.fromkeys(("<think>\n", "<think>", form.start_tag)):
                prompt = builder.build([*QUESTION, PromptMessage("assistant", start_tag + thought)], THINK)
                open_tags = (form.start_tag, prompt.reply_format.thinking_start or form.start_tag)
                before = engine.text.removesuffix(thought).rstrip()
                assert before.endswith(open_tags), (name, engine.text)
                if not form.content_prefix:  # the end tag of gpt-oss also begins the reply
                    assert not before.removesuffix(form.start_tag).rstrip().endswith(form.end_tag), (name, engine.text)
                assert prompt.phase == "reasoning", name
    assert n_reasoning > 30


def test_reply_that_begins_with_an_ended_thought_continues_with_the_content(renderer: Renderer) -> None:
    for name, template in read_templates().items():
        form = detect_reasoning_format(template)
        builder, engine = make_builder(template, renderer)
        for thought in ("<think>\n\n</think>\n\n", "<think>Hmm</think>"):
            prompt = builder.build([*QUESTION, PromptMessage("assistant", thought)], THINK)
            text, expected = engine.text, [*QUESTION, PromptMessage("assistant", f"{thought}So")]
            builder.build(expected, THINK)
            assert engine.text.removesuffix("So") == text, name
            assert prompt.phase == "content" or form is None, name
