"""`edgechat ask --answers N --pick METHOD`: the printed reply, the notes about its cost, and the JSON object."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.cli.test_ends import ASK

pytestmark = pytest.mark.cold


def ask(*arguments: str, reply: str = "So 3 + 4 = 7.\nThe answer is 7.") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ASK, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env=os.environ | {"REPLY": reply, "TOKEN_INTERVAL_S": "0"},
    )  # fmt: skip


def test_picked_reply_is_printed_with_notes_about_its_cost() -> None:
    done = ask("--answers", "5", "--pick", "agree")
    assert done.returncode == 0
    assert done.stdout == "So 3 + 4 = 7.\nThe answer is 7.\n"
    assert "Up to 5 replies share the prompt, and take up to 5 times the tokens of one reply" in done.stderr
    assert "3 of 3 agree (3 replies, " in done.stderr


def test_json_has_votes_answers_and_mean_logprobs() -> None:
    done = ask("--answers", "3", "--pick", "likely", "--json")
    result = json.loads(done.stdout)
    assert result["pick"]["votes"] == {"7": 3}
    assert result["pick"]["result"] == "most likely of 3"
    assert result["pick"]["n_tokens"] > 0
    assert [r["answer"] for r in (result, *result["others"])] == ["7"] * 3
    assert [r["mean_logprob"] for r in (result, *result["others"])] == [-1.0] * 3


def test_picking_from_one_reply_is_a_usage_error() -> None:
    done = ask("--pick", "agree")
    assert done.returncode == 2
    assert "Add --answers 5" in done.stderr
    assert not done.stdout
