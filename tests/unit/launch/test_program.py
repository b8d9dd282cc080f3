"""Programs of agents: search, environment, and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgechat.errors import AgentNotFoundError, EdgechatError
from edgechat.launch.agent import AgentSettings
from edgechat.launch.agents import AGENTS
from edgechat.launch.program import find_program, make_environment, open_folder, require_program, run_program

CLAUDE = AGENTS["claude"]


def make_program(path: Path, body: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def test_program_is_found_in_path_first(user_home: Path) -> None:
    make_program(user_home / ".local" / "bin" / "claude")
    expected = make_program(user_home / "bin" / "claude")
    assert find_program(CLAUDE) == expected


def test_program_is_found_in_the_folder_of_its_installer(user_home: Path) -> None:
    expected = make_program(user_home / ".claude" / "local" / "claude")
    assert require_program(CLAUDE) == expected


def test_missing_program_is_one_sentence_with_exit_code_127(user_home: Path) -> None:
    with pytest.raises(
        AgentNotFoundError, match=r"no program 'claude' in PATH or ~/.local/bin .*npm install"
    ) as raised:
        require_program(CLAUDE)
    assert raised.value.exit_code == 127


def test_environment_has_the_variables_and_lacks_the_removed_ones() -> None:
    settings = AgentSettings({"A": "new"}, ("B",))
    assert make_environment(settings, {"A": "old", "B": "b", "C": "c"}) == {"A": "new", "C": "c"}


def test_local_addresses_bypass_a_proxy() -> None:
    environment = make_environment(AgentSettings(), {"HTTP_PROXY": "http://proxy:1", "NO_PROXY": "intern"})
    assert environment["NO_PROXY"] == "intern,127.0.0.1,localhost,::1"
    assert environment["no_proxy"] == "127.0.0.1,localhost,::1"
    assert "NO_PROXY" not in make_environment(AgentSettings(), {"PATH": "/bin"})


def test_wildcard_for_all_hosts_without_proxy_stays_alone() -> None:
    environment = {"HTTP_PROXY": "http://proxy:1", "NO_PROXY": "*", "no_proxy": " * "}
    assert make_environment(AgentSettings(), environment) == environment


def test_exit_code_arguments_and_files_reach_the_program(tmp_path: Path) -> None:
    body = "import os, sys; text = open(os.environ['FILE']).read(); sys.exit(int(text) + len(sys.argv))"
    program = make_program(tmp_path / "agent", body)
    settings = AgentSettings({"FILE": str(tmp_path / "f")}, arguments=("-a",), files={"f": "40"})
    assert run_program(program, settings, tmp_path, ["b", "c"]) == 44
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_signal_that_ended_the_program_is_part_of_the_exit_code(tmp_path: Path) -> None:
    program = make_program(tmp_path / "agent", f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})")
    assert run_program(program, AgentSettings(), tmp_path, []) == 143


def test_interrupt_ends_the_program_only_by_its_own_decision(tmp_path: Path) -> None:
    """Ctrl-C reaches both processes; the handler of the agent decides."""
    body = (
        "import os, signal, sys\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "sys.exit(3)"
    )
    assert run_program(make_program(tmp_path / "agent", body), AgentSettings(), tmp_path, []) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_program_is_ended_if_the_launch_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class EndedError(Exception):
        pass

    def end(number: int, frame: object) -> None:
        raise EndedError

    wait = subprocess.Popen.wait

    def wait_and_tell(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        (tmp_path / "waits").touch()
        return wait(process, timeout)

    previous = signal.signal(signal.SIGUSR1, end)
    try:
        # The signal must not interrupt the start of the program.
        monkeypatch.setattr(subprocess.Popen, "wait", wait_and_tell)
        body = (
            "import os, signal, time\n"
            f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
            f"while not os.path.exists({str(tmp_path / 'waits')!r}):\n"
            "    time.sleep(0.01)\n"
            "os.kill(os.getppid(), signal.SIGUSR1)\n"
            "signal.pause()"
        )
        with pytest.raises(EndedError):
            run_program(make_program(tmp_path / "agent", body), AgentSettings(), tmp_path, [])
    finally:
        signal.signal(signal.SIGUSR1, previous)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_program_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("")
    with pytest.raises(EdgechatError, match="Cannot start"):
        run_program(str(tmp_path / "agent"), AgentSettings(), tmp_path, [])


def test_temporary_folder_is_private_and_deleted() -> None:
    with open_folder() as folder:
        (folder / "f").write_text("x")
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_agents_are_immutable() -> None:
    with pytest.raises(AttributeError):
        CLAUDE.name = "other"  # type: ignore[misc]
    assert msgspec.structs.replace(CLAUDE, name="other").name == "other"
