"""The chat with scripted replies: `python -m tests.tui.scripted_program [TOKEN_INTERVAL_S [REPLY [N_FAST_TOKENS]]]`."""

from __future__ import annotations

import sys

from edgechat import config
from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.cli.chat import export
from edgechat.config import Settings
from edgechat.store import open_store
from edgechat.tui.app import ChatApp, run_app

LONG_REPLY = " ".join(f"word{number}" for number in range(5000))


def main() -> int:
    """Run the chat and return its exit code. Conversations are saved in EDGECHAT_HOME."""
    defaults = ["0.01", LONG_REPLY, "0"]
    interval_s, reply, n_fast_tokens = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]
    script = Script([reply], token_interval_s=float(interval_s), n_fast_tokens=int(n_fast_tokens))
    settings = Settings(temperature=0.0, titles=False, theme=config.load()[0].theme)
    app = ChatApp(lambda: ScriptedSession(open_store(), settings, script), [], settings, export)
    return run_app(app)


if __name__ == "__main__":
    sys.exit(main())
