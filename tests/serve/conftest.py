"""Fixtures: servers with the starter model or tiny models for all tests, and servers with other options."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.models import THINKING_TEMPLATE, write_tiny_bert, write_tiny_llama
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


@pytest.fixture(scope="session")
def embedding_server(server_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Return a server with the starter model and a tiny embedding model."""
    model = write_tiny_bert(tmp_path_factory.mktemp("model") / "tiny-bert.gguf")
    server = ServerProcess(server_home, "-m", "starter", "-m", str(model), "--ctx", "2048")
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a chat model with random weights."""
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=1024)


@pytest.fixture(scope="session")
def tiny_server(server_home: Path, tiny_model: Path) -> Iterator[ServerProcess]:
    """Return a server with a chat model, an embedding model and a reranker, all with random weights."""
    models = (
        tiny_model, write_tiny_bert(tiny_model.parent / "tiny-bert.gguf"),
        write_tiny_bert(tiny_model.parent / "reranker.gguf", is_reranker=True),
    )  # fmt: skip
    server = ServerProcess(server_home, *(part for model in models for part in ("-m", str(model))))
    yield server
    server.close()


@pytest.fixture(scope="session")
def thinking_server(server_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Return a server with a model that thinks for ever."""
    model = write_tiny_llama(tmp_path_factory.mktemp("model") / "thinker.gguf", template=THINKING_TEMPLATE, seed=3)
    server = ServerProcess(server_home, "-m", str(model), "--ctx", "256")
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
