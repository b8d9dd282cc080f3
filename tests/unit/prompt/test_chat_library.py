"""Faults of the render process while it runs llama.cpp's chat code, and hostile templates and outputs for it."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edgechat.errors import EngineDiedError, TemplateError
from edgechat.prompt import renderer as renderer_module
from edgechat.prompt.render_protocol import ChatLibraryRequest
from edgechat.prompt.renderer import Renderer
from edgechat.prompt.reply_format import FormatRequest, ReplyFormat, TemplateInfo, apply_template, find_reply_format
from edgechat.prompt.reply_parser import ParsedReply, ReplyParser
from edgechat.prompt.thoughts import ThoughtFinder
from edgechat.runtime.backends.bundle import find_bundle
from tests import chat_fuzz
from tests.fuzzing import scale
from tests.llama_cpp import read_templates
from tests.time_limit import HANG_S

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
REQUEST = FormatRequest(think=True, tools=[TOOL])
OUTPUT = 'Let me see.\n</think>\n\nI call it.\n<tool_call>\n{"name": "f", "arguments": {"a": [1, 2, 3]}}\n</tool_call>'
PLAIN_REQUEST = FormatRequest(think=False)
MESSAGES = [{"role": "user", "content": "Hello"}]
# A value that contains itself; llama.cpp's search for used values then ends in a stack overflow.
CYCLE = "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns | tojson }}"

START = Renderer.start


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


@pytest.fixture
def qwen(renderer: Renderer) -> ReplyFormat:
    template = read_templates()["Qwen-QwQ-32B"]
    return find_reply_format(renderer, TemplateInfo(template, "", ""), REQUEST)


def make_parser(renderer: Renderer, reply_format: ReplyFormat) -> ReplyParser:
    instants = itertools.chain.from_iterable(zip(itertools.count(), itertools.count()))  # a parse takes no time
    clock = instants.__next__  # no parse is skipped
    return ReplyParser(
        renderer.call_chat_library, reply_format, ThoughtFinder("", (), []), tool_names=["f"], clock=clock
    )


def read(parser: ReplyParser, output: str, disturb: Callable[[int], object] = lambda _: None) -> ParsedReply:
    """Feed the output in pieces of ten characters, and call `disturb` before each; return the joined deltas."""
    reasoning, content = "", ""
    pieces = [output[i : i + 10] for i in range(0, len(output), 10)]
    deltas = []
    for i, piece in enumerate(pieces):
        disturb(i)
        deltas.append(parser.feed(piece))
    disturb(len(pieces))
    for delta in [*deltas, parser.finish()]:
        reasoning, content = reasoning + delta.reasoning, content + delta.content
    assert (reasoning, content) == (parser.reply.reasoning, parser.reply.content)
    return parser.reply


def check_reply(reply: ParsedReply) -> None:
    """Check the reply to `OUTPUT`."""
    assert (reply.reasoning.strip(), reply.content.strip()) == ("Let me see.", "I call it.")
    assert [(call.name, json.loads(call.arguments)) for call in reply.calls] == [("f", {"a": [1, 2, 3]})]


def check_output(renderer: Renderer, reply_format: ReplyFormat) -> None:
    """Check that the renderer still serves: it parses a whole reply."""
    check_reply(read(make_parser(renderer, reply_format), OUTPUT))


def child_of(renderer: Renderer) -> psutil.Process:
    renderer.start()
    assert renderer._child is not None
    return psutil.Process(renderer._child.pid)


@pytest.mark.slow
@pytest.mark.parametrize("positions", [{3}, {0, 5, 7}, set(range(100))])
def test_reply_survives_kills_of_the_render_process(renderer: Renderer, qwen: ReplyFormat, positions: set[int]) -> None:
    def kill(position: int) -> None:
        if position in positions:
            child_of(renderer).kill()

    reply = read(make_parser(renderer, qwen), OUTPUT, kill)
    check_reply(reply)


def kill_after_start(renderer: Renderer) -> None:
    START(renderer)
    assert renderer._child is not None
    renderer._child.kill()


def refuse_start(_: Renderer) -> None:
    raise EngineDiedError("Cannot start an edgechat process: too many open files.")


@pytest.mark.parametrize("start", [kill_after_start, refuse_start])
@pytest.mark.parametrize("n_good_pieces", [0, 1, 3, 6])
def test_output_after_the_last_parse_becomes_content_without_render_process(
    renderer: Renderer, qwen: ReplyFormat, monkeypatch: pytest.MonkeyPatch, n_good_pieces: int,
    start: Callable[[Renderer], None],
) -> None:  # fmt: skip
    def disturb(position: int) -> None:
        if position == n_good_pieces:
            monkeypatch.setattr(Renderer, "start", start)

    output = "Let me see all of it.\n</think>\n\n" + "The answer is as long as this. " * 3
    reply = read(make_parser(renderer, qwen), output, disturb)
    n_read = len(reply.reasoning) + len(reply.content)
    assert len(output) - len("\n</think>\n\n") - 2 <= n_read <= len(output) + 1
    assert reply.content.endswith("The answer is as long as this. ")
    monkeypatch.undo()
    check_output(renderer, qwen)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot stop a process")
@pytest.mark.parametrize("position", [0, 4, 12])
def test_reply_survives_a_hung_render_process(
    renderer: Renderer, qwen: ReplyFormat, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    def stop(current: int) -> None:
        if current == position:
            child_of(renderer).send_signal(signal.SIGSTOP)
            monkeypatch.setattr(renderer_module, "TIMEOUT_S", 0.5)
            monkeypatch.setattr(Renderer, "end_process", kill_and_wait_longer)

    def kill_and_wait_longer(renderer: Renderer) -> None:
        monkeypatch.setattr(renderer_module, "TIMEOUT_S", HANG_S)
        kill_child(renderer)

    kill_child = Renderer.end_process
    reply = read(make_parser(renderer, qwen), OUTPUT, stop)
    check_reply(reply)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of another process")
def test_reply_survives_a_lack_of_memory(renderer: Renderer, qwen: ReplyFormat) -> None:
    text = "Let me see.\n</think>\n\n" + "x" * (8 << 20)

    def take_memory(position: int) -> None:
        if position == 1:
            child = child_of(renderer)
            n_bytes = child.memory_info().vms
            child.rlimit(psutil.RLIMIT_AS, (n_bytes, n_bytes))

    parser = make_parser(renderer, qwen)
    parser.feed(text[:30])
    take_memory(1)
    parser.feed(text[30:])
    parser.finish()
    assert parser.reply.content.endswith("x" * (4 << 20))
    child_of(renderer).kill()
    check_output(renderer, qwen)


@pytest.mark.parametrize(
    "nested",
    ["[" * 5000, "[ " * 50_000, '{"a":' * 50_000, '["]",' * 50_000, "{'a':" * 50_000, "<a>" * 50_000, "(" * 50_000],
)
def test_deeply_nested_output_keeps_the_render_process_alive(
    renderer: Renderer, qwen: ReplyFormat, nested: str
) -> None:
    child = child_of(renderer)
    output = 'Hm.\n</think>\n<tool_call>\n{"name": "f", "arguments": {"a": ' + nested
    parser = make_parser(renderer, qwen)
    parser.feed(output[:40])
    parser.feed(output[40:])
    parser.finish()
    assert parser.reply.reasoning.strip() == "Hm."
    assert child_of(renderer) == child
    check_output(renderer, qwen)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ " + "(" * 5000, "a tag has more than 4096 characters"),
        ("{{ x" + " | string" * 1000 + " }}", "a tag has more than 4096 characters"),
        ("{% if 1 %}" * 9000, "more than 8192 tags"),
        # These take seconds: llama.cpp renders a template many times to find its format.
        pytest.param(
            "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}",
            "nested too deeply or calls itself",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "{% set x = namespace(y='x' * 999) %}{% for i in range(40) %}{% set x.y = x.y + x.y %}{% endfor %}",
            "too much memory",
            marks=pytest.mark.long,
        ),
        pytest.param("{{ 'x' * 99999999999 }}", "too much memory", marks=pytest.mark.long),
    ],
)
def test_hostile_template_is_one_error_and_keeps_the_render_process_alive(
    renderer: Renderer, template: str, reason: str
) -> None:
    child = child_of(renderer)
    with pytest.raises(TemplateError, match=reason) as caught:
        apply_template(renderer, TemplateInfo(template, "", ""), PLAIN_REQUEST, MESSAGES)
    assert "\n" not in str(caught.value)
    assert child_of(renderer) == child
    assert find_reply_format(renderer, TemplateInfo(template, "", ""), PLAIN_REQUEST) == ReplyFormat(is_fallback=True)


def test_crash_of_a_template_is_one_error_and_the_next_template_is_applied(
    renderer: Renderer, qwen: ReplyFormat
) -> None:
    with pytest.raises(TemplateError, match="crashed 2 render processes"):
        apply_template(renderer, TemplateInfo(CYCLE, "", ""), PLAIN_REQUEST, MESSAGES)
    assert find_reply_format(renderer, TemplateInfo(CYCLE, "", ""), PLAIN_REQUEST) == ReplyFormat(is_fallback=True)
    check_output(renderer, qwen)


@pytest.mark.parametrize(
    "template", ["{# {{ '( #}" + "x {{ 'a' }}", "{{ '{% {{ }}' }}" * 3000, "{", "{%", "{{ '", "{{ '\\"]
)
def test_limits_ignore_comments_and_strings(renderer: Renderer, template: str) -> None:
    request = {"op": "apply", "template": template, "bos": "", "eos": "", "messages": MESSAGES, "now_s": 0}
    reply = json.loads(renderer._send(ChatLibraryRequest(json.dumps(request).encode()), None))
    assert "more than" not in reply.get("error", "")


def test_templates_get_the_time_of_the_request(renderer: Renderer) -> None:
    template = "{{ strftime_now('%Y, day %j') }}"
    noon_s = 200 * 86_400 + 43_200
    request = {"op": "apply", "template": template, "bos": "", "eos": "", "messages": MESSAGES, "now_s": noon_s}
    reply = json.loads(renderer._send(ChatLibraryRequest(json.dumps(request).encode()), None))
    assert reply["prompt"] == "1970, day 201"


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "count"), [("template", 1000), ("request", 2000), ("output", 100_000), ("long-output", 5000)]
)
def test_random_inputs_never_end_the_process(kind: str, count: int) -> None:
    library = next(Path(find_bundle().directory).glob("*edgechat-chat.*"))
    inputs = range(scale(count))
    timeout_s = 20 if kind == "template" else 120
    report = chat_fuzz.run(kind, inputs, library=library, seed=0, timeout_s=timeout_s)
    assert report.n_inputs == len(inputs)
    assert not report.crashes
    if kind != "template":  # a template can loop without end; the render process is then stopped
        assert not report.hangs
    assert report.growth_bytes < 64 << 20
