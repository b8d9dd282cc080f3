"""`edgechat remotes` and `-m REMOTE/MODEL`, with a scripted server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat import config, paths
from edgechat.cli.options import complete_model
from edgechat.cli.remotes import complete_remote
from edgechat.cli.session_factory import prepare_session
from edgechat.errors import ModelFileError
from tests.conftest import Cli
from tests.hub import local_hub
from tests.remote_server import KEY, Exchange, RemoteServer, remote_server, reply


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with remote_server() as server:
        yield server


def test_remote_is_added_tested_listed_and_removed(home: Path, cli: Cli, server: RemoteServer) -> None:
    added = cli("remotes", "add", "box", server.url.removesuffix("/v1"), "--model", "small")
    assert added.stdout == f"Added box: {server.url}\n"
    assert not server.exchanges
    assert cli("remotes", "add", "box", server.url).returncode == 2
    tested = cli("remotes", "test", "box")
    assert tested.returncode == 0, tested.stderr
    lines = tested.stdout.splitlines()
    assert lines[0].startswith("2 models in ")
    assert lines[1:3] == ["  box/small", "  box/big, context of 4,096 tokens"]
    assert lines[3].startswith("box/small replied 'Hello there.': first token after ")
    assert cli("remotes", "list").stdout == f"box          {server.url}, no key, default model small, 2 models\n"
    [listed] = json.loads(cli("remotes", "list", "--json").stdout)
    assert listed["name"] == "box"
    assert [model["id"] for model in listed["models"]] == ["small", "big"]
    probed = json.loads(cli("remotes", "test", "box", "--model", "big", "--json").stdout)
    assert probed["reply"]["model"] == "box/big"
    assert probed["reply"]["usage"]["completion_tokens"] == 2
    n_requests = len(server.exchanges)
    assert complete_model(None, None, "box/") == ["box/small", "box/big"]  # type: ignore[arg-type]
    assert complete_remote(None, None, "b") == ["box"]  # type: ignore[arg-type]
    assert cli("remotes", "remove", "box").stdout == f"Removed box: {server.url}\n"
    assert len(server.exchanges) == n_requests
    assert json.loads(cli("remotes", "list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["add", "Box", "http://box"], 2, "must have a name of 1 to 32 characters"),
        (["add", "box", "box:8080"], 2, "must have a url that begins with"),
        (["add", "box", "http://box", "--key-env", "sk-secret"], 2, "and not contain the key itself"),
        (["add", "box", "http://box", "--key-env", "A", "--keyring"], 2, "Give --key-env or --keyring, not both."),
        (["add", "starter", "http://box"], 2, "must have another name"),
        (["test", "nowhere"], 2, "There is no remote nowhere. Add one with"),
        (["remove", "nowhere"], 2, "There is no remote nowhere."),
    ],
)
def test_mistake_is_one_sentence(arguments: list[str], code: int, words: str, home: Path, cli: Cli) -> None:
    run = cli("remotes", *arguments)
    assert run.returncode == code
    assert words in run.stderr
    assert "secret" not in run.stderr
    assert not paths.config_file().exists()


def test_server_that_refuses_is_exit_code_6(
    home: Path, cli: Cli, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("remotes", "add", "box", server.url, "--key-env", "BOX_KEY")
    run = cli("remotes", "test", "box")
    assert (run.returncode, run.stdout) == (2, ""), "nothing was sent"
    assert "The API key of the remote box is not in BOX_KEY" in run.stderr
    run = cli("ask", "-m", "box", "Hi", "--no-stdin")
    assert (run.returncode, "The remote box has no default model" in run.stderr) == (2, True)
    assert not server.exchanges
    monkeypatch.setenv("BOX_KEY", KEY)
    server.required_key = "another"
    run = cli("remotes", "test", "box")
    assert run.returncode == 6
    assert "refuses the API key" in run.stderr
    assert KEY not in run.stderr + run.stdout


def test_ask_uses_a_remote_model(home: Path, cli: Cli, server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOX_KEY", KEY)
    server.required_key = KEY
    cli("remotes", "add", "box", server.url, "--key-env", "BOX_KEY")
    run = cli("ask", "-m", "box/big", "Hi", "--no-stdin", "--ctx", "512", "--thinking", "5s")
    assert (run.returncode, run.stdout) == (0, "Hello there.\n")
    assert "edgechat: --ctx and --thinking 5s have no effect: the server of a remote model decides.\n" in run.stderr
    assert f"Model: box/big (remote, 127.0.0.1:{server.port})" in run.stderr
    data = json.loads(cli("ask", "-m", "box/big", "Again", "--json", "--no-stdin", "-c").stdout)
    assert (data["text"], data["model"], data["stats"]["prompt_tokens"]) == ("Hello there.", "box/big", 10)
    assert "load_s" not in data["stats"]
    assert [m["content"] for m in server.chats[1].body["messages"]] == ["Hi", "Hello there.", "Again"]
    exported = cli("history", "export", data["conversation_id"], "--format", "json").stdout
    assert "box/big" in exported
    assert KEY not in exported
    for file in home.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), f"the key is in {file}"


def test_schema_is_sent_to_the_server(home: Path, cli: Cli, server: RemoteServer, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    cli("remotes", "add", "box", server.url)
    server.answers = [reply('{"a": 1}')]
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}}')
    run = cli("ask", "-m", "box/big", "Hi", "--no-stdin", "--schema", str(schema))
    assert run.stdout == '{"a": 1}\n'
    assert server.chats[0].body["response_format"]["json_schema"]["schema"] == json.loads(schema.read_text())
    server.answers = [reply("No JSON")]
    run = cli("ask", "-m", "box/big", "Hi", "--no-stdin", "--schema", str(schema))
    assert run.returncode != 0
    assert "does not support JSON schemas" in run.stderr


def test_broken_reply_is_saved_and_continued(home: Path, cli: Cli, server: RemoteServer) -> None:
    def cut(exchange: Exchange) -> None:
        exchange.chunk("Half of the")

    cli("remotes", "add", "box", server.url, "--model", "big")
    server.answers = [cut, reply(" reply.")]
    run = cli("ask", "-m", "box", "Hi", "--no-stdin")
    assert (run.returncode, run.stdout) == (6, "Half of the\n")
    assert "closed the connection before the end of the reply" in run.stderr
    run = cli("--plain", "-c", input="/continue\n")
    assert " reply." in run.stdout, run.stderr
    assert server.chats[1].body["messages"][-1] == {"role": "assistant", "content": "Half of the"}


def test_other_commands_use_a_remote_model(home: Path, cli: Cli, server: RemoteServer) -> None:
    pytest.importorskip("llguidance")
    cli("remotes", "add", "box", server.url)
    server.answers = [reply("The file is missing."), reply('{"command": "ls", "explanation": "Lists the files."}')]
    assert cli("explain", "-m", "box/big", input="ls: cannot access x").stdout == "The file is missing.\n"
    run = cli("do", "-m", "box/big", "--print", "list the files")
    assert run.stdout == "ls\n", run.stderr
    assert server.chats[1].body["chat_template_kwargs"] == {"enable_thinking": False}


def test_server_refuses_a_remote_model(home: Path, cli: Cli, server: RemoteServer) -> None:
    pytest.importorskip("uvicorn")
    cli("remotes", "add", "box", server.url)
    run = cli("serve", "-m", "box/big")
    assert run.returncode == 2
    assert "box/big is a remote model, but this command needs a model on this machine." in run.stderr
    run = cli("serve", "-m", "route", "--port", "0")
    assert run.returncode == 2
    assert "route is a route between two models, but this command needs a model on this machine." in run.stderr
    assert not server.exchanges


def test_persona_and_setting_choose_a_remote_model(
    home: Path, cli: Cli, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("remotes", "add", "box", server.url)
    paths.personas_dir().mkdir(parents=True)
    (paths.personas_dir() / "far.toml").write_text('model = "box/small"\nsystem_prompt = "Be far."\n')
    assert cli("ask", "--persona", "far", "Hi", "--no-stdin").stdout == "Hello there.\n"
    assert server.chats[0].body["model"] == "small"
    assert server.chats[0].body["messages"][0] == {"role": "system", "content": "Be far."}
    monkeypatch.setenv("EDGECHAT_MODEL", "box/big")
    assert cli("ask", "Hi", "--no-stdin").returncode == 0
    assert server.chats[1].body["model"] == "big"
    assert cli("config", "validate").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "-m", "box/llama", "--no-measure"],
        ["models", "info", "box/llama"],
        ["models", "pull", "box/llama"],
        ["bench", "routing", "--small", "box/llama", "--large", "starter"],
    ],
    ids=["plan", "info", "pull", "bench"],
)
def test_hub_learns_no_name_of_a_remote(
    arguments: list[str], home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        cli("remotes", "add", "box", "http://127.0.0.1:9")
        run = cli(*arguments)
        assert run.returncode in {2, 3}
        assert "box/llama is a model of the remote box, and this command needs a model on this machine" in run.stderr
        assert "models pull" not in run.stderr
        assert not hub.requests


def test_conversation_with_a_removed_remote_names_it(
    home: Path, cli: Cli, server: RemoteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli("remotes", "add", "box", server.url)
    server.models = [{"id": "/models/x.gguf"}]
    assert cli("ask", "-m", "box//models/x.gguf", "Hi", "--no-stdin").returncode == 0
    cli("remotes", "remove", "box")
    run = cli("ask", "-c", "More", "--no-stdin")
    assert run.returncode == 3
    assert "There is no remote box, and no file box//models/x.gguf. Add the remote with" in run.stderr
    session = prepare_session(continue_last=True, allow_missing_model=True)[0]()  # as the chat does
    for _ in range(2):  # at the start of the chat, and when a message is sent
        with pytest.raises(ModelFileError, match="There is no remote box"):
            session.open()
    session.close()
    run = cli("ask", "-m", "nosuch/smol.gguf", "Hi", "--no-stdin")
    assert (run.returncode, "There is no remote nosuch" in run.stderr) == (3, True)
    (tmp_path / "nosuch").mkdir()
    run = cli("ask", "-m", "nosuch/smol.gguf", "Hi", "--no-stdin")
    assert "nosuch/smol.gguf does not exist. If nosuch is a remote" in run.stderr


def test_remove_names_the_settings_that_use_the_remote(home: Path, cli: Cli, server: RemoteServer) -> None:
    cli("remotes", "add", "box", server.url)
    config.save("model", "box/big")
    config.save("route", {"small": "starter", "large": "box/big"})
    run = cli("remotes", "remove", "box")
    assert "model and route.large in the settings still use box. `edgechat config edit` changes this." in run.stderr
    cli("remotes", "add", "shop", server.url)
    assert cli("remotes", "remove", "shop").stderr == ""


def test_list_says_that_the_keyring_cannot_be_read(
    home: Path, cli: Cli, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    cli("remotes", "add", "box", server.url, "--keyring")
    assert "key in the keyring, but the package keyring is not installed" in cli("remotes", "list").stdout


@pytest.mark.parametrize("name", ["box/big\nX", "box/\x1b[31m", "starter\n", "box/a\u2028b"])
def test_name_with_control_characters_is_refused(name: str, home: Path, cli: Cli, server: RemoteServer) -> None:
    cli("remotes", "add", "box", server.url)
    run = cli("ask", "-m", name, "Hi", "--no-stdin")
    assert (run.returncode, "has control characters" in run.stderr) == (2, True)
    assert not server.exchanges


def test_ephemeral_question_to_a_route_of_remotes_names_the_option(home: Path, cli: Cli, server: RemoteServer) -> None:
    cli("remotes", "add", "box", server.url)
    config.save("route", {"small": "box/small", "large": "box/big"})
    run = cli("ask", "--ephemeral", "-m", "route", "Hi", "--no-stdin")
    assert "Choose a model for it with -m NAME" in run.stderr
    assert not server.exchanges


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('large = "starter"', "must be a table such as [route]"),
        ('small = "starter"\nlarge = "starter"', "must name two different models"),
        ('small = "route"\nlarge = "starter"', "not the route itself"),
        ('small = "a"\nlarge = "b"\nagree = "yes"', "agree"),
        ('small = "a"\nlarge = "b"\nmin_logprob = 3.0', "min_logprob between -100 and 0, not 3"),
        ('small = "a"\nlarge = "b"\n[[route.rules]]\nuse = "large"', "must have a condition in rule 1"),
    ],
)
def test_mistake_in_the_route_is_named(table: str, words: str, home: Path, cli: Cli) -> None:
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text(f'model = "route"\n[route]\n{table}\n')
    for arguments in (["ask", "Hi", "--no-stdin"], ["--plain"]):
        run = cli(*arguments)
        assert run.returncode == 2
        assert words in run.stderr.splitlines()[-1]
        assert "There is no route" not in run.stderr
    lines = cli("config", "validate").stderr.splitlines()
    assert lines[0] == "edgechat: Problems in the settings:"
    assert len(lines) == 2
    assert words in lines[1]


def test_validate_names_the_side_of_a_missing_model(home: Path, cli: Cli) -> None:
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text('model = "route"\n[route]\nsmall = "starter"\nlarge = "gone-model"\n')
    [_, line] = cli("config", "validate").stderr.splitlines()
    assert f"{paths.config_file()}: route.large: No model with the name 'gone-model'" in line
