"""Random chat templates, model outputs and requests for the chat library; each is determined by its number."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any, Final

from tests.llama_cpp import read_chat_cases, read_templates

MAX_OUTPUT_CHARS: Final = 64 << 10
MAX_TEMPLATE_CHARS: Final = 1 << 20
_TEMPLATE_PARTS: Final = re.compile(r"(\{[%{#].*?[%}#]\})", re.DOTALL)
_OUTPUT_PARTS: Final = re.compile(r"(<[^<>]{0,40}>|\[[A-Z_]+\]|[{}\[\]:,\"']|\n)")
# Templates that need much time, memory or stack, and expressions at the limits of numbers.
_TEMPLATE_BOMBS: Final = (
    "{% for a in range(99999999) %}{% for b in range(99999999) %}x{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f() %}{% call g() %}{{ f() }}{% endcall %}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'x' * 99999999999 }}",
    "{{ ('x' * 9999) * 9999 * 9999 }}",
    "{{ range(9999999999) | list | length }}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "{{ messages * 99999 }}",
    "{{ 9223372036854775807 + 1 }}{{ -9223372036854775808 // -1 }}{{ 1 % 0 }}{{ 1 // 0 }}{{ 1 / 0 }}",
    "{{ 2 ** 9999 }}{{ 1e999 | int }}{{ 'x'[9223372036854775807] }}{{ [1][-9223372036854775808:] }}",
    "{{ 'abc'[::-1] }}{{ 'abc'[1:99999:0] }}{{ messages[::-9223372036854775808] }}",
    "{{ messages | tojson(indent=99999999) }}",
    "{{ 'x' | indent(99999999) }}{{ 'x' | center(999999999) }}",
    "{{ 'abc'.replace('', 'x' * 99999) }}{{ 'abc'.split('') }}{{ 'a'.join(messages) }}",
    "{{ strftime_now('%Y' * 99999) }}",
    "{{ messages[0].content.x.y.z }}{{ raise_exception('no') }}",
    "{{ (((((((((((((((",
    "{% if",
    "{{ '\\ud800' }}{{ '\\x00' }}\0{{ '",
    "{% generation %}x{% endgeneration %}{% set x %}{% endset %}{% filter upper %}x{% endfilter %}",
    "{{ dict(a=1) | items | list }}{{ messages | groupby('role') | list }}{{ messages | sort(attribute='x') }}",
    "{{ messages | map('upper') | list }}{{ messages | selectattr('x', '>', 1) | list }}{{ [1, 'a'] | sort }}",
)
_NUMBERS: Final = (
    "0",
    "-1",
    "1e400",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551616",
    "99999999",
)
_VALUES: Final[tuple[Any, ...]] = (
    None, True, -1, 1 << 63, -(1 << 63), 1e308, "", "x", "\0", "\ud7ff", "{}", "[[", [], {}, [None], {"": {}},
    {"type": "object"}, {"$ref": "#"}, {"$ref": "#/properties/a"}, {"type": []}, {"enum": []}, {"minItems": 1 << 40},
    {"pattern": "((((((a*)*)*)*)*)*)*$"}, {"pattern": "^" + "a?" * 400 + "$"}, {"type": "string", "maxLength": 1 << 30},
)  # fmt: skip


def make_request(kind: str, number: int, seed: int) -> dict[str, Any]:
    """Return the request with this number to the chat library; a `parse` request has an `apply` request for its parser.

    The kinds are `template`, `request`, `output` and `long-output`.
    """
    rng = random.Random(f"{seed} {kind} {number}")
    cases = read_chat_cases()
    # Consecutive numbers use the same case, so that its parser is found in the library's cache.
    case = cases[number // 50 * 7919 % len(cases)] if "output" in kind else rng.choice(cases)
    apply = _make_apply(case)
    if kind == "template":
        template = _mutate_template(rng, rng.choice([case["template"], *read_templates().values()]))
        apply["template"] = template[:MAX_TEMPLATE_CHARS]
        return apply
    if kind == "request":
        apply = copy.deepcopy(apply)
        for _ in range(rng.choice((1, 1, 2))):
            _mutate_value(rng, apply)
        return apply
    text = _mutate_output(rng, case["output"], cases)
    if kind == "long-output":
        text = _lengthen(rng, text)
    return {"op": "parse", "apply": apply, "text": text[:MAX_OUTPUT_CHARS], "is_partial": rng.random() < 0.5}


def _make_apply(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "op": "apply", "template": case["template"], "bos": "<s>", "eos": "</s>",
        "messages": case["messages"] or [{"role": "user", "content": "Hello"}], "tools": case["tools"],
        "tool_choice": ("auto", "required", "none")[case["tool_choice"]], "thinking": case["think"],
        "parallel_tool_calls": case["allow_parallel"], "continues_reply": case["continues_reply"],
        "variables": {name: json.loads(value) for name, value in case["variables"].items()}, "now_s": 0,
    }  # fmt: skip


def _mutate_template(rng: random.Random, template: str) -> str:
    parts = _TEMPLATE_PARTS.split(template)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        kind = rng.randrange(100)
        if kind == 0:
            i = rng.randrange(len(parts))
            depth = rng.choice((2, 50, 1000, 5000, 20_000))
            opening, closing = rng.choice(
                [("{% if 1 %}", "{% endif %}"), ("{% for i in [1] %}", "{% endfor %}"), ("{{ (", "")]
            )
            parts[i] = opening * depth + parts[i] + closing * depth
        elif kind == 1:
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(_TEMPLATE_BOMBS))
        elif kind == 2:
            i = rng.randrange(len(parts))
            operator = rng.choice(("+1", ".x", "|string", "[0]", " not", " if x else 1", "~'x'", "(1)", "-", "("))
            parts[i] = parts[i].replace(" }}", operator * rng.choice((1, 20, 500, 20_000)) + " }}", 1)
        else:
            _mutate_parts(rng, parts, _split_template)
    return "".join(parts)


def _split_template(template: str) -> list[str]:
    return _TEMPLATE_PARTS.split(template)


def _mutate_output(rng: random.Random, output: str, cases: list[dict[str, Any]]) -> str:
    parts = _OUTPUT_PARTS.split(output)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        if rng.random() < 0.2:
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(_OUTPUT_PARTS.split(rng.choice(cases)["output"])))
        elif rng.random() < 0.1:
            nested = rng.choice(("[", "{", '{"a":', "{'a':", "[ ", '["]",', "<a>", "(", '"', "\\", "<|", "<"))
            parts.insert(rng.randrange(len(parts) + 1), nested * rng.choice((2, 30, 1000, 10_000)))
        else:
            _mutate_parts(rng, parts, _OUTPUT_PARTS.split)
    return "".join(parts)


def _mutate_parts(rng: random.Random, parts: list[str], split: Any) -> None:
    """Change the list of fragments: flip a character, delete, duplicate, swap, cut off, or change a number."""
    kind, i = rng.randrange(7), rng.randrange(len(parts))
    if kind == 0 and parts[i]:
        position = rng.randrange(len(parts[i]))
        character = chr(ord(parts[i][position]) ^ 1 << rng.randrange(7))
        parts[i] = parts[i][:position] + character + parts[i][position + 1 :]
    elif kind == 1:
        del parts[i : i + rng.choice((1, 1, 2, 10))]
        parts.append("")  # never empty
    elif kind == 2:
        j = i + rng.choice((1, 2, 10))
        parts[i:i] = parts[i:j] * rng.choice((1, 1, 1, 3, 50))
    elif kind == 3:
        j = rng.randrange(len(parts))
        parts[i], parts[j] = parts[j], parts[i]
    elif kind == 4:
        parts[:] = split("".join(parts)[: rng.randrange(sum(map(len, parts)) + 1)])
    elif kind == 5:
        parts[i] = re.sub(r"\d+", lambda _: rng.choice(_NUMBERS), parts[i], count=1)
    else:
        parts[i] = rng.choice(("\0", "\ufdd0", "😀", "é", "\x1b[0m", " " * 300, "\n" * 300, "a" * 3000, "_" * 3000))


def _lengthen(rng: random.Random, text: str) -> str:
    """Repeat a part of the text until it has `MAX_OUTPUT_CHARS` characters."""
    parts = _OUTPUT_PARTS.split(text)
    i = rng.randrange(len(parts))
    repeated = "".join(parts[i : i + rng.choice((1, 2, 3, 10, 100))]) or "<"
    count = MAX_OUTPUT_CHARS // len(repeated) + 1
    return ("".join(parts[:i]) + repeated * count + "".join(parts[i:]))[:MAX_OUTPUT_CHARS]


def _mutate_value(rng: random.Random, value: Any) -> None:
    """Replace, delete or nest a random part of a JSON value, except the template."""
    keys = [key for key in value if key not in ("op", "template")] if isinstance(value, dict) else range(len(value))
    if not keys:
        return
    key = rng.choice(list(keys))
    child = value[key]
    if isinstance(child, (dict, list)) and child and rng.random() < 0.85:
        _mutate_value(rng, child)
    elif rng.random() < 0.1:
        del value[key]
    elif rng.random() < 0.2 and isinstance(value, dict):
        value[rng.choice(("x" * 9, "_" * 70_000, " x" * 9000, "\0", '"', "é" * 300))] = value.pop(key)
    elif rng.random() < 0.2:
        for _ in range(rng.choice((5, 100, 200))):
            child = rng.choice(([child], {"a": child}, {"type": "array", "items": child}, {"anyOf": [child]}))
        value[key] = child
    elif isinstance(child, str) and rng.random() < 0.5:
        value[key] = rng.choice((child[:30] * 3000, child + "\0", "[" * 100_000, '{"a":' * 3000, '["]",' * 30_000))
    else:
        value[key] = copy.deepcopy(rng.choice(_VALUES))
