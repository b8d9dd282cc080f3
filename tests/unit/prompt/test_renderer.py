"""Client of the render process: the time limit, and guards inside control tokens of messages."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.engine.cancellation import Cancellation
from edgechat.errors import EngineDiedError, RequestCancelledError, TemplateError
from edgechat.prompt import renderer as renderer_module
from edgechat.prompt.reasoning import detect_reasoning_format
from edgechat.prompt.render_protocol import ChatLibraryRequest, RenderRequest
from edgechat.prompt.renderer import PromptMessage, Renderer, guard_messages
from tests.time_limit import ends_within
from tests.waiting import until

CONTROL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|", "|>", "<|im_end|>x", "ab", "ba"]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
FRAGMENTS = st.sampled_from([*CONTROL_TOKENS, "<", "|", ">", "im_end", "a", "b", "x", " ", "\ufdd0"])


def test_endless_template_is_stopped_and_the_next_one_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [PromptMessage("user", "Hi")]
    renderer = Renderer()
    with monkeypatch.context() as context:
        context.setattr(renderer_module, "TIMEOUT_S", 0.5)
        with pytest.raises(TemplateError, match=r"took more than 0\.5 s"):
            renderer.render(ENDLESS, messages, bos="", eos="", control_tokens=[])
    assert renderer.render("ok", messages, bos="", eos="", control_tokens=[]).text == "ok"  # in a new child process
    renderer.close()


def test_template_is_compiled_in_the_background_before_the_first_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    templates: list[str] = []
    send = Renderer._send

    def record(
        renderer: Renderer, request: RenderRequest | ChatLibraryRequest, cancellation: Cancellation | None
    ) -> str:
        text = send(renderer, request, cancellation)
        templates.append(request.template if isinstance(request, RenderRequest) else "")
        return text

    monkeypatch.setattr(Renderer, "_send", record)
    renderer = Renderer()
    renderer.prepare("{{ messages[0].content }}")
    until(lambda: templates == ["{{ messages[0].content }}"])
    renderer.prepare("{% broken")
    renderer.prepare(None)
    assert renderer.render("ok", [PromptMessage("user", "Hi")], bos="", eos="", control_tokens=[]).text == "ok"
    renderer.close()
    with pytest.raises(EngineDiedError):
        renderer.prepare("x")


@given(st.lists(FRAGMENTS, max_size=12).map("".join))
def test_no_control_token_survives_in_guarded_text(content: str) -> None:
    guarded, guard = guard_messages([PromptMessage("user", content)], CONTROL_TOKENS)
    text = guarded[0]["content"]
    assert not any(token in text for token in CONTROL_TOKENS)
    assert (text.replace(guard, "") if guard else text) == content
    assert bool(guard) == any(token in content for token in CONTROL_TOKENS)
    assert not guard or guard not in content


def test_closed_renderer_starts_no_process() -> None:
    closed_renderer = Renderer()
    closed_renderer.close()
    with pytest.raises(EngineDiedError, match="closed"):
        closed_renderer.start()


def render(renderer: Renderer, template: str, text: str = "Hi") -> str:
    return renderer.render(template, [PromptMessage("user", text)], bos="", eos="", control_tokens=[]).text


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()


def test_killed_render_process_gives_the_request_a_second_try(renderer: Renderer) -> None:
    for _ in range(3):
        assert render(renderer, "{{ messages[0].content }}") == "Hi"
        assert renderer._child is not None
        renderer._child.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot stop a process")
def test_render_process_killed_during_a_request_gives_it_a_second_try(renderer: Renderer) -> None:
    renderer.start()
    child = renderer._child
    assert child is not None
    child.send_signal(signal.SIGSTOP)  # the request waits until the process is killed
    killer = threading.Timer(0.1, child.kill)
    killer.start()
    assert render(renderer, "ok") == "ok"
    killer.join()
    assert renderer._child is not child


def test_template_is_to_blame_for_two_dead_render_processes(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[int] = []

    def kill_after_start(self: Renderer) -> None:
        start(self)
        assert self._child is not None
        processes.append(self._child.pid)
        self._child.kill()

    start = Renderer.start
    monkeypatch.setattr(Renderer, "start", kill_after_start)
    with pytest.raises(TemplateError, match="crashed 2 render processes"):
        render(renderer, "ok")
    assert len(set(processes)) == 2
    monkeypatch.undo()
    assert render(renderer, "ok") == "ok"


@pytest.mark.parametrize("template", ["{{ '\\ud800' }}", "a{{ raise_exception('\\udfff') }}", "{{ '\\ud800'.x.y }}"])
def test_lone_surrogate_of_a_template_is_one_error_and_no_crash(renderer: Renderer, template: str) -> None:
    renderer.start()
    child = renderer._child
    with pytest.raises(TemplateError) as caught:
        render(renderer, template)
    assert str(caught.value).isprintable()
    assert renderer._child is child


def test_lone_surrogate_of_a_message_is_reported(renderer: Renderer) -> None:
    with pytest.raises(TemplateError, match="not valid Unicode"):
        render(renderer, "{{ messages[0].content }}", "\ud800")


@pytest.mark.parametrize("n_megabytes", [20, 50, 80])
def test_message_that_needs_too_much_memory_is_reported(renderer: Renderer, n_megabytes: int) -> None:
    with pytest.raises(TemplateError, match=r"are allowed|MiB of memory"):
        render(renderer, "{{ messages[0].content }}" * 9, "😀" + "x" * (n_megabytes << 20))


def test_control_tokens_are_guarded_in_linear_time() -> None:
    control_tokens = [f"<unused{i}>" for i in range(6000)]
    for text in ("<" * 1_000_000, "<unused" * 100_000, "<unused7>" * 100_000):
        with ends_within():  # a flat alternation takes minutes
            [fields], guard = guard_messages([PromptMessage("user", text)], control_tokens)
        assert fields["content"].replace(guard, "") == text if guard else fields["content"] == text


def test_cancelled_render_is_interrupted() -> None:
    renderer, cancellation = Renderer(), Cancellation()
    timer = threading.Timer(0.2, cancellation.cancel)
    timer.start()
    with pytest.raises(RequestCancelledError):  # after the time limit, it would be a TemplateError
        renderer.render(ENDLESS, [], bos="", eos="", control_tokens=(), cancellation=cancellation)
    assert renderer.render("a", [], bos="", eos="", control_tokens=()).text == "a"
    renderer.close()


def test_deeply_nested_value_is_refused() -> None:
    renderer = Renderer()
    message = PromptMessage("assistant", "", extra_fields={"tool_calls": json.loads("[" * 900 + "]" * 900)})
    with pytest.raises(TemplateError, match="nested too deeply"):
        renderer.render("ok", [message], bos="", eos="", control_tokens=["<a>"])
    renderer.close()


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("m.content", "<think>\nHmm\n</think>\n\nSo"),
        ("m.content.split('</think>')[-1] | trim", "So"),
        # Without `trim`, the blank lines after the end tag would remain.
        ("m.content.split('</think>')[-1]", "So"), ('m.content.split("</think>", 1)[1]', "So"),
        ("m.reasoning_content ~ m.content", "HmmSo"), ("m['thought'] ~ m.content", "HmmSo"),
    ],
)  # fmt: skip
def test_reasoning_is_passed_where_the_template_reads_it(renderer: Renderer, expression: str, text: str) -> None:
    template = f"{{% for m in messages %}}{{%- set c = {expression} -%}}{{{{ c }}}}{{% endfor %}}{{# </think> #}}"
    messages = [PromptMessage("assistant", "So", "Hmm")]
    reasoning_format = detect_reasoning_format(template)
    prompt = renderer.render(
        template, messages, bos="", eos="", control_tokens=[], reasoning_format=reasoning_format
    )  # fmt: skip
    assert prompt.text == text
