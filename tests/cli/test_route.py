"""`edgechat ask` with a route: what is printed after an escalation, the JSON object, and errors of the setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_ends import ASK, COMMAND

pytestmark = pytest.mark.cold


def run(command: list[str], route: dict[str, object], *, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=stdin or "", capture_output=True, text=True, check=False,
        env=os.environ | {"REPLY": "Small reply.", "TOKEN_INTERVAL_S": "0", "ROUTE": json.dumps(route)},
    )  # fmt: skip


@pytest.fixture
def route(tmp_path: Path) -> dict[str, object]:
    files = {name: tmp_path / f"{name}.gguf" for name in ("small", "large")}
    for file in files.values():
        file.write_text("")
    return {name: str(file) for name, file in files.items()}


def test_only_the_escalated_reply_is_printed(route: dict[str, object]) -> None:
    done = run([*ASK, "--no-stdin"], {**route, "min_logprob": -0.5})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Another answer.\n"
    assert "Model: route: small, or large" in done.stderr
    assert "Escalated from small to large: mean log probability -1.00 below -0.50." in done.stderr


def test_checked_reply_is_printed_once(route: dict[str, object]) -> None:
    done = run([*ASK, "--no-stdin"], {**route, "min_logprob": -2})
    assert done.stdout == "Small reply.\n"
    assert "Escalated" not in done.stderr


def test_json_says_which_model_replied_and_why(route: dict[str, object]) -> None:
    done = run([*ASK, "--no-stdin", "--json"], {**route, "min_logprob": -0.5})
    result = json.loads(done.stdout)
    assert (result["text"], result["model"]) == ("Another answer.", "large.gguf")
    assert result["route"] == {
        "model": "large.gguf", "reason": "mean log probability -1.00 below -0.50", "small_model": "small.gguf",
        "doubt": "logprob", "mean_logprob": -1.0, "min_logprob": -0.5, "is_escalated": True,
    }  # fmt: skip
    assert [other["text"] for other in result["others"]] == ["Small reply."]


def test_plain_chat_marks_a_hard_message(route: dict[str, object]) -> None:
    done = run([*COMMAND, "--plain"], route, stdin="/hard\nQuestion\nAgain\n")
    assert "large replied: /hard." in done.stdout + done.stderr
    assert done.stdout.index("Another answer.") < done.stdout.index("Small reply.")


def test_missing_route_is_a_clear_error(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgechat", "ask", "--no-stdin", "-m", "route", "Hi"], capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL, env=os.environ | {"EDGECHAT_HOME": str(home)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "There is no route in the settings. Add a table [route] with small and large" in done.stderr
