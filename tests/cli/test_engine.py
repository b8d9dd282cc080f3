"""`edgechat engine status` and `edgechat engine stop`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.runtime.drafter_crashes import record_crash
from tests.conftest import Cli
from tests.draft_models import make_llama
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("resident")


def read_engines(cli: Cli) -> list[dict[str, Any]]:
    result = cli("engine", "status", "--json")
    assert result.returncode == 0, result.stderr
    engines: list[dict[str, Any]] = json.loads(result.stdout)["engines"]
    return engines


def read_idle_engine(cli: Cli) -> dict[str, Any]:
    """Return the status of the only engine when it has noticed that its client has ended."""
    engines: list[dict[str, Any]] = []

    def is_idle() -> bool:
        engines[:] = read_engines(cli)
        return [(engine["state"], engine["clients"]) for engine in engines] == [("idle", [])]

    until(is_idle, description=lambda: f"the engine is idle: {engines}")
    return engines[0]


def test_engine_stays_after_ask_and_can_be_stopped(cli: Cli) -> None:
    assert read_engines(cli) == []
    assert cli("engine", "status").stdout == "No engine is running.\n"
    assert cli("ask", "-m", "starter", "Hi", "--max-tokens", "8").returncode == 0
    engine = read_idle_engine(cli)
    assert engine["keep_alive_s"] == 300
    assert engine["memory_bytes"] > 50_000_000
    assert engine["decode_tps"] > 0
    assert engine["prompt_cache"]["prompts"] == 1
    assert engine["prompt_cache"]["last_prompt_tokens"] > 20
    text = cli("engine", "status").stdout
    assert "prompt cache: 0 % of " in text
    assert f"engine {engine['pid']}: {engine['model']}" in text
    assert "used by no program; ends in " in text
    assert cli("ask", "-m", "starter", "Ho", "--max-tokens", "3").returncode == 0
    assert [other["pid"] for other in read_engines(cli)] == [engine["pid"]]
    stopped = cli("engine", "stop", "--json")
    assert json.loads(stopped.stdout) == {"stopped": [engine["pid"]]}
    assert read_engines(cli) == []
    assert "No engine was stopped" in cli("engine", "stop").stdout


def test_status_names_the_model_drafter_and_those_that_crashed(cli: Cli, tmp_path: Path) -> None:
    target = make_llama(n_layer=4).write(tmp_path / "target.gguf")
    draft = make_llama(seed=1).write(tmp_path / "draft.gguf")
    flags = ("--draft-model", str(draft), "--ctx", "1024", "--max-tokens", "4")
    assert cli("ask", "-m", str(target), *flags, "Hi").returncode == 0
    engine = read_idle_engine(cli)
    assert (engine["drafter"], engine["drafter_file"]) == ("draft-model", str(draft))
    text = cli("engine", "status").stdout
    assert f"drafts with a draft model ({draft})" in text
    assert "does not draft" not in text
    record_crash(str(target), DrafterPlan(kind="eagle3", model_path=str(tmp_path / "head.gguf")), "SIGSEGV (signal 11)")
    text = cli("engine", "status").stdout
    assert "does not draft with head.gguf: the engine died with SIGSEGV (signal 11) in it" in text
    assert read_engines(cli)[0]["crashed_drafters"] == {"head.gguf": "SIGSEGV (signal 11)"}


def test_refused_drafters_share_an_engine_and_each_program_says_why(cli: Cli, tmp_path: Path) -> None:
    target = make_llama(n_layer=4).write(tmp_path / "target.gguf")
    flags = ("--ctx", "1024", "--max-tokens", "4", "--json", "Hi")
    for name in ("missing", "absent", "off"):
        reply = cli("ask", "-m", str(target), "--draft-model", name, *flags)
        fields = json.loads(reply.stdout)
        refusal = f"No model with the name {name!r}" if name != "off" else ""
        assert (fields["drafter"], fields["drafter_refusal"][: len(refusal)]) == (None, refusal)
        assert bool(fields["drafter_refusal"]) == bool(refusal)
        assert (f"Decoding without the drafter: {refusal}" in reply.stderr) == bool(refusal)
    engine = read_idle_engine(cli)  # the only one
    assert engine["drafter_refusal"].startswith("No model with the name 'missing'")
    assert "does not draft with the named drafter: No model with the name 'missing'" in cli("engine", "status").stdout


def test_doctor_explains_why_more_of_the_last_prompt_was_not_cached(cli: Cli) -> None:
    rules = " ".join(f"Rule {i}: be kind to the owl." for i in range(30))
    for header in ("apple", "melon"):
        assert cli("ask", "-m", "starter", "--system", f"{header}! {rules}", "Hi", "--max-tokens", "2").returncode == 0
    [engine] = json.loads(cli("doctor", "--json").stdout)["engines"]
    assert "differs from an earlier one, at 'melon" in engine["prompt_cache"]["last_miss"]
    assert engine["prompt_cache"]["last_miss"] in cli("doctor").stdout
    report = cli("doctor", "--report").stdout
    assert "differs from an earlier one" in report
    assert "melon" not in report


def test_unknown_process_id_is_an_error(cli: Cli) -> None:
    result = cli("engine", "stop", "1")
    assert result.returncode == 2
    assert "No engine has the process id 1" in result.stderr


def test_process_id_and_all_exclude_each_other(cli: Cli) -> None:
    assert cli("engine", "stop", "1", "--all").returncode == 2


def test_purge_after_ask_ends_the_idle_engine(cli: Cli, home: Any) -> None:
    assert cli("ask", "-m", "starter", "Hi", "--max-tokens", "3").returncode == 0
    result = cli("uninstall", "--purge", "--yes")
    assert result.returncode == 0, result.stderr
    assert read_engines(cli) == []
    assert not (home / "cache").exists()


def test_keep_alive_of_zero_ends_the_engine_with_the_program(cli: Cli, home: Any) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text("keep_alive = 0\n")
    assert cli("ask", "-m", "starter", "Hi", "--max-tokens", "3").returncode == 0
    until(lambda: not read_engines(cli))
