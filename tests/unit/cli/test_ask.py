"""Standard input of `edgechat ask` and of the line-by-line chat: limits, a notice while waiting, `--no-stdin`."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import msgspec
import psutil
import pytest

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat.events import ContextLimitReached, ReplyRouted, ReplyTextGenerated, SessionEvent, TurnFinished
from edgechat.chat.messages import Message
from edgechat.cli import ask, plain_chat
from edgechat.cli.progress import StderrStatus
from edgechat.config import Settings
from edgechat.engine.generation import DrafterState, GenerationStats
from edgechat.errors import ContextOverflowError, UsageError
from edgechat.planner.load_variants import MANY_SEQS
from edgechat.prompt.agreement.picker import MAX_PICKED_REPLIES
from edgechat.store import open_ephemeral_store
from tests.conftest import ROOT, edgechat_command
from tests.waiting import until

READ_QUESTION = (
    "import sys; from edgechat.cli import ask; ask.MAX_STDIN_BYTES, ask._STDIN_NOTICE_S = 1000, 0.2; "
    "print(ask.read_question('hi', no_stdin='--no-stdin' in sys.argv))"
)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a process that prints a question; its standard input may have 1000 bytes."""
    return subprocess.Popen(
        [sys.executable, "-c", READ_QUESTION, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def test_open_pipe_is_reported_and_read_to_its_end() -> None:
    child = start()
    assert child.stderr is not None
    assert "Waiting for the end of standard input" in child.stderr.readline()
    assert child.communicate("more")[0] == "hi\n\nmore\n"


@pytest.mark.skipif(not hasattr(os, "O_NONBLOCK"), reason="pipes always block")
@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("print(ask.read_question(None), end='')", "part one part two\n"),
        ("print(plain_chat._read_line())", "part one part two\n"),
        ("sys.stdin.buffer.peek(1); print('x' * 999_999)", "x" * 999_999 + "\n"),
    ],
    ids=["question", "line", "output"],
)
def test_streams_that_do_not_block_lose_nothing(read: str, expected: str) -> None:
    code = (
        "import sys; from edgechat.cli import ask, main, plain_chat; main.ensure_standard_streams(); "
        f"print('started', file=sys.stderr, flush=True); {read}"
    )
    stdin, stdout = os.pipe(), os.pipe()
    os.set_blocking(stdin[0], False)
    os.set_blocking(stdout[1], False)
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=stdin[0], stdout=stdout[1], stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stderr is not None
    os.close(stdin[0])
    os.close(stdout[1])
    os.write(stdin[1], b"part one ")
    assert child.stderr.readline() == "started\n"
    process = psutil.Process(child.pid)
    until(lambda: not process.is_running() or process.status() != psutil.STATUS_RUNNING)  # it reads or writes
    os.write(stdin[1], b"part two\n")
    os.close(stdin[1])
    with os.fdopen(stdout[0]) as output:
        assert output.read().endswith(expected)
    assert child.wait() == 0, child.stderr.read()
    child.stderr.close()


def test_no_stdin_does_not_read_an_open_pipe() -> None:
    child = start("--no-stdin")
    assert child.wait() == 0  # while the pipe is open
    out, error = child.communicate()
    assert (out, error) == ("hi\n", "")


def test_short_input_causes_no_notice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ask, "_STDIN_NOTICE_S", 600.0)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"more")))
    assert ask.read_question("hi") == "hi\n\nmore"
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX device")
def test_endless_input_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        with pytest.raises(ContextOverflowError, match="larger than 34 MB"):
            ask.read_question("hi")


def test_endless_input_of_the_command_is_one_line() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "while True: print('y' * 1000)"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as endless:
        result = subprocess.run(
            edgechat_command("ask", "hi"), stdin=endless.stdout, capture_output=True, text=True, check=False
        )
        endless.kill()
    assert (result.returncode, result.stdout) == (5, "")
    # On a busy machine, reading so much can take longer than the time after which edgechat says what it waits for.
    [error] = [line for line in result.stderr.splitlines() if not line.startswith("edgechat: Waiting for the end of ")]
    assert "larger than" in error


def test_line_of_the_plain_chat_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_chat, "MAX_STDIN_BYTES", 1000)
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 999 + "\nlast"))
    assert plain_chat._read_line() == "x" * 999
    assert plain_chat._read_line() == "last"
    with pytest.raises(EOFError):
        plain_chat._read_line()
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 1002))
    with pytest.raises(ContextOverflowError, match="more than"):
        plain_chat._read_line()


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX limit")
def test_lack_of_memory_is_one_line(tmp_path: Path) -> None:
    code = (
        "from edgechat.cli import history, root; import sys; "
        "history.import_.callback = lambda **options: bytearray(1 << 60); sys.exit(root.run())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "history", "import", os.devnull], capture_output=True, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (4, "edgechat: There is not enough memory.\n")


def finished(*replies: Message) -> TurnFinished:
    return TurnFinished(reply=replies[0], context_tokens=9, alternatives=replies[1:])


@pytest.mark.parametrize("parts", [["first", " last"], ["first ", "last\n"], ["last", "\n", "\n"], ["\n"]])
def test_reply_ends_with_one_newline_at_least(parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    events: list[SessionEvent] = [ReplyTextGenerated(text=text, reasoning="", n_tokens=1) for text in parts]
    events.append(finished(Message(id="a", role="assistant")))
    ask.stream_reply((event for event in events), StderrStatus(), quiet=False)
    text = "".join(parts)
    assert capsys.readouterr().out == (text if text.endswith("\n") else f"{text}\n")


def test_note_about_a_complete_reply_is_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    events: list[SessionEvent] = [
        ReplyTextGenerated(text="The reply.", reasoning="", n_tokens=1),
        ReplyRouted(model="large.gguf", reason="rule 1"),
        finished(Message(id="a", role="assistant")),
    ]
    ask.stream_reply((event for event in events), StderrStatus(), quiet=False)
    assert capsys.readouterr().out == "The reply.\nedgechat: large replied: rule 1.\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_note_during_a_reply_is_a_line_of_its_own_on_a_terminal(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = StderrStatus()
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    events: list[SessionEvent] = [
        ReplyTextGenerated(text="The", reasoning="", n_tokens=1),
        ContextLimitReached(notice="The context is full."),
        ReplyTextGenerated(text=" reply.", reasoning="", n_tokens=1),
        finished(Message(id="a", role="assistant")),
    ]
    ask.stream_reply((event for event in events), status, quiet=False)
    printed = capsys.readouterr()
    assert printed.out == "The reply.\n", "a note changes nothing in standard output"
    assert printed.err == f"{chr(10) if is_terminal else ''}edgechat: The context is full.\n"


def test_escalated_reply_that_was_cut_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = ScriptedSession(open_ephemeral_store(), Settings(max_tokens=3), Script(["Reply"]))
    small, large = (Message(id=i, role="assistant", n_tokens=3, finish_reason="length") for i in "ab")
    routed = ReplyRouted(model="large.gguf", reason="empty", small_model="small.gguf", doubt="empty", is_escalated=True)
    end = msgspec.structs.replace(finished(large, small), routed=routed)
    monkeypatch.setattr(session, "send", lambda *_arguments: (event for event in [end]))
    monkeypatch.setattr(ask, "create_session", lambda **_options: session)
    monkeypatch.setattr(ask, "print_sources", lambda *_arguments: None)
    ask.print_reply("Hi", as_json=False)
    notes = [line for line in capsys.readouterr().err.splitlines() if "was cut" in line]
    assert notes == ["edgechat: The reply was cut after 3 tokens, the limit of --max-tokens."]


@pytest.mark.parametrize(
    ("max_tokens", "n_tokens", "notes"),
    [
        (3, [3], ["The reply was cut after 3 tokens, the limit of --max-tokens."]),
        (9, [3], ["The reply was cut, because the context of 256 tokens is full. --ctx sets its length."]),
        (None, [3], ["The reply was cut, because the context of 256 tokens is full. --ctx sets its length."]),
        (None, [4], ["The reply was cut, because the context of 256 tokens is full."]),
        (3, [2, 3], ["Reply 2 was cut after 3 tokens, the limit of --max-tokens."]),
        (1, [1], ["The reply was cut after 1 token, the limit of --max-tokens."]),
        (3, [2], []),
    ],
)
def test_cut_reply_is_reported(
    max_tokens: int | None, n_tokens: list[int], notes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    replies = [
        Message(id=str(n), role="assistant", n_tokens=n, finish_reason="stop" if n == 2 else "length") for n in n_tokens
    ]
    properties = SimpleNamespace(n_ctx=256, n_ctx_train=512 if n_tokens != [4] else 256)
    session = SimpleNamespace(settings=Settings(max_tokens=max_tokens), model_properties=properties)
    ask._report_cut_replies(session, replies, 9, StderrStatus())  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [f"edgechat: {note}" for note in notes]


def test_reply_that_repeats_itself_is_reported_before_other_limits(capsys: pytest.CaptureFixture[str]) -> None:
    stats = GenerationStats(
        prompt_tokens=1, cached_tokens=0, completion_tokens=3, ttft_s=0.1, prefill_tps=1.0, decode_tps=1.0,
        repeats_itself=True,
    )  # fmt: skip
    reply = Message(id="a", role="assistant", n_tokens=3, finish_reason="length", stats=stats)
    session = SimpleNamespace(settings=Settings(max_tokens=3), model_properties=None)
    ask._report_cut_replies(session, [reply], 9, StderrStatus())  # type: ignore[arg-type]
    note = "The reply was stopped, because it repeats itself. --no-stop-repetition prevents this."
    assert capsys.readouterr().err == f"edgechat: {note}\n"


@pytest.mark.parametrize(
    ("is_remote", "fields"), [(True, ("", None, "")), (False, ("cpu-zen4", "mtp", "small is damaged"))]
)
def test_backend_and_drafter_are_those_of_the_reply(
    is_remote: bool,
    fields: tuple[str, str | None, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ask, "make_source_fields", lambda *_arguments: {})
    stats = GenerationStats(
        prompt_tokens=1, cached_tokens=0, completion_tokens=3, ttft_s=0.1, prefill_tps=1.0, decode_tps=1.0,
        is_remote=is_remote or msgspec.UNSET,
    )  # fmt: skip
    reply = Message(id="a", role="assistant", model="box/big", stats=stats)
    engine = SimpleNamespace(stats=lambda: SimpleNamespace(peak_rss_bytes=1, drafter=DrafterState(is_open=True)))
    properties = SimpleNamespace(backend="cpu-zen4", drafter="mtp", load_s=0.1)
    session = SimpleNamespace(  # of a route, whose other model is in the engine
        model_properties=properties,
        source=SimpleNamespace(is_remote=False),
        model=SimpleNamespace(
            is_open=True, engine=engine, model_properties=properties, drafter_refusal="small is damaged"
        ),
        conversation=SimpleNamespace(id="c"), model_path="a",
    )  # fmt: skip
    ask._print_json(session, finished(reply))  # type: ignore[arg-type]
    printed = json.loads(capsys.readouterr().out)
    assert (printed["backend"], printed["drafter"], printed["drafter_refusal"]) == fields


def test_reply_cut_by_a_context_that_could_not_grow_names_memory(capsys: pytest.CaptureFixture[str]) -> None:
    reply = Message(id="a", role="assistant", n_tokens=3, finish_reason="length")
    properties = SimpleNamespace(n_ctx=4096, n_ctx_train=8192)
    session = SimpleNamespace(settings=Settings(), model_properties=properties)
    ask._report_cut_replies(session, [reply], 250, StderrStatus())  # type: ignore[arg-type]
    note = "The reply was cut, because the context of 256 tokens is full. It could not grow, because memory is short."
    assert capsys.readouterr().err.startswith(f"edgechat: {note} Close other programs.")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_on_standard_input_is_decoded(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüße\n".encode(encoding))))
    assert ask.read_question(None) == "Grüße\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Grüße".encode("cp1252"), "Standard input is not UTF-8 text (byte 2 of 5 is 0xfc), but perhaps"),
        (gzip.compress(b"x", mtime=0), "Standard input is compressed with gzip. Decompress it with `gunzip` first."),
        (b"\x89PNG\r\n\x1a\n", "Standard input is an image. edgechat does not read images."),
    ],
)
def test_other_data_on_standard_input_is_named(data: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(UsageError) as caught:
        ask.read_question("hi")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(500), "Standard input contains only zeros"),
        (b"a\0b", "Standard input is not a text file: byte 1 is 0x00"),
    ],
)
def test_zero_bytes_on_standard_input_are_refused(monkeypatch: pytest.MonkeyPatch, data: bytes, message: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(UsageError, match=message):
        ask.read_question("hi")


def test_option_for_several_replies_has_the_limits_of_their_owners() -> None:
    assert (ask.MAX_PARALLEL_REPLIES, ask.MAX_PICKED_REPLIES) == (MANY_SEQS, MAX_PICKED_REPLIES)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("line", [b"caf\xe9", b"a\0b"])
def test_line_of_the_plain_chat_that_is_no_text_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], errors: str, line: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line + b"\ngood\n"), encoding="utf-8", errors=errors))
    chat = plain_chat.PlainChat(MagicMock(), StderrStatus(), MagicMock())
    messages: list[str] = []
    monkeypatch.setattr(chat, "handle", messages.append)
    assert chat.run() == UsageError.exit_code
    assert messages == ["good"]
    assert capsys.readouterr().err.startswith("edgechat: A message from standard input ")
