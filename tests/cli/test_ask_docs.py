"""`edgechat ask --docs` with the starter model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Cli

# A topic that the starter model knows nothing about.
FACTS = {
    "lamp.md": "# Zorblat lamp\n\nThe zorblat lamp has a battery of 4711 mAh. It was made in the town of Quimby.\n",
    "pump.md": "# Frindle pump\n\nThe frindle pump moves 36 litres per minute. It weighs 12 kg.\n",
}


@pytest.fixture
def manuals(tmp_path: Path, cli: Cli) -> str:
    folder = tmp_path / "manuals"
    folder.mkdir()
    for name, text in FACTS.items():
        (folder / name).write_text(text)
    assert cli("docs", "add", str(folder)).returncode == 0
    return "manuals"


def test_question_about_whole_documents(cli: Cli, manuals: str) -> None:
    question = "How many mAh has the battery of the zorblat lamp?"
    options = ["--docs", manuals, "--temperature", "0", "--max-tokens", "60"]
    result = cli("ask", question, *options)
    assert result.returncode == 0, result.stderr
    assert "4711" in result.stdout
    assert "Both documents are in the prompt" in result.stderr
    again = json.loads(cli("ask", question, *options, "--json").stdout)
    assert "4711" in again["text"]  # the other words can differ: two of them can be nearly as probable
    assert again["stats"]["cached_tokens"] > 0  # a new conversation in a new process, with the same documents
    assert [p["document"] for p in again["passages"]] == ["lamp.md", "pump.md"]
    assert again["searched"]["is_whole"]
    assert ("The reply cites no passage." in result.stderr) == (re.search(r"\[\d", result.stdout) is None)


def test_cited_passages_are_named_and_checked(cli: Cli, manuals: str, tmp_path: Path) -> None:
    """A schema makes the model cite: the starter itself does so too rarely for a test."""
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"const": "The pump moves 36 litres [2], the lamp has 5000 mAh [1], or none [9]."}))
    options = ["--docs", manuals, "--schema", str(schema), "--no-stdin"]
    result = cli("ask", "Describe both.", *options)
    assert result.returncode == 0, result.stderr
    assert "edgechat: [1] lamp.md, lines 1-3 (not in the passage: 5000)\n" in result.stderr
    assert "edgechat: [2] pump.md, lines 1-3\n" in result.stderr
    assert "edgechat: There is no passage [9].\n" in result.stderr
    reply = json.loads(cli("ask", "Describe both.", *options, "--json").stdout)
    assert [(c["number"], c["document"], c["problems"]) for c in reply["cited"]] == [
        (1, "lamp.md", ["not in the passage: 5000"]), (2, "pump.md", []),
    ]  # fmt: skip


def test_question_is_answered_from_passages_if_the_documents_are_long(cli: Cli, manuals: str, tmp_path: Path) -> None:
    (tmp_path / "manuals" / "filler.txt").write_text(
        "\n\n".join(f"Chapter {i} is about sand. " * 40 for i in range(80))
    )
    assert cli("docs", "update", manuals).returncode == 0
    question = "How many litres per minute does the frindle pump move?"
    result = cli(
        "ask", question, "--docs", manuals, "--temperature", "0", "--max-tokens", "60", "--ctx", "2048", "--json"
    )
    assert result.returncode == 0, result.stderr
    reply = json.loads(result.stdout)
    assert "36" in reply["text"]
    assert reply["passages"][0]["document"] == "pump.md"
    assert reply["passages"][0]["scores"]["bm25_rank"] == 1
    assert not reply["searched"].get("is_whole")
    assert "Only keywords were searched" in result.stderr


def test_attached_folder_is_searched_and_saved_with_the_conversation(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "pumps"
    folder.mkdir()
    (folder / "pump.md").write_text(FACTS["pump.md"])
    options = ["--temperature", "0", "--max-tokens", "40"]
    first = cli("ask", "-a", str(folder), "How many litres per minute does the frindle pump move?", *options)
    assert first.returncode == 0, first.stderr
    assert "36" in first.stdout
    assert "Collection pumps with 1 document added." in first.stderr
    again = json.loads(cli("ask", "-c", "And how heavy is it, in kg?", *options, "--json").stdout)
    assert again["searched"]["collections"] == ["pumps"]
    assert again["stats"]["cached_tokens"] > 0
    (folder / "pump.md").unlink()
    assert cli("docs", "remove", "pumps", "--yes").returncode == 0
    failed = cli("ask", "-c", "And its colour?", *options)
    assert failed.returncode == 2
    assert "There is no collection of documents called 'pumps'. There are no collections yet." in failed.stderr
