"""`edgechat history` with text and JSON output."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.cli.history import history
from edgechat.cli.output_files import write_private
from edgechat.errors import StoreError
from edgechat.store import open_store
from edgechat.store.sqlite import SqliteStore
from tests.conftest import Cli
from tests.step_count import takes_linear_time


@pytest.fixture
def ids() -> list[str]:
    """IDs of three conversations; the last one has an alternative and contains control characters."""
    store = open_store()
    created = []
    for number, text in enumerate(("about rivers", "about <b>code</b>: x = 1", "evil \x1b[2J\u202e words")):
        conversation = Conversation(id=f"{number}" * 16, title=f"Talk {text}", created_at_ms=1000 + number)
        root = Message(id=new_id(), role="user", text=text, created_at_ms=1000)
        answers = [
            Message(
                id=new_id(), parent_id=root.id, role="assistant", text=f"answer {n} to {text}", finish_reason="stop"
            )
            for n in range(2)
        ]
        store.append(conversation, [root, *answers])
        created.append(conversation.id)
    store.close()
    return created


@pytest.mark.slow
def test_list_filters(cli: Cli, ids: list[str]) -> None:
    assert [line.split()[0] for line in cli("history", "list").stdout.splitlines()] == [i[:8] for i in reversed(ids)]
    assert cli("history", "mark", ids[0], "--pin", "--tag", "work", "--tag", "x", "--folder", "F").returncode == 0
    assert cli("history", "mark", ids[1], "--archive").returncode == 0
    assert cli("history", "mark", ids[0], "--untag", "x").returncode == 0
    listed = json.loads(cli("history", "list", "--json").stdout)
    assert [s["conversation"]["id"] for s in listed] == [ids[0], ids[2]]
    assert (listed[0]["conversation"]["tags"], listed[0]["conversation"]["folder"]) == (["work"], "F")
    assert len(cli("history", "list", "--all").stdout.splitlines()) == 3
    assert len(cli("history", "list", "--tag", "work").stdout.splitlines()) == 1
    assert len(cli("history", "list", "--folder", "F", "--limit", "5").stdout.splitlines()) == 1
    assert len(cli("history", "list", "--limit", "1", "--offset", "1").stdout.splitlines()) == 1


@pytest.mark.slow
def test_output_contains_no_control_characters(cli: Cli, ids: list[str]) -> None:
    for arguments in (["list"], ["show", ids[2]], ["search", "evil"]):
        out = cli("history", *arguments).stdout
        assert "evil" in out
        assert "\x1b[2J" not in out
        assert "\u202e" not in out
    shown = cli("history", "show", "222").stdout
    assert "2/2" in shown
    assert len(json.loads(cli("history", "show", ids[2], "--json").stdout)["messages"]) == 3


def test_search_finds_messages(cli: Cli, ids: list[str]) -> None:
    hits = json.loads(cli("history", "search", "x = 1", "--json").stdout)
    assert {h["conversation_id"] for h in hits} == {ids[1]}
    assert len(json.loads(cli("history", "search", "answer", "--json", "-n", "2").stdout)) == 2
    assert json.loads(cli("history", "search", "answer", "--rank", "--json").stdout)[0]["score"] > 0
    assert cli("history", "search", "nowhere").stdout == ""


def test_rename_and_delete(cli: Cli, ids: list[str]) -> None:
    assert cli("history", "rename", "111", " A  new\nname ").returncode == 0
    assert json.loads(cli("history", "show", "111", "--json").stdout)["conversation"]["title"] == "A new name"
    assert json.loads(cli("history", "delete", "--yes", "111", "222", "--json").stdout) == ids[1:]
    assert len(cli("history", "list").stdout.splitlines()) == 1


@pytest.mark.slow
def test_export_and_import_round_trip(
    cli: Cli, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("all.json", "one.md", "one.html"):
        arguments = ["--all"] if name == "all.json" else [ids[1]]
        assert cli("history", "export", *arguments, "-o", str(tmp_path / name)).returncode == 0
    assert "<b>code" not in (tmp_path / "one.html").read_text()
    monkeypatch.setenv("EDGECHAT_HOME", str(tmp_path / "other"))
    dry = json.loads(cli("history", "import", "--dry-run", "--json", str(tmp_path / "all.json")).stdout)
    assert (dry["conversations"], dry["messages"]) == (3, 9)
    assert cli("history", "list").stdout == ""
    assert "2 messages added" in cli("history", "import", str(tmp_path / "one.md")).stdout
    done = json.loads(cli("history", "import", "--json", str(tmp_path / "all.json")).stdout)
    assert (done["conversations"], done["messages"], done["known"]) == (2, 7, 2)
    again = json.loads(cli("history", "import", "--json", str(tmp_path / "all.json")).stdout)
    assert (again["messages"], again["known"]) == (0, 9)


@pytest.mark.slow
def test_import_names_bad_files_and_continues(
    cli: Cli, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, empty, folder = tmp_path / "good.json", tmp_path / "empty.json", tmp_path / "folder"
    assert cli("history", "export", "--all", "-o", str(good)).returncode == 0
    empty.touch()
    folder.mkdir()
    monkeypatch.setenv("EDGECHAT_HOME", str(tmp_path / "other"))
    result = cli("history", "import", str(empty), str(folder), str(good), str(tmp_path / "missing"))
    assert result.returncode == 2
    assert "good.json: 3 conversations and 9 messages added" in result.stdout
    # On a busy machine, an import that takes ten seconds reports its progress.
    assert [line for line in result.stderr.splitlines() if not line.startswith("Reading ")] == [
        f"edgechat: Cannot import {empty}: the file is empty.",
        f"edgechat: Cannot import {folder}: it is a folder. Import the files in it.",
        f"edgechat: Cannot read {tmp_path / 'missing'}: No such file or directory.",
    ]
    assert ids


def test_import_as_json_has_an_object_for_each_file(cli: Cli, tmp_path: Path) -> None:
    chats, empty = tmp_path / "chats.json", tmp_path / "empty.json"
    message = {"author": "user", "content": "see"}
    chats.write_text(json.dumps([{"mapping": {"a": {"message": message}}}, 5]))
    empty.touch()
    result = cli("history", "import", "--json", str(chats), str(empty))
    assert result.returncode == 2
    good, bad = map(json.loads, result.stdout.splitlines())
    assert (good["file"], good["conversations"], good["messages"], good["left_out"]) == (str(chats), 1, 1, 1)
    assert bad == {"file": str(empty), "error": f"Cannot import {empty}: the file is empty."}


def test_import_counts_conversations_that_are_left_out(cli: Cli, tmp_path: Path) -> None:
    chats = tmp_path / "chats.json"
    chats.write_text(json.dumps([{"mapping": {"a": {"message": {"author": "user", "content": "see"}}}}, 5, None]))
    result = cli("history", "import", str(chats))
    assert result.returncode == 0
    assert result.stdout.endswith("already in the database; 2 conversations left out\n")
    assert "Conversation 2 was left out: it is an integer, not an object." in result.stderr


def test_list_says_on_a_terminal_that_it_is_incomplete(
    ids: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    history(["list", "--limit", "1"], standalone_mode=False)
    assert capsys.readouterr().err == "edgechat: 1 of 3 conversations; --limit and --offset show more.\n"
    history(["list", "--limit", "1", "--offset", "2"], standalone_mode=False)
    history(["list"], standalone_mode=False)
    assert capsys.readouterr().err == ""
    assert ids


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "zzz"], 2, "No conversation"), (["show", ""], 2, "ID is empty"),
        (["rename", "zzz", "x"], 2, "No conv"),
        (["export"], 2, "Give conversation IDs"), (["export", "--all", "--format", "md"], 2, "holds one conversation"),
        (["export", "0", "-o", "/nowhere/x.md"], 4, "Cannot write"), (["import", "/nowhere"], 2, "Cannot read"),
        (["import", "/dev/null"], 2, "not a regular file"), (["delete", "zzz", "--yes"], 2, "No conversation"),
        (["search"], 2, "Missing argument"),
    ],
)  # fmt: skip
def test_errors_are_one_clear_sentence(cli: Cli, ids: list[str], arguments: list[str], code: int, message: str) -> None:
    result = cli("history", *arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert ids


def test_output_encoding_that_lacks_a_character_prints_a_question_mark(cli: Cli, ids: list[str]) -> None:
    store = open_store()
    message = Message(id=new_id(), role="user", text="Long \u2014 dash", created_at_ms=2000)
    store.append(Conversation(id="d" * 32, title="Dash", created_at_ms=2000), [message])
    store.close()
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    for arguments in (["show", "d"], ["export", "d"]):
        result = cli("history", *arguments, encoding="latin-1", env=env)
        assert (result.returncode, "Long ? dash" in result.stdout) == (0, True), result
    result = cli("history", "show", "d", "--json", encoding="latin-1", env=env)
    assert json.loads(result.stdout)["messages"][0]["text"] == "Long \u2014 dash"  # JSON can escape the character
    assert ids


def test_path_and_recover_with_an_intact_database(cli: Cli, ids: list[str]) -> None:
    assert Path(cli("history", "path").stdout.strip()).exists()
    assert Path(json.loads(cli("history", "path", "--json").stdout)["path"]).exists()
    assert "nothing to recover" in cli("history", "recover").stdout
    assert ids


def test_ask_requires_one_existing_conversation(cli: Cli) -> None:
    assert "cannot be used together" in cli("ask", "x", "-c", "--conversation", "y").stderr
    assert "no conversation to continue" in cli("ask", "x", "-c").stderr
    assert "No conversation has the ID 'y'" in cli("ask", "x", "--conversation", "y").stderr


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes exist on POSIX only")
def test_export_writes_to_pipes_and_keeps_devices(tmp_path: Path) -> None:
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    write_private(pipe, "words\n")
    reader.join()
    assert received == ["words\n"]
    assert pipe.is_fifo()
    link, target = tmp_path / "link", tmp_path / "target"
    target.write_text("old")
    link.symlink_to(target)
    write_private(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    if Path("/dev/full").is_char_device():
        with pytest.raises(StoreError, match="No space left"):
            write_private(Path("/dev/full"), "message")
        assert Path("/dev/full").is_char_device()


def test_export_reports_the_file_as_json(cli: Cli, ids: list[str], tmp_path: Path) -> None:
    done = json.loads(cli("history", "export", ids[0], "--json", "-o", str(tmp_path / "a.html")).stdout)
    assert done == {"file": str(tmp_path / "a.html"), "format": "html", "conversations": [ids[0]]}
    assert json.loads(cli("history", "export", ids[0], "--json").stdout)["format"] == "edgechat"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rename", "0", " \n "], "The title is empty"),
        (["mark", "0", "--tag", ""], "A tag is one word"),
        (["mark", "0", "--tag", "b c"], "A tag is one word"),
        (["mark", "0"], "Nothing to change"),
        (["search", ' "'], "The query is empty"),
        (["show", "nope"], "No conversation has the ID 'nope'"),
        (["export", "0", "--all"], "not both"),
    ],
)
def test_invalid_arguments_are_reported(cli: Cli, ids: list[str], arguments: list[str], message: str) -> None:
    result = cli("history", *arguments)
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr


def test_export_is_identical_in_file_and_pipe(cli: Cli, ids: list[str], tmp_path: Path) -> None:
    cli("history", "export", ids[2], "-o", str(tmp_path / "a.md"))
    assert cli("history", "export", ids[2]).stdout == (tmp_path / "a.md").read_text()
    assert "\x1b" in (tmp_path / "a.md").read_text()


def test_html_page_is_not_imported(cli: Cli, ids: list[str], tmp_path: Path) -> None:
    page = str(tmp_path / "a.html")
    cli("history", "export", ids[0], "-o", page)
    result = cli("history", "import", page)
    assert (result.returncode, "HTML pages cannot be imported" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"], ["search", "rivers"], ["show", "000"], ["export", "000"], ["rename", "000", "New"],
        ["mark", "000", "--pin"], ["delete", "000", "--yes"],
    ],
)  # fmt: skip
def test_each_command_opens_the_store_once_and_closes_it(
    ids: list[str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[SqliteStore] = []

    def record_store(**options: Any) -> SqliteStore:
        opened.append(open_store(**options))
        return opened[-1]

    monkeypatch.setattr("edgechat.store.open_store", record_store)
    result = CliRunner().invoke(history, arguments, catch_exceptions=False)
    assert (result.exit_code, len(ids)) == (0, 3)
    (store,) = opened
    with pytest.raises(StoreError):
        store.list_conversations()


def test_show_takes_linear_time() -> None:
    assert takes_linear_time(prepare_show)


def prepare_show(n_messages: int) -> Callable[[], object]:
    """Save a conversation in one line, and return a function that shows it."""
    ids = [new_id() for _ in range(n_messages)]
    messages = [
        Message(id=id_, parent_id=parent_id, role="user") for id_, parent_id in zip(ids, [None, *ids], strict=False)
    ]
    conversation = Conversation(id=new_id())
    store = open_store()
    store.append(conversation, messages)
    store.close()

    def show() -> None:
        result = CliRunner().invoke(history, ["show", conversation.id])
        assert (result.exit_code, result.output.count("## ")) == (0, n_messages)

    return show


@pytest.mark.slow
def test_export_overwrites_only_with_force_and_refuses_unknown_suffixes(
    cli: Cli, ids: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "talk.md"
    file.write_text("mine")
    refused = cli("history", "export", ids[0], "-o", str(file))
    assert (refused.returncode, file.read_text()) == (2, "mine")
    assert "talk.md exists already. Choose another file name, or add --force" in refused.stderr
    assert cli("history", "export", ids[0], "-o", str(file), "--force").returncode == 0
    assert "about rivers" in file.read_text()
    refused = cli("history", "export", ids[0], "-o", str(tmp_path / "x.pdf"))
    assert (refused.returncode, (tmp_path / "x.pdf").exists()) == (2, False)
    assert "must end in .md, .html or .json, or add --format" in refused.stderr
    for name, options in (("x.pdf", ["--format", "html"]), ("x.txt", []), ("no-suffix", [])):
        assert cli("history", "export", ids[0], "-o", str(tmp_path / name), *options).returncode == 0


def test_empty_results_are_reported_on_standard_error(cli: Cli, ids: list[str]) -> None:
    assert len(ids) == 3
    result = cli("history", "search", "zzz")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "edgechat: No message or title contains zzz.\n"
    assert (cli("history", "search", "zzz", "--json").stdout, cli("history", "list", "--tag", "no").stderr) == (
        "[]\n", "edgechat: No conversations match.\n",
    )  # fmt: skip


def test_empty_history_is_reported(cli: Cli) -> None:
    assert cli("history", "list").stderr == "edgechat: No conversations yet.\n"
