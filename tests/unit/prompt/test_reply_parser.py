"""ReplyParser with llama.cpp's parsers: ends of replies, text of the prompt, and calls without their marks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from edgechat.prompt.renderer import Renderer
from edgechat.prompt.reply_format import (
    FormatRequest,
    ReplyFormat,
    TemplateInfo,
    apply_template,
    find_reply_format,
    make_reply_format,
)
from edgechat.prompt.reply_parser import ParsedReply, ReplyParser
from edgechat.prompt.thoughts import ThoughtFinder
from edgechat.prompt.tool_formats import format_calls
from tests.llama_cpp import read_templates

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "", "parameters": SCHEMA}}]
ENDS = ("if a <", "Use <tool", "Use [", "Ends with newlines\n\n", "a `", "a <|", "[TOOL", "x\n{")
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


def make_parser(
    renderer: Renderer, name: str, *, think: bool = False, reply_start: str = "", has_tools: bool = True
) -> ReplyParser:
    template = TemplateInfo(read_templates()[name], "", "")
    request = FormatRequest(think=think, tools=TOOLS if has_tools else [], variables={"enable_thinking": think})
    generation_prompt = None
    if reply_start:
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": reply_start}]
        applied = apply_template(renderer, template, request, messages, continues_reply=True)
        reply_format = make_reply_format(applied, request, has_native_tools=True)
        generation_prompt = applied["generation_prompt"]
    else:
        reply_format = find_reply_format(renderer, template, request)
    instants = itertools.chain.from_iterable(zip(itertools.count(), itertools.count()))  # a parse takes no time
    return ReplyParser(
        renderer.call_chat_library, reply_format, ThoughtFinder("", ()), generation_prompt=generation_prompt,
        tool_names=["get_weather"] if has_tools else [], clock=instants.__next__,
    )  # fmt: skip


def read(parser: ReplyParser, output: str) -> ParsedReply:
    """Feed the output by letters; return the joined deltas."""
    deltas = [*map(parser.feed, output), parser.finish()]
    assert "".join(d.content for d in deltas) == parser.reply.content
    return parser.reply


@pytest.mark.parametrize("name", sorted(read_templates()))
def test_end_of_a_reply_is_not_lost(renderer: Renderer, name: str) -> None:
    for end in ENDS:
        parser = make_parser(renderer, name)
        parser.feed(end)
        parser.finish()
        reply = parser.reply
        assert (reply.reasoning + reply.content).rstrip("\n").endswith(end.rstrip("\n")), (name, end, reply)


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "meta-llama-Llama-3.1-8B-Instruct", "Qwen3-Coder"])
def test_no_character_of_a_continued_reply_is_repeated(renderer: Renderer, name: str) -> None:
    assert read(make_parser(renderer, name, reply_start="if a <"), "b then").content == "b then"


def test_text_of_the_prompt_is_no_part_of_the_reply(renderer: Renderer) -> None:
    assert read(make_parser(renderer, "HuggingFaceTB-SmolLM3-3B", has_tools=False), "Hello").content == "Hello"


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "GLM-4.6", "Qwen-QwQ-32B"])
def test_call_in_open_reasoning_is_found(renderer: Renderer, name: str) -> None:
    call = f"<tool_call>\n{CALL}\n</tool_call>"
    if name.startswith("GLM"):
        call = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"
    start = "" if name == "Qwen-QwQ-32B" else "<think>\n"
    parser = make_parser(renderer, name, think=True)
    for letter in f"{start}I need the weather.\n{call}":
        parser.feed(letter)
    parser.finish()
    assert [(c.name, json.loads(c.arguments)) for c in parser.reply.calls] == [("get_weather", {"city": "Paris"})]
    assert parser.reply.reasoning == "I need the weather."


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "GLM-4.6", "Qwen3-Coder", "mistralai-Mistral-Nemo-Instruct-2407"])
def test_call_that_is_cut_is_a_call_from_its_name_on(renderer: Renderer, name: str) -> None:
    calls = {
        "GLM-4.6": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        "Qwen3-Coder": (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
        ),
        "mistralai-Mistral-Nemo-Instruct-2407": f'[TOOL_CALLS][{CALL[:-1]}, "id": "abcdefghi"}}]',
    }
    output = calls.get(name, f"<tool_call>\n{CALL}\n</tool_call>")
    for length in range(output.index("get_weather") + len("get_weather") + 2, len(output) + 1):
        parser = make_parser(renderer, name)
        deltas = [*map(parser.feed, output[:length]), parser.finish()]
        reply = parser.reply
        assert "get_weather" not in reply.content + "".join(d.content for d in deltas), (output[:length], reply)
        started = [c.name for d in deltas for c in d.calls if c.name]
        assert started == [c.name for c in reply.calls]
        assert len(reply.calls) <= 1


def test_arguments_in_the_generic_format_are_streamed_as_they_grow() -> None:
    def call_no_library(**_: object) -> dict[str, object]:
        raise AssertionError

    output = format_calls([("get_weather", '{"city": "Paris", "days": [1, 2]}')])
    for length in (len(output), output.index("days")):
        parser = ReplyParser(
            call_no_library, ReplyFormat(), ThoughtFinder("", ()), tool_names=["get_weather"], use_generic_calls=True,
            clock=itertools.chain.from_iterable(zip(itertools.count(), itertools.count())).__next__,
        )  # fmt: skip
        deltas = [c.arguments for letter in output[:length] for c in parser.feed(letter).calls]
        deltas += [c.arguments for c in parser.finish().calls]
        assert "".join(deltas) == parser.reply.calls[0].arguments
        assert len(deltas) > 10
        assert parser.reply.content == ""


def test_code_and_other_json_are_streamed_at_once(renderer: Renderer) -> None:
    for output in ("```python\nprint(1)\n```", "[1] A source says so.", '{"sum": 5, "b": 6}'):
        parser = make_parser(renderer, "Qwen-Qwen3-0.6B")
        streamed = "".join(parser.feed(letter).content for letter in output)
        assert len(streamed) > len(output) // 2, output
        parser.finish()
        assert parser.reply.content == output
    parser = make_parser(renderer, "Qwen-Qwen3-0.6B")
    assert "".join(parser.feed(letter).content for letter in f"```json\n{CALL}\n```") == ""
    parser.finish()
    assert len(parser.reply.calls) == 1


def test_quoted_tags_are_content(renderer: Renderer) -> None:
    finder = ThoughtFinder("<think>", ())
    for rest in ("In HTML a `<think>` tag is not known.", "```\n<think>\n```\nis code"):
        assert finder.split(f"<think>Secret</think>{rest}", is_final=True) == ("Secret", rest)
