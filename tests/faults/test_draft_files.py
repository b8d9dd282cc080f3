"""Draft models and heads that are damaged or do not fit: an error, or a reply without a drafter, never a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli, remove_notes
from tests.hostile_heads import HOSTILE_PAIRS, PAIRS_THAT_END_LLAMA, HostilePair

# In the short run, only these are loaded.
_LOADED = (
    "four billion heads", "NaN in the head", "EAGLE-3 with a negative vocabulary map", "EAGLE-3 with NaN",
    "assistant with another number of KV heads",
)  # fmt: skip


def choose(pair: HostilePair) -> list[str]:
    """Return the arguments that choose the files of a pair."""
    return ["-m", str(pair.target), *(["--draft-model", str(pair.draft)] if pair.draft is not None else [])]


@pytest.mark.parametrize("name", HOSTILE_PAIRS)
def test_facts_and_plans_of_hostile_heads(name: str, tmp_path: Path, run_here: Cli) -> None:
    pair = HOSTILE_PAIRS[name](tmp_path)
    for path in filter(None, pair):
        info = run_here("models", "info", str(path))
        assert info.returncode in {0, 3}, info.stderr
        assert info.stdout or path.name in info.stderr
    plan = run_here("plan", *choose(pair), "--json")
    assert plan.returncode in {0, 3}, plan.stderr
    if name in PAIRS_THAT_END_LLAMA:
        has_drafter = plan.returncode == 0 and json.loads(plan.stdout).get("drafter")
        assert not has_drafter
    if plan.returncode == 3:
        assert len(plan.stderr.splitlines()) == 1
        assert str(tmp_path) in plan.stderr or "cannot draft for target.gguf" in plan.stderr


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    "name", [name if name in _LOADED else pytest.param(name, marks=pytest.mark.long) for name in HOSTILE_PAIRS]
)
def test_replies_with_hostile_heads(name: str, tmp_path: Path, cli: Cli) -> None:
    """Every reply equals that without a drafter, or there is one error that names the file."""
    pair = HOSTILE_PAIRS[name](tmp_path)
    # Enough tokens for a trial of the drafter.
    flags = ["--temperature", "0", "--max-tokens", "200", "--ctx", "1024", "--threads", "1", "Hello"]
    drafted = cli("ask", *choose(pair), *flags)
    assert drafted.returncode in {0, 3}, drafted.stderr
    assert "Traceback" not in drafted.stderr
    if drafted.returncode == 3:
        assert len(remove_notes(drafted.stderr).splitlines()) <= 2
        return
    plain = cli("ask", "-m", str(pair.target), "--draft-model", "off", *flags)
    assert plain.returncode == 0
    assert drafted.stdout == plain.stdout
