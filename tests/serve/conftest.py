"""Fixtures: a server with the starter model for all tests, and servers with other options."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.serve.client import ServerProcess

Start = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory, warm_verdicts: Path) -> Path:
    home = tmp_path_factory.mktemp("server")
    (home / "cache").mkdir()
    shutil.copy(warm_verdicts, home / "cache")
    return home


@pytest.fixture(scope="session")
def server(server_home: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(server_home, "-m", "starter", "--ctx", "2048")
    yield server
    server.close()


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    servers: list[ServerProcess] = []

    def start_server(
        *arguments: str, constants: Mapping[str, float] | None = None, **environment: str
    ) -> ServerProcess:
        servers.append(ServerProcess(home, *arguments, constants=constants, **environment))
        return servers[-1]

    yield start_server
    for server in servers:
        server.close()
