"""Replies that match a JSON schema, in a conversation and with `ask --schema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgechat.config import Settings
from edgechat.errors import GrammarError
from edgechat.prompt.json_schemas import make_json_rule
from edgechat.store import open_store
from tests.conftest import Cli
from tests.engine.chats import OpenChat
from tests.models import OPEN_THOUGHT_TEMPLATE, THINKING_TEMPLATE, write_tiny_llama

SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["size", "count"],
    "additionalProperties": False,
}
RULE = make_json_rule(SCHEMA, "schema")


def open_chat(tmp_path: Path, template: str | None = None, **options: object) -> OpenChat:
    arguments = {} if template is None else {"template": template}
    model = write_tiny_llama(tmp_path / "tiny.gguf", seed=3, **arguments)  # type: ignore[arg-type]
    values = {"temperature": 1.0, "max_tokens": 150, "n_ctx": 256, "titles": False, "seed": 1} | options
    return OpenChat(model, open_store(), Settings(**values))  # type: ignore[arg-type]


def check_reply(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"size", "count"}
    assert value["size"] in SCHEMA["properties"]["size"]["enum"]  # type: ignore[index]
    assert 0 <= value["count"] <= 99


def test_all_replies_of_a_turn_match_the_rule(tmp_path: Path) -> None:
    chat = open_chat(tmp_path)
    chat.run_all(chat.session.send("Hi", n_replies=2, output_rule=RULE))
    replies = [m for m in chat.session.tree.subtree(chat.session.tree.path[0].id) if m.role == "assistant"]
    assert len(replies) == 2
    for reply in replies:
        check_reply(reply.text)
    chat.session.close()


@pytest.mark.parametrize(
    ("template", "thinking"), [(THINKING_TEMPLATE, "off"), (THINKING_TEMPLATE, "20"), (OPEN_THOUGHT_TEMPLATE, "20")]
)
def test_rule_applies_to_the_content_after_the_reasoning(tmp_path: Path, template: str, thinking: str) -> None:
    chat = open_chat(tmp_path, template, thinking=thinking)
    reply = chat.run(chat.session.send("Hi", output_rule=RULE))
    check_reply(reply.text)
    chat.session.close()


def test_rule_that_cannot_be_enforced_leaves_no_message(tmp_path: Path) -> None:
    chat = open_chat(tmp_path)
    with pytest.raises(GrammarError, match="regex parse error"):
        chat.run(chat.session.send("Hi", output_rule=make_json_rule({"type": "string", "pattern": "(a"}, "schema")))
    assert not chat.session.tree.path
    chat.run(chat.session.send("Hi"))
    assert len(chat.session.tree.path) == 2
    chat.session.close()


@pytest.mark.slow
def test_ask_prints_json_that_matches_the_file(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text("\ufeff" + json.dumps(SCHEMA), encoding="utf-8")
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    arguments = ("ask", "-m", str(model), "--schema", str(file), "--no-stdin", "Are there 7 small apples?")
    result = cli(*arguments)
    assert result.returncode == 0, result.stderr
    check_reply(result.stdout)
    check_reply(json.loads(cli(*arguments, "--json").stdout)["text"])
    cut = cli(*arguments, "--max-tokens", "4")
    assert cut.returncode == 5
    assert cut.stderr.splitlines()[-1].startswith("edgechat: The reply was cut, so that its JSON is incomplete.")
