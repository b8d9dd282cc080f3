"""PromptBuilder: which variants of a conversation it renders, and for how long."""

from __future__ import annotations

import itertools
import time
from typing import Any, cast

import pytest

from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.errors import TemplateError
from edgechat.prompt import renderer as renderer_module
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.content_marks import NO_MARKS
from edgechat.prompt.renderer import PromptMessage, RenderedPrompt, Renderer
from edgechat.prompt.reply_format import ReplyFormat
from edgechat.prompt.reply_formats import PromptOptions
from tests.llama_cpp import read_templates
from tests.unit.prompt.test_renderer import ENDLESS

MESSAGES = [PromptMessage("system", "Be brief."), PromptMessage("user", "Hi")]


def make_builder(renderer: Renderer, template: str) -> PromptBuilder:
    properties = Loaded(
        id=0, backend="", n_ctx=4096, n_ctx_train=4096, n_threads=1, n_params=1, n_vocab=2, size_bytes=1,
        chat_template=template, bos="<s>", eos="</s>", control_tokens=[], can_truncate=True, load_s=0.0,
    )  # fmt: skip
    return PromptBuilder(cast("EngineClient", None), renderer, properties)


def test_endless_template_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    n_attempts = 0

    class CountingRenderer(Renderer):
        def render(self, *args: object, **kwargs: object) -> RenderedPrompt:
            nonlocal n_attempts
            n_attempts += 1
            return super().render(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(renderer_module, "TIMEOUT_S", 0.5)
    renderer = CountingRenderer()
    with pytest.raises(TemplateError, match="took more than"):
        make_builder(renderer, ENDLESS).build(MESSAGES, PromptOptions(think=True))
    assert n_attempts == 1
    renderer.close()


def test_failure_of_the_chat_library_is_forgotten_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer()
    builder = make_builder(renderer, read_templates()["Qwen-Qwen3-0.6B"])
    options = PromptOptions(think=True)
    with monkeypatch.context() as context:
        context.setattr(Renderer, "call_chat_library", _time_out)
        assert builder.formats.find(options) == ReplyFormat(is_fallback=True)
        assert not builder.formats.has_native_tools
        assert not builder.formats.can_call_several_tools
    assert builder.formats.find(options).is_fallback  # a template that always fails is not tried in each turn
    now_s = time.monotonic() + 100
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    assert builder.formats.find(options).parser
    assert builder.formats.has_native_tools
    assert builder.formats.can_call_several_tools
    renderer.close()


@pytest.mark.parametrize("n_calls_before", range(8))
def test_failure_while_the_enforcement_is_found_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, n_calls_before: int
) -> None:
    renderer = Renderer()
    template = read_templates()["Qwen-Qwen3-0.6B"]
    expected = make_builder(renderer, template).formats.call_enforcement
    assert expected.required
    formats, call = make_builder(renderer, template).formats, renderer.call_chat_library
    n_calls = itertools.count()

    def fail_once(**request: Any) -> Any:
        return _time_out(renderer) if next(n_calls) == n_calls_before else call(**request)

    with monkeypatch.context() as context:
        context.setattr(renderer, "call_chat_library", fail_once)
        assert not any(formats.call_enforcement)
    assert formats.call_enforcement == expected
    renderer.close()


def test_failure_while_content_marks_are_found_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer()
    template, options = read_templates()["openai-gpt-oss-120b"], PromptOptions(think=False)
    expected = make_builder(renderer, template).formats.find_content_marks(options)
    assert expected != NO_MARKS
    formats = make_builder(renderer, template).formats
    with monkeypatch.context() as context:
        context.setattr(Renderer, "call_chat_library", _time_out)
        assert formats.find(options).is_fallback
    assert formats.find_content_marks(options) == NO_MARKS
    now_s = time.monotonic() + 100
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    assert formats.find_content_marks(options) == expected
    renderer.close()


def _time_out(_renderer: Renderer, **_request: object) -> object:
    raise TemplateError("The model's chat template took more than 5 s and was stopped")
