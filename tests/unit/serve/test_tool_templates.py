"""Tools of a request with every chat template that llama.cpp collects."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import llguidance
import pytest

from edgechat.errors import TemplateError
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.output_rules import add_reasoning_rules
from edgechat.prompt.renderer import PromptMessage, Renderer
from edgechat.prompt.reply_format import ReplyFormat
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.thinking import choose_reasoning_format
from edgechat.prompt.tool_formats import format_calls
from edgechat.runtime.grammar import MAX_GRAMMAR_CHARS, MAX_TOOL_GRAMMAR_CHARS, check_grammar
from edgechat.runtime.tool_grammar import ToolGrammar, TriggerDetector
from edgechat.runtime.triggered_grammar import convert_tool_grammar
from edgechat.serve.errors import ApiError
from edgechat.serve.output_format import OutputFormat
from tests.grammars import TOKENIZER, allows
from tests.unit.serve.tool_requests import TEMPLATES, RecordingEngine, make_builder, prepare_request

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


def to_lark(grammar: ToolGrammar | str) -> str:
    return convert_tool_grammar(grammar) if isinstance(grammar, ToolGrammar) else f"start: {grammar}"


def start(grammar: ToolGrammar | str) -> llguidance.LLMatcher:
    """Return a matcher of the grammar at the beginning of an output."""
    matcher = llguidance.LLMatcher(TOKENIZER, to_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    if isinstance(grammar, ToolGrammar) and not (grammar.triggers or grammar.thinking_ends or grammar.call_starts):
        prompt_end = list(grammar.prompt_end.encode())
        assert matcher.try_consume_tokens(prompt_end) == len(prompt_end)
    return matcher


def is_complete(matcher: llguidance.LLMatcher, text: str) -> bool:
    """Return whether `text` is a complete output."""
    copy = matcher.deep_copy()
    return copy.try_consume_tokens(list(text.encode())) == len(text.encode()) and copy.is_accepting()


REQUIRED_OR_FORMAT: list[dict[str, Any]] = [
    {"tool_choice": "required"}, {"tool_choice": "required", "parallel_tool_calls": False},
    {"output_format": OutputFormat('%json {"type": "object"}', "response_format")},
]  # fmt: skip
UNUSUAL_SCHEMAS: list[object] = [
    True, {"$ref": "#"}, {"$ref": "#/$defs/none"}, {"type": "foo"}, {"enum": []}, {"type": "array"},
    {"type": ["string", "null"]}, {"not": {}}, {"$ref": "https://example.com/schema.json"},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES)
def test_unusual_schema_of_one_tool_does_not_refuse_the_request(renderer: Renderer, template: str) -> None:
    engine = RecordingEngine()
    builder = make_builder(renderer, template, engine)
    for schema in UNUSUAL_SCHEMAS:
        parameters = {"type": "object", "properties": {"city": schema}}
        prepared = prepare_request(builder, {"odd": parameters, "good": CITY})
        prompt = builder.build([PromptMessage("user", "Weather?")], prepared.options)
        assert "Weather?" in engine.text
        assert prompt.reply_format.has_native_tools == builder.formats.has_native_tools, schema
        if prepared.options.tools:  # the model still reads the whole schema
            assert prepared.options.tools[0]["function"]["parameters"] == parameters
        if prepared.grammars:
            assert "" in [llguidance.LLMatcher.validate_grammar(to_lark(g)) for g in prepared.grammars], schema


@pytest.mark.parametrize("template", TEMPLATES)
def test_required_call_cannot_be_left_out(renderer: Renderer, template: str) -> None:
    builder = make_builder(renderer, template)
    for think, fields in itertools.product((False, True), REQUIRED_OR_FORMAT):
        try:
            grammars = prepare_request(builder, {"f": CITY, "g": CITY}, think=think, **fields).grammars
        except ApiError:  # this model's calls cannot be combined with an output format
            assert "tool_choice" not in fields
            continue
        assert grammars
        for grammar in grammars:
            matcher = start(grammar)
            assert not matcher.is_accepting()
            end_tags = grammar.thinking_ends[:1] if isinstance(grammar, ToolGrammar) else []
            for text in ("", " ", "\n\n", *(f"{tag}{space}" for tag in end_tags for space in ("", "\n\n", " \n" * 20))):
                assert not is_complete(matcher, text), (fields, text)


def make_call(index: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"abcdefgh{index}", "type": "function", "function": function}


def write_calls(
    builder: PromptBuilder, engine: RecordingEngine, names: list[str],
    functions: Mapping[str, Any] = MappingProxyType({"get_weather": CITY, "get_time": CITY}),
    arguments: Mapping[str, Any] = MappingProxyType({"city": "Paris"}),
) -> str:  # fmt: skip
    """Return how the template writes a reply that calls functions, and the text after it. Raises TemplateError."""
    options = prepare_request(builder, functions).options
    builder.build([PromptMessage("user", "Hi")], options)
    prompt = engine.text
    calls = [make_call(i, name, dict(arguments)) for i, name in enumerate(names)]
    results = [PromptMessage("tool", "sunny", extra_fields={"tool_call_id": call["id"]}) for call in calls]
    reply = PromptMessage("assistant", "", extra_fields={"tool_calls": calls})
    builder.build([PromptMessage("user", "Hi"), reply, *results], options)
    n_same = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, engine.text, strict=False))
    )
    prefix = prompt[:n_same]
    if prefix.rfind("<") > prefix.rfind(">"):  # the calls and the reasoning begin with tags
        prefix = prefix[: prefix.rfind("<")]
    return engine.text[len(prefix) :]


def find_accepted(grammar: ToolGrammar, output: str) -> str:
    """Return the part of an output from the beginning of its call that the grammar accepts."""
    detector = TriggerDetector(grammar)
    for position, letter in enumerate(output):
        call_start = detector.feed(letter)
        if call_start is not None:
            text = (call_start + output[position + 1 :]).encode()
            matcher = start(grammar)
            n_accepted = matcher.try_consume_tokens(list(text))
            return text[:n_accepted].decode("utf-8", "ignore")
    return ""


@pytest.mark.slow
def test_several_calls_are_refused_if_the_request_allows_one(renderer: Renderer) -> None:
    functions = {"get_weather": CITY, "get_time": CITY}
    n_single, n_several = 0, 0
    for template in TEMPLATES:
        engine = RecordingEngine()
        builder = make_builder(renderer, template, engine)
        if not builder.formats.has_native_tools:
            continue
        single, several = (
            prepare_request(builder, functions, parallel_tool_calls=allow_parallel).grammars
            for allow_parallel in (False, True)
        )
        if not single or not isinstance(single[0], ToolGrammar) or not isinstance(several[0], ToolGrammar):
            continue
        outputs = []
        with contextlib.suppress(TemplateError):
            call = find_accepted(single[0], write_calls(builder, engine, ["get_weather"]))
            if "Paris" in call:
                n_single += 1
                outputs += [f"{call.rstrip()}{space}{call}" for space in ("", "\n", " ", "\n\n")]
        with contextlib.suppress(TemplateError):
            output = write_calls(builder, engine, ["get_weather", "get_time"])
            outputs.append(output)
            n_several += find_accepted(several[0], output).count("Paris") == 2
        for output in outputs:
            assert find_accepted(single[0], output).count("Paris") <= 1, (template, output)
    assert n_single >= 50  # a few templates do not begin a call with the text that llama.cpp waits for
    assert n_several >= 45


@pytest.mark.slow
def test_call_in_open_reasoning_is_constrained(renderer: Renderer) -> None:
    """llama.cpp's parsers of several families end the reasoning where a call begins."""
    templates = []
    for template in TEMPLATES:
        engine = RecordingEngine()
        builder = make_builder(renderer, template, engine)
        if not builder.formats.has_native_tools:
            continue
        fields: dict[str, Any] = {"think": True, "parallel_tool_calls": False}
        auto = prepare_request(builder, {"get_weather": CITY}, **fields)
        required = prepare_request(builder, {"get_weather": CITY}, **fields, tool_choice="required").grammars[0]
        auto_grammar = auto.grammars[0] if auto.grammars else None
        if not isinstance(auto_grammar, ToolGrammar) or not isinstance(required, ToolGrammar):
            continue
        if not set(auto_grammar.thinking_ends) & {trigger.value for trigger in auto_grammar.triggers}:
            continue
        call = find_accepted(auto_grammar, "</think>" + write_calls(builder, engine, ["get_weather"]).lstrip())
        assert "Paris" in call, template
        templates.append(template)
        prefix = "" if TriggerDetector(auto_grammar).is_thinking else auto_grammar.thinking_start
        for reasoning in ("", "I need it.\n", "<tool> a < b"):
            assert find_accepted(auto_grammar, f"{prefix}{reasoning}{call}") == call, template
            for end in ("", "</think>", "\n</think>\n\n"):
                assert is_complete(start(required), f"{prefix}{reasoning}{end}{call}"), (template, reasoning, end)
            start_tag = auto_grammar.triggers[0].value
            assert not is_complete(start(required), f"{prefix}{reasoning}{start_tag}{call}"), template
    assert len(templates) >= 7


SMALL = {
    "type": "object",
    "properties": {
        "path": {"type": "string"}, "depth": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "mode": {"enum": ["r", "w"]},
    },
    "required": ["path"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES)
def test_many_tools_have_a_grammar_within_the_limit(
    renderer: Renderer, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is meant for the 218 tools of 12 public MCP servers; half of them are half as long."""
    builder = make_builder(renderer, template)
    n_attempts, find_reply_format = itertools.count(), builder.formats.find

    def find_counted(options: PromptOptions) -> ReplyFormat:
        next(n_attempts)
        return find_reply_format(options)

    monkeypatch.setattr(builder.formats, "find", find_counted)
    grammars = prepare_request(builder, {f"tool_{i}": SMALL for i in range(109)}).grammars
    assert next(n_attempts) < 100
    for grammar in grammars[:1]:
        limit = (MAX_TOOL_GRAMMAR_CHARS if isinstance(grammar, ToolGrammar) else MAX_GRAMMAR_CHARS) // 2
        is_short = isinstance(grammar, ToolGrammar) and len(grammar.gbnf) * 1.1 < limit
        assert is_short or len(to_lark(grammar)) < limit


@pytest.mark.slow
@pytest.mark.parametrize("template", ["Qwen-Qwen3-0.6B", "openai-gpt-oss-120b"])
def test_too_many_tools_have_weaker_grammars_that_can_be_compiled(renderer: Renderer, template: str) -> None:
    builder = make_builder(renderer, template)
    first, *_, last = prepare_request(builder, {f"tool_{i}": SMALL for i in range(700)}).grammars
    assert isinstance(first, ToolGrammar)
    assert isinstance(last, ToolGrammar)
    assert len(first.gbnf) > MAX_TOOL_GRAMMAR_CHARS
    lark = to_lark(last)
    assert len(lark) < MAX_TOOL_GRAMMAR_CHARS
    check_grammar(lark)


@pytest.mark.slow
def test_output_format_is_not_forced_in_open_reasoning(renderer: Renderer) -> None:
    open_templates = []
    for template in TEMPLATES:
        engine = RecordingEngine()
        builder = make_builder(renderer, template, engine)
        prompt = builder.build([PromptMessage("user", "Hi")], PromptOptions(think=True))
        reply_format = prompt.reply_format
        if not reply_format.is_reasoning_open(engine.text):
            continue
        open_templates.append(template)
        reasoning_format = choose_reasoning_format(builder.reasoning_format, reply_format)
        lark = add_reasoning_rules("/[0-9]+/", reasoning_format, prompt.phase, think=True)
        assert not allows(lark, "7"), template
        assert any(allows(lark, f"Hm.{end}7") for end in reply_format.thinking_ends), template
    assert {"Kimi-K3", "tencent-Hy3", "Apriel-1.6-15b-Thinker-fixed"} <= set(open_templates)
    assert len(open_templates) >= 20


@pytest.mark.slow
def test_formatted_content_is_between_the_marks_of_the_model(renderer: Renderer) -> None:
    found = {}
    for template, think in itertools.product(TEMPLATES, (False, True)):
        builder = make_builder(renderer, template)
        prompt = builder.build([PromptMessage("user", "Hi")], PromptOptions(think))
        marks = builder.formats.find_content_marks(PromptOptions(think))
        if not marks.starts:
            continue
        found[template] = marks
        reasoning_format = choose_reasoning_format(builder.reasoning_format, prompt.reply_format)
        content = '{"sum": 5}'
        lark = add_reasoning_rules(json.dumps(content), reasoning_format, prompt.phase, think=think, marks=marks)
        reasoning = ""
        if reasoning_format is not None and (think or prompt.phase == "reasoning"):
            start_tag = "" if prompt.phase == "reasoning" else reasoning_format.start_tag
            reasoning = f"{start_tag}Hm.{reasoning_format.end_tag}"
        assert not allows(lark, reasoning + content)
        for mark, end in itertools.product(marks.starts, {"", marks.end}):
            output = f"{reasoning}{mark}{content}{end}"
            assert allows(lark, output), (template, output)
            for size in (1, 1000):
                parser = builder.create_reply_parser(prompt)
                streamed = "".join(
                    [parser.feed(output[i : i + size]).content for i in range(0, len(output), size)]
                    + [parser.finish().content]
                )
                assert parser.reply.content == streamed == content, (template, output)
                assert parser.reply.reasoning == ("Hm." if reasoning else ""), (template, output)
    assert {name: marks.starts[-1] for name, marks in found.items()} == {
        "Cohere2MoE": "<|START_TEXT|>", "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|START_RESPONSE|>",
        "Kimi-K3": "<|open|>response<|sep|>", "meetkai-functionary-medium-v3.2": "all\n",
        "muse-glimmer": " to=user<|message|>", "upstage-Solar-Open-100B": "<|content|>",
        "openai-gpt-oss-120b": "<|channel|>final <|constrain|>json<|message|>",
    }  # fmt: skip


STRICT_VALUES: list[tuple[dict[str, Any], object, object]] = [
    ({"type": "string", "enum": ["aaa", "bbb"]}, "aaa", "ccc"),
    ({"type": "string", "pattern": "^a+$"}, "aaa", "aab"), ({"type": "integer", "minimum": 500}, 774, 442),
    ({"type": "number", "minimum": 500}, 774, 442), ({"anyOf": [{"const": "aaa"}, {"type": "null"}]}, "aaa", "ccc"),
    ({"type": "array", "items": {"enum": ["aaa", "bbb"]}}, ["aaa"], ["ccc"]),
    ({"type": "object", "properties": {"y": {"const": "aaa"}}, "required": ["y"]}, {"y": "aaa"}, {"y": "ccc"}),
]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_strict_tool_is_enforced_in_the_format_that_is_used(renderer: Renderer, template: str) -> None:
    engine = RecordingEngine()
    builder = make_builder(renderer, template, engine)
    for schema, valid, invalid in STRICT_VALUES:
        parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
        prepared = prepare_request(builder, {"f": parameters}, strict=True, tool_choice="required")
        grammar = prepared.grammars[0]
        if not prepared.has_native_format:
            assert isinstance(grammar, str)
            assert is_complete(start(grammar), format_calls([("f", json.dumps({"x": valid}))]))
            for arguments in ({"x": invalid}, {}):
                assert not is_complete(start(grammar), format_calls([("f", json.dumps(arguments))]))
            continue
        assert isinstance(grammar, ToolGrammar)
        auto_grammar = prepare_request(builder, {"f": parameters}, strict=True).grammars[0]
        if not isinstance(auto_grammar, ToolGrammar):  # Llama 3 has no grammar of optional calls
            continue
        accepted = {}
        for name, arguments in (("valid", {"x": valid}), ("invalid", {"x": invalid})):
            with contextlib.suppress(TemplateError):
                output = write_calls(builder, engine, ["f"], {"f": parameters}, arguments)
                accepted[name] = find_accepted(auto_grammar, output)
        if json.dumps(valid)[1:-1] in accepted.get("valid", ""):
            assert len(accepted["valid"]) > len(accepted.get("invalid", "")), (schema, accepted)


@pytest.mark.parametrize("template", TEMPLATES)
def test_calls_in_the_generic_format_are_read_with_every_template(renderer: Renderer, template: str) -> None:
    engine = RecordingEngine()
    builder = make_builder(renderer, template, engine)
    call = format_calls([("f", '{"x": [1]}')])
    for think in (False, True):
        messages = [PromptMessage("system", "You can call f."), PromptMessage("user", "Hi"),
                    PromptMessage("assistant", call), PromptMessage("user", "Now?")]  # fmt: skip
        prompt = builder.build(messages, PromptOptions(think))
        assert call in engine.text
        reasoning_format = choose_reasoning_format(builder.reasoning_format, prompt.reply_format)
        marks = builder.formats.find_content_marks(PromptOptions(think))
        lark = add_reasoning_rules(json.dumps(call), reasoning_format, prompt.phase, think=think, marks=marks)
        prefixes = [""] if reasoning_format is None else ["", f"Hm.{reasoning_format.end_tag}"]
        prefix = next(p + m for p in prefixes for m in marks.starts or [""] if allows(lark, p + m + call))
        for size in (1, 1000):
            parser = builder.create_reply_parser(prompt, ["f"], use_generic_calls=True)
            for i in range(0, len(prefix + call), size):
                parser.feed((prefix + call)[i : i + size])
            parser.finish()
            assert [(c.name, c.arguments) for c in parser.reply.calls] == [("f", '{"x": [1]}')]
            assert parser.reply.content == ""
            assert parser.reply.reasoning.strip() in {"", "Hm."}


def test_every_trained_form_of_a_call_of_gpt_oss_is_allowed(renderer: Renderer) -> None:
    grammars = prepare_request(
        make_builder(renderer, "openai-gpt-oss-120b"), {"f": CITY}, think=True, tool_choice="required"
    ).grammars
    for call in (
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f<|message|>",
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>analysis to=functions.f code<|message|>",
    ):
        for prefix in (
            "",
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant",
            "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant",
        ):
            assert is_complete(start(grammars[0]), prefix + call + '{"city": "Paris"}'), (prefix, call)
    assert not is_complete(start(grammars[0]), '<|channel|>commentary<|message|>{"city": "Paris"}')
