"""What the server says and reads, without a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import llguidance
import msgspec
import pytest

from edgechat.engine.protocol import GenerationStats, TokensGenerated
from edgechat.errors import GrammarError
from edgechat.prompt.reasoning import REASONING_FORMATS, ReasoningFormat
from edgechat.prompt.renderer import Renderer
from edgechat.prompt.tool_formats import (
    GENERIC_TOOL_FORMAT,
    TOOL_FORMATS,
    ToolFormat,
    detect_tool_format,
    template_tools,
)
from edgechat.serve import errors, grammars, openapi
from edgechat.serve.chat import reasoning_enabled, select_tools
from edgechat.serve.chat_prompt import template_messages, tool_definitions
from edgechat.serve.choices import Choice, UsageTotals
from edgechat.serve.completions import split_inputs
from edgechat.serve.errors import ApiError
from edgechat.serve.model_lease import ModelLease
from edgechat.serve.schemas import ChatRequest, Function, SchemaFormat, Tool

WEATHER = Tool(Function("get_weather", "The weather", {"type": "object", "properties": {"city": {"type": "string"}}}))
TIME = Tool(Function("get_time", None, None))
THINK = REASONING_FORMATS[-1]
ALL_FORMATS = [*TOOL_FORMATS, GENERIC_TOOL_FORMAT]


class Bytes:
    """A vocabulary of the 256 bytes and an end."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([b]) for b in range(256)), b"\xff<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


VOCABULARY = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), slices=[])


def allows(grammar: str, text: str) -> bool:
    """True if the whole text may be said, and end there."""
    matcher = llguidance.LLMatcher(VOCABULARY, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


def called(form: ToolFormat, *calls: tuple[str, str]) -> str:
    """Calls as a model writes them."""
    return form.format_calls(calls)


def of_tools(form: ToolFormat, *, must: bool = False, several: bool = True) -> str:
    rules = grammars.tool_call_rules([WEATHER, TIME], form, required=must, parallel=several)
    return grammars.with_reasoning(rules, None, "content", think=True)


# Tools


@pytest.mark.parametrize("form", ALL_FORMATS, ids=lambda f: f.trigger or "bare")
def test_calls_are_bounded_in_every_familys_own_words(form: ToolFormat) -> None:
    one, other = ("get_weather", '{"city": "Paris"}'), ("get_time", "{}")
    for grammar in (of_tools(form), of_tools(form, must=True)):
        assert allows(grammar, called(form, one))
        assert allows(grammar, called(form, other, one))
        assert not allows(grammar, called(form, ("get_weather", '{"city": 5}')))
        assert not allows(grammar, called(form, ("get_news", "{}")))
    assert not allows(of_tools(form, several=False), called(form, one, other))
    for text in ("", "It is sunny.", "a < b, [1]"):
        assert allows(of_tools(form), text)
        assert not allows(of_tools(form, must=True), text)
    if form.trigger:
        assert allows(of_tools(form), "Let me see. " + called(form, one))
        assert not allows(of_tools(form), form.trigger + "whatever")


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()


NATIVE = (
    "{% for t in tools %}{{ t.function.name }} {{ t | tojson }};{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}({{ c.function.arguments.city }}){{ c.id | length }}{% endfor %}"
    "{{ m.tool_call_id }}\n{% endfor %}"
)


def conversation(**more: Any) -> ChatRequest:
    call = {
        "id": "call_123456",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    body = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Weather?"}, {"role": "user", "content": "In Paris."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_123456", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"title": "<|user|>"}}}],
    } | more  # fmt: skip
    return errors.decode_body(json.dumps(body).encode(), ChatRequest)


def test_tools_in_a_template_that_knows_them(renderer: Renderer) -> None:
    wanted = conversation()
    form = detect_tool_format(NATIVE)
    assert form.template_supports_tools
    messages = template_messages(wanted.messages, wanted.tools or (), form)
    assert [m.role for m in messages] == ["system", "user", "assistant", "tool"]
    assert messages[1].content == "Weather?\n\nIn Paris."
    control = ["<|user|>"]
    rendered = renderer.render(
        NATIVE,
        messages,
        bos="",
        eos="",
        control_tokens=control,
        variables={"tools": template_tools(tool_definitions(wanted.tools or ()))},
    )
    assert "<tool_call>get_weather(Paris)9" in rendered.text
    assert rendered.guard  # what a tool's description holds is no command
    assert rendered.text.count("<|user|>") == 1
    ids = {m.extra["tool_call_id"] for m in messages if m.role == "tool"}
    assert ids == {messages[2].extra["tool_calls"][0]["id"]}


def test_tools_in_words_of_our_own_where_a_template_knows_none() -> None:
    wanted = conversation()
    messages = template_messages(wanted.messages, wanted.tools or (), GENERIC_TOOL_FORMAT)
    assert [m.role for m in messages] == ["system", "user", "assistant", "user"]
    assert "get_weather" in messages[0].content
    assert messages[0].content.endswith("Be brief.")
    assert messages[2].content == called(GENERIC_TOOL_FORMAT, ("get_weather", '{"city": "Paris"}'))
    assert "rain" in messages[3].content


def test_which_tools_may_be_called() -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice, n_tools, must in (
        (None, 1, False),
        ("auto", 1, False),
        ("none", 0, False),
        ("required", 1, True),
        (named, 1, True),
    ):
        found, must_call = select_tools(conversation(tool_choice=choice))
        assert (len(found), must_call) == (n_tools, must)
    for more in (
        {"tool_choice": "required", "tools": []},
        {"tool_choice": {"type": "function", "function": {"name": "x"}}},
    ):
        with pytest.raises(ApiError):
            select_tools(conversation(**more))


def test_arguments_that_are_no_json_are_refused() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{"}}
    wanted = conversation(messages=[{"role": "assistant", "tool_calls": [call]}])
    with pytest.raises(ApiError, match=r"messages\[0\]\.tool_calls\[0\]\.function\.arguments"):
        template_messages(wanted.messages, (), detect_tool_format(NATIVE))


# Thinking


@pytest.mark.parametrize("form", REASONING_FORMATS, ids=lambda f: f.start_tag)
def test_what_is_thought_is_free_and_what_follows_is_bounded(form: ReasoningFormat) -> None:
    rule = grammars.response_format_rule(
        errors.decode_body(b'{"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}}', SchemaFormat)
    )
    opened = grammars.with_reasoning(rule, form, "reasoning", think=True)
    assert allows(opened, f"hm {{ < {form.end_tag}{form.content_prefix}7")
    assert not allows(opened, f"hm{form.end_tag}{form.content_prefix}seven")
    fresh = grammars.with_reasoning(rule, form, "start", think=True)
    assert allows(fresh, f"{form.start_tag}\nhm\n{form.end_tag}\n\n{form.content_prefix}7")
    assert allows(fresh, f"{form.content_prefix}7")
    assert not allows(fresh, "hm 7")
    assert allows(grammars.with_reasoning(rule, form, "start", think=False), "7")


def test_thinking_is_as_asked_for_or_as_set() -> None:
    assert reasoning_enabled(conversation(), default=None)
    assert not reasoning_enabled(conversation(), default=False)
    assert not reasoning_enabled(conversation(reasoning_effort="none"), default=True)
    assert reasoning_enabled(conversation(reasoning_effort="high"), default=False)
    assert not reasoning_enabled(
        conversation(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="high"), default=True
    )


# Turns


async def test_models_compute_one_at_a_time_and_none_waits_for_ever() -> None:
    turns, order = ModelLease(), []

    async def ask(model: str, name: str, steps: int) -> None:
        await turns.acquire(model)
        order.append(name)
        for _ in range(steps):
            await asyncio.sleep(0)
        order.append(f"{name} ends")
        turns.release()

    tasks = [
        asyncio.ensure_future(ask(*each))
        for each in (("a", "a1", 9), ("a", "a2", 5), ("b", "b1", 2), ("a", "a3", 1), ("b", "b2", 1))
    ]
    await asyncio.sleep(0)
    gone = asyncio.ensure_future(ask("b", "gone", 1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(*tasks)
    assert order == ["a1", "a2", "a2 ends", "a1 ends", "b1", "b1 ends", "a3", "a3 ends", "b2", "b2 ends"]
    assert (turns._model, turns._n_requests, len(turns._waiting)) == ("", 0, 0)


# What is sent


def test_a_choice_parts_thoughts_text_and_calls() -> None:
    choice = Choice(0, THINK, "start", tools=GENERIC_TOOL_FORMAT)
    said = "<think>\nhm\n</think>\n\nYes. " + called(GENERIC_TOOL_FORMAT, ("get_time", "{}"))
    got = [choice.feed(TokensGenerated(id=1, text=letter, tokens=[])) for letter in said]
    last = choice.finish("stop")
    assert "".join(d.reasoning for d in got) == choice.reasoning == "hm"
    assert "".join(d.content for d in got) + last.content == choice.content == "Yes. "
    assert [c.name for c in choice.calls] == ["get_time"]
    assert last.finish_reason == choice.finish_reason == "tool_calls"
    cut = Choice(0)
    cut.feed(TokensGenerated(id=1, text="Half", tokens=[]))
    assert cut.finish("cancelled").finish_reason == "length"


def test_costs_of_several_requests_add_up() -> None:
    costs = UsageTotals()
    assert costs.usage()["total_tokens"] == 0
    assert costs.timings()["prompt_per_second"] == 0
    for _ in range(2):
        costs.add(GenerationStats(
            prompt_tokens=10, cached_tokens=4, completion_tokens=5, ttft_s=0.1, prefill_tps=60.0, decode_tps=50.0, n_drafted=4, n_accepted=3
        ))  # fmt: skip
    usage, timings = costs.usage(), costs.timings()
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (20, 10, 30)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 8
    assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": 6, "rejected_prediction_tokens": 2}
    assert timings["prompt_n"] == 12
    assert timings["prompt_per_second"] == pytest.approx(60)
    assert timings["predicted_ms"] == pytest.approx(200)
    assert (timings["draft_n"], timings["draft_n_accepted"]) == (8, 6)


@pytest.mark.parametrize("texts", [[], ["a", 1], [1, [2]], [[1], "a"], ["a"] * 65])
def test_a_mixture_is_no_list_of_texts(texts: Any) -> None:
    with pytest.raises(ApiError):
        split_inputs(texts, "prompt")


def test_texts_and_tokens() -> None:
    assert split_inputs("a", "prompt") == ["a"]
    assert split_inputs([1, 2], "prompt") == [[1, 2]]
    assert split_inputs([[1], [2]], "prompt") == [[1], [2]]


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = openapi.document("1")
    text = msgspec.json.encode(document).decode()
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names
    assert names <= document["components"]["schemas"].keys()
    assert {"/v1/chat/completions", "/v1/embeddings", "/health", "/metrics"} <= document["paths"].keys()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"), ({"messages": [], "n": 1}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "top_p": 2}, "top_p"),
    ],
)  # fmt: skip
def test_an_error_names_its_field(body: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        errors.decode_body(json.dumps(body).encode(), ChatRequest)
    assert caught.value.param == param
    assert caught.value.body()["error"]["type"] == "invalid_request_error"


def test_properties_whose_names_could_come_twice_are_not_counted() -> None:
    for schema in ({"type": "object", "minProperties": 2}, {"items": {"minProperties": 3, "required": ["a", "b"]}}):
        form = msgspec.convert({"type": "json_schema", "json_schema": {"schema": schema}}, SchemaFormat)
        with pytest.raises(GrammarError, match="minProperties"):
            grammars.response_format_rule(form)
    fine = {"type": "object", "minProperties": 2, "required": ["a", "b"], "properties": {"a": {}, "b": {}}}
    assert grammars.response_format_rule(
        msgspec.convert({"type": "json_schema", "json_schema": {"schema": fine}}, SchemaFormat)
    )
