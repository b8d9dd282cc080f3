"""Messages that a template leaves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from edgechat.errors import TemplateError
from edgechat.prompt.omissions import OmissionFinder, find_omitted
from edgechat.prompt.renderer import PromptMessage
from tests.step_count import takes_linear_time
from tests.unit.prompt.test_roles import make
from tests.unit.prompt.test_variants import result

Render = Callable[[Sequence[PromptMessage]], str]


def render_all(messages: Sequence[PromptMessage]) -> str:
    """Stands for a template that writes everything, with its own text before it."""
    return "The user asks. " + "".join(f"{m.role}: {m.content.strip()} {m.extra_fields}\n" for m in messages)


def render_without_later_system(messages: Sequence[PromptMessage]) -> str:
    return render_all([m for i, m in enumerate(messages) if i == 0 or m.role != "system"])


def find(messages: list[PromptMessage], render: Render, finder: OmissionFinder | None = None) -> PromptMessage | None:
    return (finder or OmissionFinder()).find(messages, render(messages), render, "key")


def call(*ids: str) -> PromptMessage:
    calls = [{"id": i, "type": "function", "function": {"name": "lookup", "arguments": {"a": i}}} for i in ids]
    return PromptMessage("assistant", "", extra_fields={"tool_calls": calls})


def test_omitted_message_is_found() -> None:
    messages = make("s Be brief.", "u  Hello ", "t result")
    assert find_omitted(messages, "Be brief. Hello") is None
    assert find_omitted(messages, "Hello") == messages[0]


@pytest.mark.parametrize("system", ["s user", "s Be brief.", "s Be", "s ask", "s A long text that is nowhere else."])
def test_omitted_message_is_found_although_the_prompt_has_its_text(system: str) -> None:
    messages = make("s Be brief.", "u Hi", "a Hello", system, "u Bye")
    assert find(messages, render_all) is None
    assert find(messages, render_without_later_system) == messages[3]


def test_omitted_call_is_found_unless_the_template_renders_no_calls() -> None:
    messages = [*make("u Hi"), call("1", "2"), result("1"), result("2")]
    assert find(messages, render_all) is None

    def render_first_call(messages: Sequence[PromptMessage]) -> str:
        return render_all([call("1") if len(m.extra_fields.get("tool_calls", [])) > 1 else m for m in messages])

    def render_no_calls(messages: Sequence[PromptMessage]) -> str:
        return "".join(m.content for m in messages)

    def render_no_results(messages: Sequence[PromptMessage]) -> str:
        return render_all([m for m in messages if m.role != "tool"])

    assert find(messages, render_first_call) == messages[1]
    assert find(messages, render_no_calls) is None
    assert find(messages, render_no_results) == messages[2]


def test_long_texts_need_no_rendering_and_others_one_for_each_kind_of_conversation() -> None:
    finder, renderings = OmissionFinder(), []

    def count(messages: Sequence[PromptMessage]) -> str:
        renderings.append(len(messages))
        return render_all(messages)

    for n_turns in range(1, 30):
        long = make(
            "s A system prompt, not short.", *["u How long is a river?", "a That depends on the river."] * n_turns
        )
        assert finder.find(long, render_all(long), count, "") is None
    assert renderings == []
    for n_turns in range(1, 30):
        short = make("s Be brief.", *["u Hi", "a Yes"] * n_turns, "u Ok")
        assert finder.find(short, render_all(short), count, "") is None
    assert len(renderings) <= 4
    assert max(renderings) <= 12


def test_error_while_the_template_is_tried_is_no_omission() -> None:
    def fail(messages: Sequence[PromptMessage]) -> str:
        raise TemplateError("too slow")

    messages = make("u Hi")
    assert OmissionFinder().find(messages, "Hi", fail, "") is None
    assert OmissionFinder().find(messages, "", fail, "") == messages[0]


def test_omissions_of_long_conversations_are_found_in_linear_time() -> None:
    def prepare(n_messages: int) -> Callable[[], object]:
        messages = make(*[f"{role} x{i}" for i, role in enumerate(roles * (n_messages // len(roles)))])
        assert find(messages, render_all) is None
        return lambda: find(messages, render_all)

    for roles in ("ua", "u", "uaau", "uasua"):
        assert takes_linear_time(prepare, 400), roles
