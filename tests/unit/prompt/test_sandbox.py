"""Render process: chat templates render as model files expect, and hostile ones fail with one clear error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgechat.errors import TemplateError
from edgechat.prompt.renderer import PLAIN_TEMPLATE, PromptMessage, Renderer

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
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_hostile_template_fails_with_one_clear_error(renderer: Renderer, template: str, message: str) -> None:
    with pytest.raises(TemplateError, match="chat template cannot be used") as error:
        render(renderer, template)
    assert message in str(error.value)
    assert render(renderer, "still {{ 'here' }}") == "still here"
