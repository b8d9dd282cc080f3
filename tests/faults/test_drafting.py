"""Engines that crash, are killed or run out of memory while a model drafter is opened or used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgechat import paths
from tests.conftest import ROOT, Cli, edgechat_command
from tests.draft_models import make_llama, turn_into_chain

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"), pytest.mark.usefixtures("warm"),
]  # fmt: skip
# Runs in the engine process: the drafter is asked in every step, and FAULT says what happens with it.
_SITECUSTOMIZE = """
import os, sys
if "_engine" in sys.orig_argv:
    from edgechat.runtime import activity
    from edgechat.runtime.activity import Activity
    from edgechat.runtime.drafter_context import DrafterContext
    from edgechat.runtime.drafter_source import DrafterSource
    from edgechat.speculation.model_source import ModelChoice, ModelSource

    when, _, what = os.environ["FAULT"].partition(" ")

    def fail(self, *arguments, **options):
        if what == "MemoryError":
            raise MemoryError
        with activity.during(Activity.DRAFTING if when == "draft" else Activity.LOADING):
            os.kill(os.getpid(), int(what))

    def choose(self, *arguments, **options):
        return ModelChoice(self._drafter.max_tokens, 1000, 9.0, pays=True) if self.is_usable else None

    ModelSource.choose = choose
    if when == "draft":
        n_calls, draft = 0, DrafterContext.draft

        def draft_twice(self, *arguments, **options):
            global n_calls
            n_calls += 1
            return draft(self, *arguments, **options) if n_calls <= 2 else fail(self)

        DrafterContext.draft = draft_twice
    else:
        DrafterSource.load = fail
"""
Ask = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ask(tmp_path: Path, cli: Cli) -> Ask:
    """Return a function that asks a model with a draft model, and with a fault in the engine."""
    target = turn_into_chain(make_llama(n_layer=4)).write(tmp_path / "target.gguf")
    draft = turn_into_chain(make_llama(seed=1)).write(tmp_path / "draft.gguf")
    (tmp_path / "sitecustomize.py").write_text(_SITECUSTOMIZE)

    def run(fault: str = "", *flags: str) -> subprocess.CompletedProcess[str]:
        added = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "FAULT": fault} if fault else {}
        options = ("--temperature", "0", "--max-tokens", "60", "--ctx", "1024", "--threads", "1")
        return cli(
            "ask", "-m", str(target), "--draft-model", str(draft), *options, *flags, "Hello", env=os.environ | added
        )

    return run


def test_crash_while_drafting_is_recorded_and_the_next_message_has_no_drafter(ask: Ask) -> None:
    crashed = ask(f"draft {signal.SIGSEGV:d}")
    assert crashed.returncode == 4
    assert "while drafting with a model" in crashed.stderr
    assert "does not use this model drafter" in crashed.stderr
    assert crashed.stdout.strip(), "the text before the crash is kept"
    reply = ask(f"draft {signal.SIGSEGV:d}")
    assert reply.returncode == 0, reply.stderr
    assert reply.stdout.startswith(crashed.stdout.strip())
    assert reply.stderr.count("Decoding without the draft model") == 1
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
    plain = ask("", "--json", "--draft-model", "off")
    assert json.loads(reply.stdout)["text"] == json.loads(plain.stdout)["text"]


def test_interrupt_while_drafting_keeps_the_text(tmp_path: Path) -> None:
    target = turn_into_chain(make_llama(n_layer=4)).write(tmp_path / "target.gguf")
    process = subprocess.Popen(
        edgechat_command(
            "ask", "-m", str(target), "--draft-model", str(target), "--temperature", "0", "--max-tokens", "100000",
            "--ctx", "2048", "Hello",
        ),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(200)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in {0, 130}, err  # the reply may have ended at the end of the context
    assert b"Traceback" not in err
