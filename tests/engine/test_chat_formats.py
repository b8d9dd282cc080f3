"""llama.cpp's chat formats: its own cases, read as it reads them, whole and in pieces; and their grammars."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import llguidance
import pytest

from edgechat.errors import TemplateError
from edgechat.prompt import renderer as renderer_module
from edgechat.prompt.renderer import Renderer
from edgechat.prompt.reply_format import (
    FormatRequest,
    TemplateInfo,
    ToolChoice,
    apply_template,
    find_reply_format,
    make_reply_format,
)
from edgechat.prompt.reply_parser import ParsedReply, ReplyParser
from edgechat.prompt.thoughts import ThoughtFinder
from edgechat.runtime.gbnf import convert_to_lark
from edgechat.runtime.tool_grammar import TriggerDetector
from tests.fuzzing import shorten
from tests.grammars import TOKENIZER
from tests.llama_cpp import read_chat_cases

pytestmark = pytest.mark.long

TOOL_CHOICES: tuple[ToolChoice, ...] = ("auto", "required", "none")
# Cases that are read differently, by the beginning of their output, and whether they continue a reply.
DIFFERENCES = {
    # With a JSON schema, llama.cpp removes a code block around the JSON; here the grammar of the schema allows none.
    ("[THINK]I need to output the invoice details in JSON[/THINK]```json", False): "code block",
    ('```json\n"42"\n```', False): "code block",
    # The chat library itself takes the text that continues the reply for reasoning.
    ("Hello, world!", True): "continued reply of StepFun",
    # llama.cpp repeats the text with which the prompt of Apriel 1.6 begins the reasoning.
    ("I'm\nthinking\n[BEGIN FINAL RESPONSE]", False): "text of the prompt",
}  # fmt: skip
# Output with a call in a CDATA section, which llguidance's lazy terminals cannot tell from plain text.
GRAMMAR_DIFFERENCES = ('<function name="html"><param name="markup"><![CDATA[<a href="/x">hi</a> </param>]]>',)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr(renderer_module, "TIMEOUT_S", 300.0)  # one of thousands of calls can wait on a busy machine
        yield process
    process.close()


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    """Complete cases whose reasoning is to be split from the content."""
    found = read_chat_cases()
    assert len(found) >= 463
    return [c for c in found if not c["is_partial"] and (c["splits_reasoning"] or not _has_reasoning(c))]


def _has_reasoning(case: dict[str, Any]) -> bool:
    marks = ("think", "<|channel", "i need to check the time first.")
    return case["continues_reply"] or any(mark in case["output"].lower() for mark in marks)


def make_parser(renderer: Renderer, case: dict[str, Any]) -> ReplyParser:
    template = TemplateInfo(case["template"], "", "")
    request = make_request(case)
    generation_prompt = None
    if case["continues_reply"]:
        applied = apply_template(renderer, template, request, case["messages"], continues_reply=True)
        reply_format = make_reply_format(applied, request, has_native_tools=bool(case["tools"]))
        generation_prompt = applied["generation_prompt"]
    else:
        reply_format = find_reply_format(renderer, template, request)
    tags = [(reply_format.thinking_start, end) for end in reply_format.thinking_ends[:1] if reply_format.thinking_start]
    names = [tool["function"]["name"] for tool in case["tools"]]
    clock = itertools.count(0, 1000).__next__  # no parse is skipped
    return ReplyParser(
        renderer.call_chat_library, reply_format, ThoughtFinder(case["template"], (), tags),
        generation_prompt=generation_prompt, tool_names=names, clock=clock,
    )  # fmt: skip


def make_request(case: dict[str, Any]) -> FormatRequest:
    return FormatRequest(
        think=case["think"], variables={name: json.loads(value) for name, value in case["variables"].items()},
        tools=case["tools"], tool_choice=TOOL_CHOICES[case["tool_choice"]], allow_parallel=case["allow_parallel"],
    )  # fmt: skip


def normalize(reasoning: str, content: str, calls: list[tuple[str, str]]) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return the parts of a reply without surrounding white space, with the arguments as values."""
    return reasoning.strip(), content.strip(), [(name, json.loads(arguments)) for name, arguments in calls]


def find_differences(case: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return the keys of `DIFFERENCES` that apply to a case."""
    return [key for key in DIFFERENCES if case["output"].startswith(key[0]) and key[1] == case["continues_reply"]]


def read_in_pieces(parser: ReplyParser, pieces: list[str]) -> ParsedReply:
    """Feed pieces; return the joined deltas, which must be the complete reply."""
    reasoning, content = "", ""
    calls: dict[int, tuple[str, str]] = {}
    for delta in [*(parser.feed(piece) for piece in pieces), parser.finish()]:
        reasoning, content = reasoning + delta.reasoning, content + delta.content
        for call in delta.calls:
            name, arguments = calls.get(call.call_index, ("", ""))
            calls[call.call_index] = name + call.name, arguments + call.arguments
    reply = parser.reply
    assert (reasoning, content) == (reply.reasoning, reply.content)
    assert list(calls.values()) == [(call.name, call.arguments) for call in reply.calls]
    return reply


@pytest.mark.parametrize("pieces", ["whole", "halves", "letters"])
def test_outputs_are_read_as_llama_cpp_reads_them(renderer: Renderer, cases: list[dict[str, Any]], pieces: str) -> None:
    counts: Counter[tuple[str, bool]] = Counter()
    differences, listed = [], set()
    step = shorten(1, 5) if pieces == "letters" else 1
    for case in [c for i, c in enumerate(cases) if i % step == 0 or find_differences(c)]:
        output = case["output"]
        middle = len(output) // 2
        split = {"whole": [output], "halves": [output[:middle], output[middle:]], "letters": list(output)}[pieces]
        reply = read_in_pieces(make_parser(renderer, case), split)
        beginning = case["messages"][-1] if case["continues_reply"] else {}
        got = normalize(
            (beginning.get("reasoning_content") or "") + reply.reasoning,
            (beginning.get("content") or "") + reply.content,
            [(call.name, call.arguments) for call in reply.calls],
        )
        wanted = normalize(
            case["reasoning"], case["content"], [(call["name"], call["arguments"]) for call in case["tool_calls"]]
        )
        kind = "calls" if case["tool_calls"] else "reasoning" if case["reasoning"] else "plain"
        counts[kind, got == wanted] += 1
        if got != wanted:
            keys = find_differences(case)
            listed.update(keys)
            differences += [] if keys else [(output, got, wanted)]
    assert not differences, (counts, differences)
    assert listed == DIFFERENCES.keys()


def test_grammars_allow_the_calls_of_the_cases(renderer: Renderer, cases: list[dict[str, Any]]) -> None:
    n_checked = 0
    for case in cases:
        if not case["tool_calls"] or case["continues_reply"] or case["output"].startswith(GRAMMAR_DIFFERENCES):
            continue
        try:
            reply_format = find_reply_format(renderer, TemplateInfo(case["template"], "", ""), make_request(case))
        except TemplateError as error:
            pytest.fail(f"{error}: {case['output']}")
        grammar = reply_format.tool_grammar
        if grammar is None:
            continue
        constrained: str | None = grammar.prompt_end + case["output"]
        if grammar.triggers:
            constrained = None
            detector = TriggerDetector(grammar)
            for position, letter in enumerate(case["output"]):
                call_start = detector.feed(letter)
                if call_start is not None:
                    constrained = call_start + case["output"][position + 1 :]
                    break
        if constrained is None:  # a call inside the reasoning
            continue
        lark = convert_to_lark(grammar.gbnf, grammar.delimiters)
        matcher = llguidance.LLMatcher(TOKENIZER, lark, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        tokens = list(constrained.encode())
        assert matcher.try_consume_tokens(tokens) == len(tokens), (case["output"], constrained, lark)
        assert matcher.is_accepting()
        n_checked += 1
    assert n_checked > 200
