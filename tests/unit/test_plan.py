"""What models would take: budgets in words, and the table."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.config import check, size_bytes
from tests.conftest import Cli
from tests.hub import Repo, local_hub


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9), ("4 gb", 4 * 10**9), ("1.5GiB", 3 << 29), ("1,5 gib", 3 << 29), ("900000000", 900_000_000),
        ("512m", 512 * 10**6), ("2T", 2 * 10**12), ("7b", 7), ("10KiB", 10240),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert size_bytes(text) == size
    assert check("budget", text) == ""


@pytest.mark.parametrize(
    "text", ["", "-4GB", "0", "4GBB", "four", "4 G B", "1e9", "0x10", "∞", "9" * 30, "9999999T", "4GB; rm"]
)
def test_what_is_no_size(text: str) -> None:
    assert size_bytes(text) is None
    assert "no size" in check("budget", text)


@given(st.text(max_size=12))
def test_any_words_are_a_size_or_none(text: str) -> None:
    size = size_bytes(text)
    assert size is None or 0 < size < 1 << 60


def test_the_table_of_what_is_here_and_of_what_is_not(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, starter: object
) -> None:
    found = json.loads(cli("plan", "--json", "--budget", "2GB").stdout)
    [row] = [row for row in found["models"] if row["name"] == "starter"]
    assert found["available_bytes"] == 2 * 10**9
    assert (row["fits"], row["quant"], row["total_bytes"]) == (True, "Q4_1", row["total_bytes"])
    small = json.loads(cli("plan", "starter", "--json", "--budget", "100MB").stdout)["models"][0]
    assert (small["fits"], "at least" in small["verdict"]) == (False, True)
    assert "fits" in cli("plan", "starter", "--ctx", "2048").stdout
    assert cli("plan", "--budget", "lots").returncode == 2
    assert cli("plan", "no-such-model").returncode == 3
    with local_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos["own/repo"] = Repo({"m-Q4_1.gguf": starter})  # type: ignore[dict-item]
        far = json.loads(cli("plan", "own/repo", "--json", "--budget", "2GB").stdout)["models"][0]
        assert far["memory"] == row["memory"]
        assert hub.sent_bytes < 4 << 20


def test_the_budget_of_a_conversation_is_kept_to(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = cli("ask", "--budget", "200MB", "hi")
    assert (refused.returncode, "available" in refused.stderr) == (5, True)
    monkeypatch.setenv("EDGECHAT_BUDGET", "200MB")
    assert cli("ask", "hi").returncode == 5
