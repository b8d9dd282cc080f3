"""`edgechat launch` with an agent that is a script: it sends one real request to the server that it was given."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgechat.launch.agents import AGENTS
from tests.conftest import Cli, edgechat_command
from tests.serve.client import ServerProcess
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the agent is a script with a #! line")

# Sends a request as the agent would, prints the reply, and then does what its arguments say.
SCRIPT = """
import json, os, signal, sys, urllib.request

NAME = os.path.basename(sys.argv[0])
if NAME == "claude":
    url, key, model = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", os.environ["ANTHROPIC_AUTH_TOKEN"], os.environ[
        "ANTHROPIC_MODEL"]
else:
    url, key = os.environ["AIDER_OPENAI_API_BASE"] + "/chat/completions", os.environ["AIDER_OPENAI_API_KEY"]
    model = os.environ["AIDER_MODEL"].removeprefix("openai/")
body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hi."}]}
request = urllib.request.Request(url, json.dumps(body).encode(), {"Authorization": "Bearer " + key})
reply = json.load(urllib.request.urlopen(request))
parents = open(f"/proc/{os.getppid()}/cmdline").read() if os.path.exists("/proc") else ""
print(json.dumps({"reply": reply, "arguments": sys.argv[1:], "url": url, "key": key, "key_in_parent": key in parents}),
      flush=True)
if "wait" in sys.argv:
    signal.pause()
sys.exit(7 if "fail" in sys.argv else 0)
"""

MakeAgent = Callable[[str], None]


@pytest.fixture
def make_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeAgent:
    """Return a function that installs the script under a name in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))

    def make(name: str) -> None:
        program = folder / name
        program.write_text(f"#!{sys.executable}\n{textwrap.dedent(SCRIPT)}")
        program.chmod(0o755)

    return make


@pytest.fixture
def launch(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts `edgechat launch` in a process group of its own, and waits for the script."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            edgechat_command("launch", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline(), process.communicate()
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # an agent can outlive its launch
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def find_servers(home: Path) -> list[int]:
    """Return the process IDs of the servers of this test."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"--stop-on-stdin-eof" in arguments and str(home).encode() in environment:
            pids.append(int(folder.name))
    return pids


@pytest.mark.parametrize("name", ["aider", "claude"])
def test_agent_gets_a_reply_of_the_server_and_its_exit_code_is_kept(
    cli: Cli, make_agent: MakeAgent, home: Path, name: str
) -> None:
    make_agent(name)
    result = cli("launch", name, "-m", "starter", "--ctx", "2048", "--force", "--", "fail", "-x")
    assert result.returncode == 7, result.stderr
    output = json.loads(result.stdout)
    assert output["arguments"][-2:] == ["fail", "-x"]
    assert output["reply"]["model"] == "starter"
    assert not output["key_in_parent"]
    assert "the 4,096 tokens" in result.stderr or "the 24,576 tokens" in result.stderr
    assert find_servers(home) == []
    assert list((home.parent / "tmp").iterdir()) == []
    assert list((home / "cache" / "launch").iterdir()) == []


def test_short_context_is_refused_before_the_model_is_loaded(cli: Cli, make_agent: MakeAgent, home: Path) -> None:
    make_agent("claude")
    result = cli("launch", "claude", "-m", "starter")
    assert result.returncode == 5
    assert "needs a context of at least" in result.stderr
    assert not (home / "cache" / "launch").exists()


def test_model_that_cannot_be_loaded_is_one_error_with_the_log(cli: Cli, make_agent: MakeAgent, home: Path) -> None:
    make_agent("aider")
    result = cli("launch", "aider", "-m", "starter", "--budget", "1MB")
    assert result.returncode == 5
    assert result.stderr.count("\n") == 1
    [log] = (home / "cache" / "launch").iterdir()
    assert str(log) in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads the processes from /proc")
def test_interrupt_reaches_the_agent_and_not_the_server(
    launch: Callable[..., subprocess.Popen[str]], make_agent: MakeAgent, home: Path
) -> None:
    make_agent("aider")
    process = launch("aider", "-m", "starter", "--", "wait")
    [server] = find_servers(home)
    assert os.getpgid(server) != process.pid
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does for Ctrl-C
    assert process.wait(120) == 130
    assert find_servers(home) == []
    assert list((home.parent / "tmp").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads the processes from /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_server_ends_when_the_launch_is_killed(
    launch: Callable[..., subprocess.Popen[str]], make_agent: MakeAgent, home: Path, number: signal.Signals
) -> None:
    make_agent("aider")
    process = launch("aider", "-m", "starter", "--", "wait")
    assert len(find_servers(home)) == 1
    process.send_signal(number)
    code = process.wait(120)
    assert code == (-9 if number == signal.SIGKILL else 128 + number)
    until(lambda: not find_servers(home))
    if number != signal.SIGKILL:
        assert list((home.parent / "tmp").iterdir()) == []


def test_running_server_is_used_and_stays(
    cli: Cli, make_agent: MakeAgent, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_agent("aider")
    server = ServerProcess(home, "-m", "starter", EDGECHAT_API_KEY="own-key")
    monkeypatch.setenv("EDGECHAT_API_KEY", "own-key")
    try:
        result = cli("launch", "aider", "--server", server.url)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["url"].startswith(server.url.removesuffix("/"))
        monkeypatch.setenv("EDGECHAT_API_KEY", "wrong")
        refused = cli("launch", "aider", "--server", server.url)
        assert refused.returncode == 2
        assert "EDGECHAT_API_KEY" in refused.stderr
    finally:
        server.close()


def test_running_server_without_a_key_gets_one_that_it_ignores(cli: Cli, make_agent: MakeAgent, home: Path) -> None:
    server = ServerProcess(home, "-m", "starter")
    try:
        for name in ("aider", "claude"):
            make_agent(name)
            result = cli("launch", name, "--server", server.url, "--force")
            assert result.returncode == 0, result.stderr
            output = json.loads(result.stdout)
            assert (output["key"], output["reply"]["model"]) == ("none", "starter")
    finally:
        server.close()


def test_print_shows_the_settings_of_all_agents_and_starts_nothing(cli: Cli, home: Path) -> None:
    result = cli("launch", "--print", "-m", "starter", "--json")
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout)
    assert (output["model"], output["n_ctx"]) == ("starter", 8192)
    assert [agent["name"] for agent in output["agents"]] == sorted(AGENTS)
    assert {agent["name"] for agent in output["agents"] if agent["fits"]} == {"aider", "crush", "goose"}
    assert all("http://127.0.0.1:PORT" in json.dumps(agent) for agent in output["agents"])
    assert not (home / "cache" / "launch").exists()


def test_print_is_a_script_for_a_shell(cli: Cli) -> None:
    result = cli("launch", "codex", "--print", "-m", "starter", "--ctx", "4096", "--", "exec", "say hi")
    assert result.returncode == 0, result.stderr
    last_line = result.stdout.splitlines()[-1]
    assert shlex.split(last_line)[-2:] == ["exec", "say hi"]
    assert "model_context_window=4096" in shlex.split(last_line)
    assert "export EDGECHAT_API_KEY=KEY" in result.stdout


def test_unknown_model_is_an_error_before_anything_starts(cli: Cli, make_agent: MakeAgent, home: Path) -> None:
    make_agent("aider")
    result = cli("launch", "aider", "-m", "no-such-model")
    assert result.returncode == 3
    assert not (home / "cache" / "launch").exists()


def test_server_stops_at_the_end_of_its_standard_input(home: Path) -> None:
    process = subprocess.Popen(
        edgechat_command("serve", "--port", "0", "--json", "--stop-on-stdin-eof", "-m", "starter"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        url = json.loads(process.stdout.readline())["url"].replace("/v1", "/health")
        assert urllib.request.urlopen(url).status == 200
        process.stdin.write("input is ignored")
        process.stdin.close()
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_server_stops_while_it_loads_the_model(home: Path) -> None:
    result = subprocess.run(
        edgechat_command("serve", "--port", "0", "--json", "--stop-on-stdin-eof", "-m", "starter"), check=False,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
    )  # fmt: skip
    assert result.returncode in {0, 143}
