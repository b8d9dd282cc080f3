"""Engines that crash, are killed or run out of memory while a model drafter is opened or used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.chat.events import SessionEvent, TurnInterrupted
from edgechat.config import Settings
from edgechat.errors import EngineDiedError
from edgechat.planner.drafter_plan import DrafterKind
from edgechat.store import open_store
from tests.conftest import Cli, edgechat_command
from tests.draft_models import make_llama, make_qwen35, turn_into_chain
from tests.engine.chats import OpenChat
from tests.engine.test_model_drafter import DRAFTERS, write_pair
from tests.faults import drafter_faults
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"), pytest.mark.usefixtures("warm"),
]  # fmt: skip
Ask = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ask(tmp_path: Path, cli: Cli) -> Ask:
    """Return a function that asks a model with a draft model, and with a fault in the engine."""
    target = turn_into_chain(make_llama(n_layer=4)).write(tmp_path / "target.gguf")
    draft = turn_into_chain(make_llama(seed=1)).write(tmp_path / "draft.gguf")

    def run(fault: str = "", *flags: str) -> subprocess.CompletedProcess[str]:
        added = drafter_faults.arrange(tmp_path, fault) if fault else {}
        options = ("--temperature", "0", "--max-tokens", "60", "--ctx", "1024", "--threads", "1")
        return cli(
            "ask", "-m", str(target), "--draft-model", str(draft), *options, *flags, "Hello", env=os.environ | added
        )

    return run


def test_crash_while_drafting_is_recorded_and_the_next_message_has_no_drafter(ask: Ask) -> None:
    crashed = ask(f"draft {signal.SIGSEGV:d}")
    assert crashed.returncode == 4
    assert "while drafting with a model" in crashed.stderr
    assert "does not use this drafter" in crashed.stderr
    assert crashed.stdout.strip(), "the text before the crash is kept"
    reply = ask(f"draft {signal.SIGSEGV:d}")
    assert reply.returncode == 0, reply.stderr
    assert reply.stdout.startswith(crashed.stdout.strip())
    assert reply.stderr.count("Decoding without the drafter") == 1
    assert "SIGSEGV" in reply.stderr


@pytest.mark.parametrize("is_full", [False, True])
def test_crash_while_a_drafter_is_opened_ends_no_reply(ask: Ask, *, is_full: bool) -> None:
    if is_full:  # the record cannot be written
        paths.drafter_crashes_file().mkdir(parents=True)
    reply = ask(f"open {signal.SIGABRT:d}")
    assert reply.returncode == 0, reply.stderr
    assert "when it opened the drafter" in reply.stderr
    if not is_full:
        assert ask("", "--draft-model", "off").stdout == reply.stdout


@pytest.mark.parametrize("what", ["MemoryError", f"{signal.SIGABRT:d}"])
def test_own_heads_replace_a_named_drafter_that_cannot_be_opened(ask: Ask, tmp_path: Path, what: str) -> None:
    hybrid = make_qwen35().write(tmp_path / "hybrid.gguf")
    reply = ask(f"open {what}", "-m", str(hybrid), "--json")
    assert reply.returncode == 0, reply.stderr
    assert reply.stderr.count("Drafting with the MTP heads of the model, not with the named drafter: ") == 1
    fields = json.loads(reply.stdout)
    assert (fields["drafter"], bool(fields["drafter_refusal"])) == ("mtp", True)


def test_killed_engine_blames_no_drafter(ask: Ask) -> None:
    """The system kills processes when memory runs out, which is not the fault of a file."""
    killed = ask(f"draft {signal.SIGKILL:d}")
    assert killed.returncode == 4
    assert "SIGKILL" in killed.stderr
    assert killed.stdout.strip()
    assert not paths.drafter_crashes_file().exists()
    assert ask().returncode == 0


@pytest.mark.parametrize("when", ["draft", "open"])
def test_out_of_memory_continues_the_reply_without_the_drafter(ask: Ask, when: str) -> None:
    reply = ask(f"{when} MemoryError", "--json")
    assert reply.returncode == 0, reply.stderr
    assert reply.stderr.count("Decoding without the drafter") == 1
    plain = ask("", "--json", "--draft-model", "off")
    assert json.loads(reply.stdout)["text"] == json.loads(plain.stdout)["text"]


class FaultyChat:
    """A chat whose engine computes one draft over and over, until that is aborted or the engine is killed."""

    def __init__(self, kind: DrafterKind, folder: Path, patch: pytest.MonkeyPatch) -> None:
        target, draft = write_pair(kind, folder)
        self._marker = folder / "drafting"
        for name, value in drafter_faults.arrange(folder, "draft forever", self._marker).items():
            patch.setenv(name, value)
        settings = Settings(
            temperature=0.0, max_tokens=60, n_ctx=1024, n_threads=1, draft_model=str(draft) if draft else "auto"
        )  # fmt: skip
        self.chat = OpenChat(target, open_store(), settings)
        properties = self.chat.session.model.model_properties
        assert properties is not None
        assert properties.drafter == kind

    def send(self, interrupt: Callable[[], None]) -> SessionEvent:
        """Send a message, call `interrupt` when the draft is being computed, and return the last event."""
        with ThreadPoolExecutor() as executor:
            reply = executor.submit(lambda: list(self.chat.session.send("Hello")))
            until(self._marker.exists)
            interrupt()
            return reply.result(timeout=120)[-1]

    def check_next_reply(self) -> None:
        """Check that the text before the fault is kept, and that the reply to the same message has it and drafts."""
        self.chat.check()
        text = self.chat.session.tree.path[1].text
        assert text
        reply = self.chat.run(self.chat.session.regenerate())
        assert reply.text.startswith(text)
        assert reply.stats is not None
        assert reply.stats.completion_tokens == 60
        assert isinstance(reply.stats.drafts_by_source, dict)
        counts = reply.stats.drafts_by_source["model"]
        assert counts.n_accepted > 0.95 * counts.n_drafted


@pytest.fixture
def faulty_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[DrafterKind], FaultyChat]]:
    """Open a chat with a drafter of a kind, and close it after the test."""
    chats: list[FaultyChat] = []

    def open_one(kind: DrafterKind) -> FaultyChat:
        chats.append(FaultyChat(kind, tmp_path, monkeypatch))
        return chats[-1]

    yield open_one
    for faulty in chats:
        faulty.chat.session.close()


@pytest.mark.parametrize("kind", DRAFTERS)
def test_kill_while_a_draft_is_computed(kind: DrafterKind, faulty_chat: Callable[[DrafterKind], FaultyChat]) -> None:
    """The text is kept, and the next reply has an engine with the drafter, which is not blamed."""
    faulty = faulty_chat(kind)
    engine = faulty.chat.session.model.engine

    def kill() -> None:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)

    with pytest.raises(EngineDiedError):
        faulty.send(kill)
    assert faulty.chat.session.tree.path[1].finish_reason == "interrupted"
    faulty.check_next_reply()
    assert not paths.drafter_crashes_file().exists()


@pytest.mark.parametrize("kind", DRAFTERS)
def test_cancel_while_a_draft_is_computed(kind: DrafterKind, faulty_chat: Callable[[DrafterKind], FaultyChat]) -> None:
    """Only the abort of a decode of the drafter can end the draft, and the same engine generates the next reply."""
    faulty = faulty_chat(kind)
    pid = faulty.chat.session.model.engine.pid
    last = faulty.send(faulty.chat.session.stop)
    assert isinstance(last, TurnInterrupted)
    assert last.reply.finish_reason == "cancelled"
    faulty.check_next_reply()
    assert faulty.chat.session.model.engine.pid == pid


def test_interrupt_while_a_draft_is_computed(tmp_path: Path, cli: Cli) -> None:
    target, draft = write_pair("draft-model", tmp_path)
    marker = tmp_path / "drafting"
    process = subprocess.Popen(
        edgechat_command(
            "ask", "-m", str(target), "--draft-model", str(draft), "--temperature", "0", "--max-tokens", "100",
            "--ctx", "1024", "Hello",
        ),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | drafter_faults.arrange(tmp_path, "draft forever", marker),
    )  # fmt: skip
    until(marker.exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert out.strip()
    assert out.decode().strip() in cli("history", "export", "--all").stdout
