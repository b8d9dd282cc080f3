"""Program of an agent: where it is installed, and its run with the settings of one launch."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from edgechat import files, signals
from edgechat.errors import AgentNotFoundError, EdgechatError, format_reason
from edgechat.launch.agent import Agent, AgentSettings
from edgechat.paths import expand_user

_TERMINATE_TIMEOUT_S: Final = 5.0
_PROXY_VARIABLES: Final = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
# Addresses that agents must not request from a proxy.
_LOCAL_HOSTS: Final = "127.0.0.1,localhost,::1"


def find_program(agent: Agent) -> str | None:
    """Return the path of the agent's program in PATH or in the folders of its installer; None if it is missing.

    On Windows, this also finds the `.cmd` files that npm installs.
    """
    folders = [str(expand_user(folder)) for folder in agent.extra_folders]
    return shutil.which(agent.name) or shutil.which(agent.name, path=os.pathsep.join(folders))


def require_program(agent: Agent) -> str:
    """Return the path of the agent's program. Raises AgentNotFoundError."""
    program = find_program(agent)
    if program is None:
        places = " or ".join(["in PATH", *agent.extra_folders])
        raise AgentNotFoundError(
            f"{agent.title} is not installed: there is no program {agent.name!r} {places}. Install it with "
            f"{agent.install_hint}."
        )
    return program


def make_environment(settings: AgentSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of an environment with the changes of the settings. Local addresses bypass a proxy.

    `NO_PROXY=*` stays as it is, because curl and Python see the wildcard only if it stands alone.
    """
    changed = {name: value for name, value in environment.items() if name not in settings.removed_variables}
    changed |= settings.variables
    if any(changed.get(name) for name in _PROXY_VARIABLES):
        for name in ("NO_PROXY", "no_proxy"):
            if (hosts := changed.get(name, "").strip()) != "*":
                changed[name] = ",".join(filter(None, [hosts, _LOCAL_HOSTS]))
    return changed


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Create a temporary folder for the files of an agent that only this user can open; delete it after the block."""
    with tempfile.TemporaryDirectory(prefix="edgechat-launch-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run_program(program: str, settings: AgentSettings, folder: Path, arguments: Sequence[str]) -> int:
    """Write the settings' files, run the agent in the foreground, and return its exit code.

    Ctrl-C reaches the agent, which decides what it means; this process ignores it. If a signal ends this process, the
    agent is ended, too. Call this only in the main thread. Raises EdgechatError if the program cannot be started.
    """
    for name, text in settings.files.items():
        with files.open_private(folder / name) as file:  # a file can contain the API key
            file.write(text.encode())
    command = [program, *settings.arguments, *arguments]
    # A handler, because programs inherit signals that are ignored, but not handlers.
    with signals.handle_signals((signal.SIGINT,), lambda number, frame: None):
        try:
            process = subprocess.Popen(command, env=make_environment(settings, os.environ))
        except OSError as error:
            raise EdgechatError(f"Cannot start {program}: {format_reason(error)}.") from error
        try:
            code = process.wait()
        finally:
            _end(process)
    return signals.exit_code(-code) if code < 0 else code


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the agent if it is still running."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_TERMINATE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
