"""Model names in requests of all dialects: aliases, names that are not served, and --strict-models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models import write_tiny_bert
from tests.serve.client import ServerProcess, user

SHORT = {"messages": user("Hi"), "max_tokens": 2}


@pytest.fixture(scope="module")
def both(server_home: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Return a server with one chat model and one embedding model, each with an alias."""
    model = write_tiny_bert(tmp_path_factory.mktemp("model") / "tiny-bert.gguf")
    aliases = ("--alias", "gpt-4o", "--alias", "tiny-bert=ada")
    server = ServerProcess(server_home, "-m", str(tiny_model), "-m", str(model), *aliases)
    yield server
    server.close()


@pytest.fixture(scope="module")
def strict(server_home: Any, tiny_model: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(server_home, "-m", str(tiny_model), "--strict-models", "--alias", "small")
    yield server
    server.close()


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", SHORT, "model"), ("/v1/completions", {"prompt": "a", "max_tokens": 1}, "model"),
        ("/v1/messages", SHORT, "model"),
        ("/api/chat", {"messages": user("Hi"), "stream": False, "options": {"num_predict": 1}}, "model"),
        ("/api/generate", {"prompt": "Hi", "stream": False, "options": {"num_predict": 1}}, "model"),
    ],
)  # fmt: skip
def test_response_has_the_alias_or_the_real_name(
    both: ServerProcess, path: str, body: dict[str, Any], field: str
) -> None:
    for name, response_name in (("gpt-4o", "gpt-4o"), ("claude-9", "tiny"), ("tiny", "tiny")):
        status, answer, _ = both.request(path, body | {"model": name})
        assert status == 200, answer
        assert answer[field] == response_name


def test_embeddings_need_no_known_name(both: ServerProcess) -> None:
    for name, response_name in (("text-embedding-3-small", "tiny-bert"), ("ada", "ada"), (None, "tiny-bert")):
        for path in ("/v1/embeddings", "/api/embed"):
            status, answer, _ = both.request(path, {"model": name, "input": "hello"})
            assert (status, answer["model"]) == (200, response_name)


def test_all_lists_have_the_aliases(both: ServerProcess) -> None:
    names = ["tiny", "tiny-bert", "gpt-4o", "ada"]
    listed = both.request("/v1/models")[1]["data"]
    assert [(model["id"], model["root"]) for model in listed] == list(zip(names, names[:2] * 2, strict=True))
    headers = {"anthropic-version": "2023-06-01"}
    assert [model["id"] for model in both.request("/v1/models", headers=headers)[1]["data"]] == names
    assert [model["name"] for model in both.request("/api/tags")[1]["models"]] == [f"{name}:latest" for name in names]
    assert both.request("/v1/models/gpt-4o")[1]["id"] == "gpt-4o"
    assert both.request("/api/show", {"model": "gpt-4o:latest"})[0] == 200


def test_a_description_is_never_that_of_another_model(both: ServerProcess) -> None:
    assert both.request("/v1/models/gpt-9")[0] == 404
    assert both.request("/api/show", {"model": "gpt-9"})[0] == 404
    assert both.request("/api/pull", {"model": "gpt-9"})[0] == 404


def test_strict_models_refuse_other_names_and_list_theirs(strict: ServerProcess) -> None:
    for path, body in (
        ("/v1/chat/completions", SHORT), ("/v1/messages", SHORT), ("/api/chat", SHORT),
        ("/v1/embeddings", {"input": "a"}),
    ):  # fmt: skip
        status, answer, _ = strict.request(path, body | {"model": "gpt-9"})
        assert status == 404
        error = answer["error"]
        assert "tiny, small" in (error if isinstance(error, str) else error["message"])
    assert strict.request("/v1/chat/completions", SHORT | {"model": "small"})[1]["model"] == "small"
    assert strict.request("/api/chat", SHORT | {"model": "SMALL:latest", "stream": False})[0] == 200
