"""The command line with scripted replies: `python -m tests.cli.scripted_command ask ...`.

Variables: TOKEN_INTERVAL_S (default 0.01), REPLY (default: 5,000 numbered words), MODEL (the setting, default:
scripted), ROUTE (the setting as JSON; if set, it is used), and GATE (path of a file that replies wait for after 20
tokens; default: they do not wait).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgechat.bench.scripted_session import Script, ScriptedEngine, ScriptedSession
from edgechat.chat.commands import load_model
from edgechat.chat.session import Session
from edgechat.cli import session_factory
from edgechat.cli.main import main
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.store import open_store

LONG_REPLY = " ".join(f"word{number}" for number in range(5000))


def _open_gate(script: Script, gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.01)
    script.may_continue.set()


def prepare_session(**options: object) -> tuple[Callable[[], Session], list[str]]:
    """Replace the function of the same name in `edgechat.cli.session_factory`."""
    script = Script([os.environ.get("REPLY", LONG_REPLY)], float(os.environ.get("TOKEN_INTERVAL_S", "0.01")))
    if gate := os.environ.get("GATE"):
        script.pause_after_tokens = 20
        script.may_continue.clear()
        threading.Thread(target=_open_gate, args=(script, Path(gate)), daemon=True).start()

    def make_session() -> Session:
        store = open_store()
        latest_id = store.latest_id() if options.get("continue_last") else None
        conversation = store.conversation(latest_id) if latest_id is not None else None
        route = json.loads(os.environ.get("ROUTE", "{}"))
        settings = Settings(titles=False, model=os.environ.get("MODEL", "scripted"), route=route)
        session = ScriptedSession(store, settings, script, conversation)
        if route:
            load_model(session, "route", lambda event: None)
        return session

    return make_session, []


if __name__ == "__main__":
    session_factory.prepare_session = prepare_session  # type: ignore[assignment]
    stats = protocol.EngineStats(
        id=1, backend="", model="", n_ctx=0, context_tokens=0, peak_rss_bytes=0, memory={}
    )  # fmt: skip
    ScriptedEngine.stats = lambda self: stats  # type: ignore[method-assign]
    sys.argv[0] = "edgechat"
    main()
