"""Render process: chat templates render as model files expect, and hostile ones fail with one clear error."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.errors import TemplateError
from edgechat.prompt import sandbox
from edgechat.prompt.render_protocol import RenderRequest
from edgechat.prompt.renderer import PLAIN_TEMPLATE, PromptMessage, Renderer
from tests.transformers_reference import render_reference, set_clocks

MESSAGES = [PromptMessage("system", "Be brief."), PromptMessage("user", "Hi")]


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()


def render(renderer: Renderer, template: str, messages: list[PromptMessage] = MESSAGES) -> str:
    return renderer.render(template, messages, bos="<s>", eos="</s>", control_tokens=["<s>", "</s>"]).text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}{{ eos_token }}{% endfor %}",
         "<s>[system] Be brief.</s>[user] Hi</s>"),
        ("{% for m in messages %}\n{% if loop.first %}{% continue %}{% endif %}\n    {{ m.content }}\n{% endfor %}",
         "    Hi\n"),
        ("{{ messages | tojson }}", '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]'),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% if add_generation_prompt %}go{% endif %}{% if tools %}no{% endif %}", "go"),
        ("a{% generation %}b{% if true %}c{% endif %}{% endgeneration %}d", "abcd"),
        ("{{ '-' * 5 }}{{ strftime_now('%Y')[:2] }}", "-----20"),
        (PLAIN_TEMPLATE, "System: Be brief.\n\nUser: Hi\n\nAssistant:"),
    ],
)  # fmt: skip
def test_template_features_of_model_files_work(renderer: Renderer, template: str, text: str) -> None:
    assert render(renderer, template) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'x' * 300000000 }}", "more than a million"),
        ("{{ 300000000 * [1] }}", "more than a million"),
        ("{{ 9 ** 9999999 }}", "power"),
        ("{{ '%999999999d' % 1 }}", "formats text with %"),
        ("{{ '%(a).99999f' % {'a': 1} }}", "formats text with %"),
        ("{{ '%*d' | format(999999999, 1) }}", "formats text with %"),
        ("{{ [1] | tojson(indent=65) }}", "indents JSON"),
        ("{{ 'x'.center(999999999) }}", "memory"),
        ("{{ '{:>999999999}'.format(1) }}", "memory"),
        ("{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "memory"),
        ("{% for i in range(99999999) %}{% endfor %}", "Range too big"),
        ("{{ ''.__class__.__mro__ }}", "forbids"),
        ("{{ messages.__init__.__globals__ }}", "forbids"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "forbids"),
        ("{{ messages.append(1) }}", "forbids"),
        ("{% for x in y", "unexpected end"),
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "exceeds the recursion limit"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ 'x' + none }}", "can only concatenate string (not null) to string"),
        ("{{ none.strip() }}", "null has no attribute 'strip'"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_hostile_template_fails_with_one_clear_error(renderer: Renderer, template: str, message: str) -> None:
    with pytest.raises(TemplateError, match="chat template cannot be used") as error:
        render(renderer, template)
    assert message in str(error.value)
    assert render(renderer, "still {{ 'here' }}") == "still here"


def render_in_this_process(template: str, **variables: Any) -> str | None:
    """Render a template as the render process does. Return None if it raises an error."""
    request = RenderRequest(template=template, messages=[], bos="", eos="", variables=variables)
    reply = sandbox.render(sandbox.TemplateSandbox(), {}, request)
    return None if reply.error else reply.text


def render_with_transformers(template: str, **variables: Any) -> str | None:
    return render_reference(template, [], add_generation_prompt=True, bos_token="", eos_token="", **variables)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda items: st.lists(items, max_size=4) | st.dictionaries(st.text(), items, max_size=4),
    max_leaves=12,
)
JSON_OPTIONS = st.fixed_dictionaries({}, optional={
    "ensure_ascii": st.booleans(),
    "indent": st.none() | st.integers(-1, 8) | st.sampled_from(["", "\t", "> "]),
    "separators": st.none() | st.sampled_from([(",", ":"), ("; ", " = ")]),
    "sort_keys": st.booleans(),
})  # fmt: skip


@given(JSON_VALUES, JSON_OPTIONS)
def test_tojson_writes_what_transformers_writes(value: Any, options: dict[str, Any]) -> None:
    arguments = ", ".join(f"{name}={name}" for name in options)
    template = f"{{{{ value | tojson({arguments}) }}}}"
    text = render_in_this_process(template, value=value, **options)
    assert text is not None
    assert text == render_with_transformers(template, value=value, **options)


@pytest.mark.parametrize(
    "arguments", ["true, 2, [',', ':'], true", "indent='x' * 3", "indent=2.5", "indent=[]", "separators=1", "wrong=1"]
)
def test_tojson_takes_and_refuses_the_arguments_of_transformers(arguments: str) -> None:
    template = f"{{{{ {{'b': 'é', 'a': [1, none]}} | tojson({arguments}) }}}}"
    assert render_in_this_process(template) == render_with_transformers(template)


@given(st.lists(st.sampled_from([*(f"%{letter}" for letter in "aAbBcdfHIjmMpSUwWxXyYzZ%"), " ", "é", "T", "%", "\n"])))
def test_strftime_now_writes_what_transformers_writes(parts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_clocks(monkeypatch, dt.datetime(2027, 2, 28, 3, 4, 5, 678))  # noqa: DTZ001  (local time)
        for template in ("{{ strftime_now(value) }}", "{{ strftime_now(format=value) }}"):
            text = render_in_this_process(template, value="".join(parts))
            assert text == render_with_transformers(template, value="".join(parts))


PIECES = (
    "\n", "  ", "\t", "x\n", "é<&>\"'", "{# note #}\n", "{{ a }}", "{{- 'y' -}}\n", "{{ n.a }}",
    "{{ loop.index if loop }}", "{% set a = 1 %}\n", "  {%- set n.a = 2 %}\n",
)  # fmt: skip
BLOCKS = (
    ("  {% if true %}  \n", "  {% endif %}\n"), ("{%- if a -%} ", "{% else %}z\n{%- endif -%}"),
    ("{% for i in range(3) %}\n", "{% endfor %}\n"), ("{%- for i in [1, 2] -%}\n", "\n{%- endfor -%}"),
    ("{% for i in range(3) %}{% if i == 1 %}{% break %}{% endif %}\n", "{% endfor %}"),
    ("{% for i in range(3) %}{{ i }}{% if i == 1 %}", "{% continue %}\n{% endif %}{{ i }}\n{%- endfor %}"),
    ("  {% generation %}\n", "  {% endgeneration %}\n"), ("{%- generation -%}", "{%- endgeneration -%}"),
    ("{% macro m(a) %}", "{% endmacro %}{{ m(3) }}"),
)  # fmt: skip
TEMPLATES = st.recursive(
    st.sampled_from(PIECES),
    lambda parts: st.builds(lambda block, inner: "".join(inner).join(block), st.sampled_from(BLOCKS), st.lists(parts)),
)


@pytest.mark.slow
@given(st.lists(TEMPLATES).map("".join))
def test_blocks_and_white_space_are_rendered_as_in_transformers(template: str) -> None:
    template = "{% set n = namespace(a=0) %}" + template
    assert render_in_this_process(template) == render_with_transformers(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}[{{ a }}]",
        "{% for i in [1, 2] %}{% generation %}{{ i }}{{ loop.last }}{% endgeneration %}{% endfor %}",
        "{% for i in [1, 2] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
        "{% if true %}{% break %}{% endif %}",
        "  {% if true %}  \n  x\n  {% endif %}  \ny\n",
        "{% set d = dict(a=1, b=2) %}{{ d.items() | list }}{{ dict([('a', 1)]) }}{{ dict.fromkeys('ab', 0) }}",
        "{% set n = namespace({'a': 1}, self=2) %}{% set n.b = 3 %}{{ n.a }}{{ n.self }}{{ n.b }}",
        "{{ '%s is %05.1f %%' % ('é', 2) }}{{ '%(a)s' % {'a': 1} }}{{ '%s-%s' | format(1, 2) }}",
        "{{ 'a' % 1 }}",
        "{{ raise_exception('no') }}", "{{ raise_exception(message='no') }}", "{{ raise_exception() }}",
        "{{ strftime_now(1) }}", "{{ strftime_now('\\0') }}", "{{ strftime_now() }}",
        "{{ [1].append(2) }}", "{{ {}.update(a=1) }}", "{{ {'a': 1}.pop('a') }}", "{{ {1}.add(2) }}",
        "{{ ''.__class__ }}", "{{ '{0.__class__}'.format(1) }}", "{{ cycler('a', 'b').next() }}",
        "{{ range(100001) | list }}", "{{ 'x' | nothing }}", "{{ undefined }}[{{ undefined is defined }}]",
        "{{ undefined.a }}", "{% include 'x' %}", "{{ '<&\"' }}{{ '<' | e }}{{ 'x' | safe }}",
        "{{ {'a': 1} }}{{ 1.0 }}{{ none }}",
    ],
)  # fmt: skip
def test_globals_operators_and_the_sandbox_are_those_of_transformers(template: str) -> None:
    assert render_in_this_process(template) == render_with_transformers(template)


@pytest.mark.parametrize("name", ["_a", "__class__"])
def test_namespace_has_no_private_names(name: str) -> None:
    assert render_in_this_process(f"{{{{ namespace({name}=1) }}}}") is None
    assert render_in_this_process(f"{{% set n = namespace() %}}{{% set n.{name} = 1 %}}") is None
