"""Servers: one with the starter model for a whole file, and others as they are asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serve.driving import Server

Start = Callable[..., Server]


@pytest.fixture(scope="session")
def served_home(tmp_path_factory: pytest.TempPathFactory, warm_verdicts: Path) -> Path:
    home = tmp_path_factory.mktemp("served")
    (home / "cache").mkdir()
    shutil.copy(warm_verdicts, home / "cache")
    return home


@pytest.fixture(scope="session")
def server(served_home: Path) -> Iterator[Server]:
    server = Server(served_home, "-m", "starter", "--ctx", "2048")
    yield server
    server.close()


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    servers: list[Server] = []

    def make(*arguments: str, **environment: str) -> Server:
        servers.append(Server(home, *arguments, **environment))
        return servers[-1]

    yield make
    for each in servers:
        each.close()
