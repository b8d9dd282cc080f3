"""Text that ends reasoning at a limit, with every chat template that llama.cpp collects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgechat.engine.thinking import ThoughtTracker
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.output_rules import add_reasoning_rules
from edgechat.prompt.renderer import PromptMessage, Renderer
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.thinking import ThinkingBudget, choose_reasoning_format, make_thinking_limit
from edgechat.runtime.tool_grammar import ToolGrammar
from tests.unit.serve.test_tool_templates import CITY, start
from tests.unit.serve.tool_requests import TEMPLATES, make_builder, prepare_request

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


def make_tracker(builder: PromptBuilder, *, think: bool = True) -> tuple[ThoughtTracker, str] | None:
    """Return the tracker of a reply whose reasoning is `Hm.`, and the output so far; None without reasoning."""
    prompt = builder.build([PromptMessage("user", "Hi")], PromptOptions(think))
    limit = make_thinking_limit(builder.reasoning_format, prompt.reply_format, prompt.phase, ThinkingBudget(1))
    if limit is None:
        return None
    output = ("" if limit.is_open else limit.start_tags[0]) + "Hm."
    tracker = ThoughtTracker(limit)
    for character in output:
        tracker.feed(character.encode(), 0.0)
    return tracker, output


@pytest.mark.parametrize("template", TEMPLATES)
def test_parser_separates_reasoning_that_the_engine_ends_from_the_text(renderer: Renderer, template: str) -> None:
    builder = make_builder(renderer, template)
    tracked = make_tracker(builder)
    if tracked is None:
        pytest.skip("no reasoning")
    tracker, output = tracked
    assert tracker.must_end
    prompt = builder.build([PromptMessage("user", "Hi")], PromptOptions(think=True))
    marks = builder.formats.find_content_marks(PromptOptions(think=True))
    closing = next(iter(tracker.closing_texts()))
    mark = marks.starts[0] if marks.starts and not closing.endswith(marks.starts[0]) else ""
    for size in (1, 1000):
        parser = builder.create_reply_parser(prompt)
        text = output + closing + mark + "Yes."
        streamed = [parser.feed(text[i : i + size]) for i in range(0, len(text), size)]
        streamed.append(parser.finish())
        assert parser.reply.reasoning.strip() == "Hm.", text
        assert parser.reply.content.strip() == "Yes.", text
        if template != "llama-cpp-rwkv-world":  # its prompt opens the reasoning, which only the end tag reveals
            assert "".join(d.content for d in streamed).strip() == "Yes."


@pytest.mark.parametrize("template", [t for t in TEMPLATES if t != "llama-cpp-rwkv-world"])
def test_reasoning_that_is_cut_in_an_end_tag_has_no_part_of_the_tag(renderer: Renderer, template: str) -> None:
    builder = make_builder(renderer, template)
    tracked = make_tracker(builder)
    if tracked is None:
        pytest.skip("no reasoning")
    prompt = builder.build([PromptMessage("user", "Hi")], PromptOptions(think=True))
    limit = make_thinking_limit(builder.reasoning_format, prompt.reply_format, prompt.phase)
    assert limit is not None
    tag = min((tag for tag in limit.end_tags if limit.end_tags[0].startswith(tag)), key=len)
    for partial in (tag[:3], tag[: len(tag) // 2], tag[:-1]):
        parser = builder.create_reply_parser(prompt)
        deltas = [parser.feed(character) for character in tracked[1] + partial] + [parser.finish()]
        assert parser.reply.reasoning.strip() == "Hm."
        assert "".join(delta.reasoning for delta in deltas).strip() == "Hm."
        assert not parser.reply.content


@pytest.mark.parametrize("template", TEMPLATES)
def test_grammars_allow_the_end_of_the_reasoning(renderer: Renderer, template: str) -> None:
    builder = make_builder(renderer, template)
    tracked = make_tracker(builder)
    if tracked is None:
        pytest.skip("no reasoning")
    tracker, output = tracked
    prompt = builder.build([PromptMessage("user", "Hi")], PromptOptions(think=True))
    marks = builder.formats.find_content_marks(PromptOptions(think=True))
    reasoning_format = choose_reasoning_format(builder.reasoning_format, prompt.reply_format)
    rules = add_reasoning_rules("/[0-9]+/", reasoning_format, prompt.phase, think=True, marks=marks)
    # Without a known format, reasoning before formatted content is not allowed at all.
    grammars: list[ToolGrammar | str] = [rules.removeprefix("start: ")] if prompt.phase != "content" else []
    prepared = prepare_request(builder, {"f": CITY}, think=True, tool_choice="required")
    grammars += [g for g in prepared.grammars if isinstance(g, ToolGrammar) and g.thinking_ends]
    for grammar in grammars:
        matcher = start(grammar)
        data = list(output.encode())
        assert matcher.try_consume_tokens(data) == len(data), (grammar, output)
        texts = [list(text.encode()) for text in tracker.closing_texts()]
        assert any(matcher.validate_tokens(text) == len(text) for text in texts), (grammar, output)
