"""The chat templates that llama.cpp collects, rendered by edgechat, by transformers and by llama.cpp's own Jinja."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec
import pytest

from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.errors import TemplateError
from edgechat.prompt import sandbox
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.chat_library import ChatLibrary
from edgechat.prompt.reasoning import detect_reasoning_format, make_reasoning_variables
from edgechat.prompt.render_protocol import ChatLibraryRequest, RenderRequest
from edgechat.prompt.renderer import PromptMessage, Renderer, _make_openai_message, guard_messages
from edgechat.prompt.reply_formats import PromptOptions
from tests.llama_cpp import read_templates
from tests.transformers_reference import render_reference, set_clocks


class Scenario(msgspec.Struct, frozen=True):
    """Messages, tools and variables with which every template is rendered."""

    messages: list[PromptMessage]
    tools: list[dict[str, Any]] = []
    variables: dict[str, Any] = {}


def make_tool(name: str, description: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [next(iter(properties))]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def make_calls(*calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the extra fields of a reply with calls, whose IDs have the nine characters that some templates require."""
    return {"tool_calls": [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]}  # fmt: skip


USER: Final = PromptMessage("user", "What is one?")
REPLY: Final = PromptMessage("assistant", "It is a number.")
NEXT: Final = PromptMessage("user", "And two?")
SYSTEM: Final = PromptMessage("system", "Be brief.")
TOOLS: Final = [
    make_tool(
        "get_weather", 'The weather <b>now</b> & "later" in a città.', city={"type": "string", "description": "A name"},
        days={"type": "integer"}, unit={"type": "string", "enum": ["c", "f"]},
    ),
    make_tool("search", "Search.", query={
        "type": "object", "properties": {"words": {"type": "array", "items": {"type": "string"}}}
    }),
]  # fmt: skip
WEATHER_CALL: Final = (
    "get_weather",
    {"city": 'Zürich "old" <town>', "days": 3, "flags": {"a": [1, 2.5, None, True], "b": {}}},
)
SEARCH_CALL: Final = ("search", {"query": {"words": ["x", "y"]}})
WEATHER: Final = PromptMessage(
    "tool", '{"temperature": 21.5, "sky": "clear"}', extra_fields={"tool_call_id": "abcdefgh0", "name": "get_weather"}
)
HITS: Final = PromptMessage("tool", "[]", extra_fields={"tool_call_id": "abcdefgh1"})
LONG_TEXT: Final = "".join(f"  line {i}:\tvalue {i * i} {{{{ no.jinja }}}}\r\n" for i in range(300))
SCENARIOS: Final = {
    "user": Scenario([USER]),
    "system": Scenario([SYSTEM, USER]),
    "turns": Scenario([SYSTEM, USER, REPLY, NEXT, PromptMessage("assistant", "So is two."), USER]),
    "unicode": Scenario([
        PromptMessage("system", "Grüße & 'quotes'"),
        PromptMessage("user", "<b>\"Ünïcode\"</b> & 'x' \\n {{ a }} {% if %} 你好 😀 \u2028 \x07"),
    ]),
    "blank": Scenario([
        PromptMessage("system", " "), PromptMessage("user", "\n  \n"), PromptMessage("assistant", ""),
        PromptMessage("user", "  hi  \n"),
    ]),
    "reasoning": Scenario([USER, PromptMessage("assistant", "It is a number.", "Let me count."), NEXT]),
    "tools": Scenario([SYSTEM, USER], TOOLS),
    "call": Scenario([USER, PromptMessage("assistant", "", "", make_calls(WEATHER_CALL)), WEATHER, NEXT], TOOLS),
    "parallel": Scenario(
        [USER, PromptMessage("assistant", "I look.", "", make_calls(WEATHER_CALL, SEARCH_CALL)), WEATHER, HITS], TOOLS
    ),
    "thinking": Scenario([USER], [], {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}),
    "no-thinking": Scenario([USER], [], {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}),
    "long": Scenario([PromptMessage("user", LONG_TEXT), PromptMessage("assistant", LONG_TEXT), USER]),
}  # fmt: skip
WITHOUT_TOOLS: Final = " ".join(name for name, scenario in SCENARIOS.items() if not scenario.tools)
CONTINUED: Final = PromptMessage("assistant", "It is a nu")

# Reasons with the templates to which they apply, and the scenarios, separated by spaces, or "all".
Differences = Mapping[str, Mapping[str, str]]

TRANSFORMERS_DIFFERENCES: Differences = {
    "the template reads reasoning from no field, so edgechat puts it into the content, where the model wrote it": {
        "HuggingFaceTB-SmolLM3-3B": "reasoning", "LFM2.5-Instruct": "reasoning",
        "ibm-granite-granite-3.3-2B-Instruct": "reasoning",
    },
}  # fmt: skip
# Continued replies are rendered by llama.cpp, whose parser has to read them.
CONTINUED_DIFFERENCES: Differences = {
    "reasoning is on, so an empty thought comes before the content; in the history there is none": {
        "Apriel-1.6-15b-Thinker-fixed": "all", "Bielik-11B-v3.0-Instruct": "all", "ByteDance-Seed-OSS": "all",
        "Cohere2MoE": "all", "HuggingFaceTB-SmolLM3-3B": "all", "Kimi-K2-Instruct": "all", "LFM2-8B-A1B": "all",
        "LFM2.5-8B-A1B": "all", "LFM2.5-Instruct": "all", "MiniMax-M2": "all", "NVIDIA-Nemotron-Nano-v2": "all",
        "Qwen-QwQ-32B": "all", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "all",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "all", "google-gemma-4-31B-it": "all",
        "google-gemma-4-31B-it-interleaved": "all", "ibm-granite-granite-3.3-2B-Instruct": "all",
        "llama-cpp-deepseek-r1": "all", "mistralai-Ministral-3-14B-Reasoning-2512": "all", "moonshotai-Kimi-K2": "all",
        "muse-glimmer": "all", "openai-gpt-oss-120b": "all", "openbmb-MiniCPM5-1B": "all",
        "unsloth-mistral-Devstral-Small-2507": "all",
    },
    "in the history an end tag without a start tag marks a reply without reasoning, or the other way round": {
        "GLM-4.7-Flash": "all", "MiniMax-M3": "all", "Spark2.5": "all", "poolside-Laguna-XS-2.1": "all",
        "poolside-Laguna-XS.2": "all", "deepseek-ai-DeepSeek-V4": "all", "deepseek-ai-DeepSeek-V4-Flash-0731": "all",
    },
    "the history has other white space around an empty thought": {
        "GLM-4.6": "all", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "all", "StepFun3.5-Flash": "all",
    },
    "llama.cpp leaves out the tag before the content": {
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "all", "upstage-Solar-Open-100B": "all",
    },
    "llama.cpp opens the thought once more": {"llama-cpp-rwkv-world": "all"},
    "the template fails in transformers without tools or a variable `functions`": {
        "CohereForAI-c4ai-command-r-plus-tool_use": "all", "fireworks-ai-llama-3-firefunction-v2": "all",
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "all", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "all",
    },
}  # fmt: skip
LLAMA_CPP_DIFFERENCES: Differences = {
    "the template fails without tools or a variable `functions`, which llama.cpp takes for an empty list": {
        "CohereForAI-c4ai-command-r-plus-tool_use": "all", "fireworks-ai-llama-3-firefunction-v2": "all",
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": WITHOUT_TOOLS,
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": WITHOUT_TOOLS,
    },
    "llama.cpp gives these templates the date of today": {
        "meta-llama-Llama-3.1-8B-Instruct": f"{WITHOUT_TOOLS} tools call",
        "meta-llama-Llama-3.3-70B-Instruct": f"{WITHOUT_TOOLS} tools call",
    },
    "llama.cpp never puts reasoning into the content": {
        "HuggingFaceTB-SmolLM3-3B": "reasoning", "LFM2.5-Instruct": "reasoning",
        "ibm-granite-granite-3.3-2B-Instruct": "reasoning",
    },
    "llama.cpp moves a system prompt to the first user message; edgechat does so in PromptBuilder": {
        "google-gemma-2-2b-it": "system turns unicode blank tools",
    },
    "the template changes a list, which the sandbox forbids, as in transformers": {
        "Kimi-K2-Instruct": "call parallel", "Kimi-K2-Thinking": "call parallel",
    },
    "the template joins texts and arguments, which llama.cpp gives it as text": {
        "meetkai-functionary-medium-v3.2": "call parallel",
    },
    "the template writes the result of a filter `map` as JSON, which is a list in llama.cpp only": {
        "llama-cpp-deepseek-r1": "tools call parallel",
    },
    "Jinja escapes text that is joined with text marked as safe": {
        "meetkai-functionary-medium-v3.1": "tools call parallel",
    },
    "llama.cpp writes null and nested objects as empty text": {
        "google-gemma-4-31B-it": "call parallel", "google-gemma-4-31B-it-interleaved": "call parallel",
        "openbmb-MiniCPM5-1B": "call parallel",
    },
    "llama.cpp passes reasoning and content as parts, which the template writes, or of which it leaves out the text": {
        "mistralai-Ministral-3-14B-Reasoning-2512": "blank reasoning",
        "unsloth-mistral-Devstral-Small-2507": "reasoning",
    },
    "llama.cpp removes white space around contents": {"StepFun3.5-Flash": "blank long"},
}  # fmt: skip


class LocalRenderer(Renderer):
    """Renders in this process, where a test can set the clock."""

    def __init__(self) -> None:
        super().__init__()
        self._environment = sandbox.TemplateSandbox()
        self._compiled_templates: dict[str, Any] = {}
        self._library = ChatLibrary()

    def _send(self, request: RenderRequest | ChatLibraryRequest, cancellation: object) -> str:
        if isinstance(request, ChatLibraryRequest):
            return self._library.call(request.json).decode()
        reply = sandbox.render(self._environment, self._compiled_templates, request)
        if reply.error:
            raise TemplateError(reply.error)
        return reply.text


@pytest.fixture(scope="module")
def renderer() -> LocalRenderer:
    return LocalRenderer()


def to_openai_message(message: PromptMessage) -> dict[str, Any]:
    """Return a message as a program gives it to transformers, with the reasoning under all names of this field."""
    fields = {"role": message.role, "content": message.content, **message.extra_fields}
    if message.reasoning:
        names = ("reasoning_content", "reasoning", "thinking", "thought")
        fields |= dict.fromkeys(names, message.reasoning)
    return fields


def render_with_edgechat(renderer: Renderer, template: str, scenario: Scenario) -> str | None:
    """Render a scenario with Jinja in the sandbox. Return None if the template raises an error."""
    variables = scenario.variables | ({"tools": scenario.tools} if scenario.tools else {})
    try:
        return renderer.render(
            template, scenario.messages, bos="<s>", eos="</s>", control_tokens=[], variables=variables,
            reasoning_format=detect_reasoning_format(template),
        ).text  # fmt: skip
    except TemplateError:
        return None


def render_with_transformers(template: str, scenario: Scenario, **options: Any) -> str | None:
    messages = [to_openai_message(message) for message in scenario.messages]
    options = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"} | options
    return render_reference(template, messages, tools=scenario.tools or None, **options, **scenario.variables)


def render_with_llama_cpp(renderer: Renderer, template: str, scenario: Scenario) -> str | None:
    messages, _ = guard_messages(scenario.messages, ())
    try:
        applied = renderer.call_chat_library(
            op="apply", template=template, bos="<s>", eos="</s>", messages=[_make_openai_message(m) for m in messages],
            tools=scenario.tools, parallel_tool_calls=True, thinking=scenario.variables["enable_thinking"],
            variables=scenario.variables, now_s=int(time.time()),
        )  # fmt: skip
    except TemplateError:
        return None
    text: str = applied["prompt"]
    return text


def build_with_edgechat(
    renderer: Renderer, template: str, scenario: Scenario, control_tokens: tuple[str, ...] = ()
) -> str | None:
    """Build a prompt as for a turn, and return its text. A reply at the end is continued."""
    prompts: list[str] = []

    class TextEngine:
        def tokenize(self, text: str, guard: str, **_: object) -> list[int]:
            prompts.append(text.replace(guard, "|") if guard else text)
            return []

    properties = Loaded(
        id=0, backend="", n_ctx=4096, n_ctx_train=4096, n_threads=1, n_params=1, n_vocab=2, size_bytes=1,
        chat_template=template, bos="<s>", eos="</s>", control_tokens=list(control_tokens), can_truncate=True,
        load_s=0.0,
    )  # fmt: skip
    try:
        builder = PromptBuilder(cast("EngineClient", TextEngine()), renderer, properties)
        builder.build(scenario.messages, PromptOptions(think=True, tools=scenario.tools))
    except TemplateError:
        return None
    return prompts[0]


def check_differences(
    texts: Mapping[tuple[str, str], tuple[str | None, str | None]], listed: Differences, max_errors: int
) -> None:
    """Check that the texts of each template and scenario are equal, but for the listed ones, which must differ."""
    scenarios = {scenario for _, scenario in texts}
    expected = {
        (name, scenario)
        for templates in listed.values()
        for name, names in templates.items()
        for scenario in (scenarios if names == "all" else names.split())
    }
    differences = {key: pair for key, pair in texts.items() if pair[0] != pair[1]}
    for key in sorted(differences.keys() - expected):
        pytest.fail(f"{key}: {_describe_difference(*differences[key])}")
    assert expected <= differences.keys(), "these are equal now, so they need no entry"
    assert sum(pair == (None, None) for pair in texts.values()) <= max_errors


def _describe_difference(text: str | None, other: str | None) -> str:
    if text is None or other is None:
        return f"{text!r:.200} is not {other!r:.200}"
    start = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return f"{text[max(0, start - 40) :][:120]!r} is not {other[max(0, start - 40) :][:120]!r}"


def test_every_template_is_rendered_as_transformers_renders_it(
    renderer: LocalRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, n_dates = {}, 0
    for now in (dt.datetime(2027, 2, 28, 12, 34, 56), dt.datetime(2024, 2, 29)):  # noqa: DTZ001  (local time)
        set_clocks(monkeypatch, now)
        for name, template in read_templates().items():
            for scenario, parts in SCENARIOS.items() if now.year == 2027 else [("date", SCENARIOS["user"])]:
                pair = render_with_edgechat(renderer, template, parts), render_with_transformers(template, parts)
                texts[name, scenario] = pair
            n_dates += "2024-02-29" in (pair[0] or "") or "29 Feb 2024" in (pair[0] or "")
    assert len(texts) >= 70 * 13
    assert n_dates >= 5
    check_differences(texts, TRANSFORMERS_DIFFERENCES, max_errors=70)


def test_replies_are_continued_as_transformers_continues_them(renderer: LocalRenderer) -> None:
    texts = {}
    for name, template in read_templates().items():
        parts = Scenario([USER, CONTINUED], [], make_reasoning_variables(template, on=True))
        reference = render_with_transformers(
            template, parts, add_generation_prompt=False, continue_final_message=True
        )  # fmt: skip
        texts[name, "continued"] = build_with_edgechat(renderer, template, parts), reference
    check_differences(texts, CONTINUED_DIFFERENCES, max_errors=0)


def test_llama_cpp_renders_every_template_as_jinja_does(renderer: LocalRenderer) -> None:
    """Formats of replies come from llama.cpp's rendering, so that it must be the one of the prompts."""
    texts = {}
    for name, template in read_templates().items():
        for scenario, parts in SCENARIOS.items():
            variables = make_reasoning_variables(template, on=scenario != "no-thinking")
            changed = msgspec.structs.replace(parts, variables=variables)
            pair = render_with_llama_cpp(renderer, template, changed), render_with_edgechat(renderer, template, changed)
            texts[name, scenario] = pair
    check_differences(texts, LLAMA_CPP_DIFFERENCES, max_errors=8)


def test_conversations_that_jinja_refuses_are_rendered_by_llama_cpp(renderer: LocalRenderer) -> None:
    templates = read_templates()
    for name in ("Kimi-K2-Instruct", "Kimi-K2-Thinking", "meetkai-functionary-medium-v3.2"):
        for scenario in ("call", "parallel"):
            assert render_with_edgechat(renderer, templates[name], SCENARIOS[scenario]) is None
            prompt = build_with_edgechat(renderer, templates[name], SCENARIOS[scenario], ("<town>", "<b>"))
            assert prompt is not None, name
            assert 'Zürich \\"old\\" <|town>' in prompt, name  # with a guard in the text of the control token
            assert "The weather <|b>now</b>" in prompt
            assert "temperature" in prompt
    for name in ("fireworks-ai-llama-3-firefunction-v2", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use"):
        assert "Be brief." in (build_with_edgechat(renderer, templates[name], SCENARIOS["system"]) or "")
