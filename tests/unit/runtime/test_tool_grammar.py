"""Tool grammars: where a call begins in a growing output, and the conversion of llama.cpp's grammars."""

from __future__ import annotations

import json

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.errors import GrammarError
from edgechat.runtime.gbnf import convert_to_lark
from edgechat.runtime.tool_grammar import ToolGrammar, Trigger, TriggerDetector
from tests.grammars import allows

CALLS = ToolGrammar(
    gbnf="",
    triggers=[Trigger("<call>")],
    thinking_start="<think>",
    thinking_ends=["</think>"],
    prompt_end="assistant: ",
)


def find_call(grammar: ToolGrammar, pieces: list[str]) -> str | None:
    """Return the output from the beginning of the call, when it was found."""
    detector = TriggerDetector(grammar)
    return next((found for piece in pieces if (found := detector.feed(piece)) is not None), None)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("Let me see. <call>f", "<call>f"),
        ("<think>a <call> b</think><call>c", "<call>c"),
        ("<think>a <call> b", None),
        ("no call", None),
        ("x" * 5000 + "<call>", "<call>"),
    ],
)
def test_call_is_found_outside_the_reasoning(output: str, found: str | None) -> None:
    assert find_call(CALLS, [output]) == found
    in_letters = find_call(CALLS, list(output))
    assert (in_letters is None) == (found is None)
    assert in_letters is None or in_letters == "<call>"


def test_reasoning_that_the_prompt_has_begun_is_followed() -> None:
    begun = ToolGrammar(
        gbnf="", triggers=CALLS.triggers, thinking_start="<think>", thinking_ends=["</think>"], prompt_end="a <think>\n"
    )
    assert find_call(begun, ["hm <call> hm</think>", "So <call>x"]) == "<call>x"
    assert find_call(begun, ["hm <call> hm"]) is None


def test_pattern_begins_the_call_at_its_last_group() -> None:
    grammar = ToolGrammar(gbnf="", triggers=[Trigger(r"assistant( to=\w+)", is_pattern=True)], prompt_end="<|assistant")
    assert find_call(grammar, [" to=f x"]) == " to=f x"
    anchored = ToolGrammar(gbnf="", triggers=[Trigger(r"^\s+to$", is_pattern=True)], prompt_end="assistant")
    assert find_call(anchored, [" ", "to"]) == " to"
    assert find_call(anchored, ["x", " to"]) is None


@given(st.text("ab<cal>think/", max_size=40), st.integers(0, 40))
def test_pieces_do_not_change_whether_a_call_is_found(output: str, cut: int) -> None:
    whole, halves = find_call(CALLS, [output]), find_call(CALLS, [output[:cut], output[cut:]])
    assert (whole is None) == (halves is None)


def convert_until(gbnf: str, **delimiters: list[str]) -> str:
    return convert_to_lark(gbnf, {name.replace("_", "-"): texts for name, texts in delimiters.items()})


AUTOMATON = "until-3 ::= | [<] until-3-01 | [^<] until-3\nuntil-3-01 ::= | [<] until-3-01 | [^<>] until-3\n"


def test_text_up_to_a_delimiter_is_one_terminal() -> None:
    for rule in (
        'root ::= "a" until-3 "<>" "b"',
        'root ::= "a" (until-3) "<>b"',
        'root ::= "a" text "<>" "b"\ntext ::= until-3',
    ):
        lark = convert_until(f"{rule}\n{AUTOMATON}", until_3=["<>"])
        for text in ("", "x < y", "<<", "<a>"):
            assert allows(lark, f"a{text}<>b"), (rule, text)
        assert not allows(lark, "ax<>y<>b")
    optional = convert_until(f'root ::= ("[" until-3)? "<>" "b"\n{AUTOMATON}', until_3=["<>"])
    assert allows(optional, "<>b")
    assert allows(optional, "[x<>b")


def test_rules_with_a_common_beginning_stay_apart() -> None:
    lark = convert_to_lark(
        'root ::= (first | second)+\nfirst ::= "<p=" "a" ">" integer\nsecond ::= "<p=" "b" ">" text\n'
        'text ::= [a-z]+\ninteger ::= "-"? [0-9]+\nstart ::= "unused"\n', {}
    )  # fmt: skip
    assert allows(lark, "<p=a>12<p=b>xy")
    assert not allows(lark, "<p=a>xy")


def test_invalid_grammar_is_an_error_in_one_sentence() -> None:
    for gbnf in ("root ::= (", 'root ::= "a', "::=", 'root ::= "\\q"'):
        with pytest.raises(GrammarError, match="cannot be read") as error:
            convert_to_lark(gbnf, {})
        assert "\n" not in str(error.value)


def test_every_value_of_json_is_allowed() -> None:
    value = "json-object | json-array | json-string | json-number | json-bool | json-null"
    lark = convert_to_lark(
        f'root ::= json-value\njson-value ::= {value}\nspace ::= | " " | "\\n"{{1,2}} [ \\t]{{0,20}}\n'
        'json-array ::= "[" space ("]" | json-value (space "," space json-value)* space "]")\n'
        'json-object ::= "{" space ("}" | json-string space ":" space json-value (space "," space json-string '
        'space ":" space json-value)* space "}")\njson-bool ::= "true" | "false"\njson-null ::= "null"\n'
        'json-number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? (("e" | "E") [+-]? [0-9]+)?\n'
        'json-string ::= "\\"" ( [^"\\\\] | "\\\\" ( ["\\\\/ bfnrt] | "u" [0-9a-fA-F]{4} ) )* "\\""\n', {},
    )  # fmt: skip
    assert not llguidance.LLMatcher.validate_grammar(lark)
    values: list[object] = [{"a": [1, -2.5e3, 'x"y\\ü', None, True, {}]}, [], "", 0]
    for value_to_write in values:
        assert allows(lark, json.dumps(value_to_write))
        assert allows(lark, json.dumps(value_to_write, ensure_ascii=False))
