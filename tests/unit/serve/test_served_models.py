"""Names of the served models, and which of them answers a request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.errors import UsageError
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelKind, ModelQueue
from edgechat.serve.served_models import ServedModels, find_name, parse_aliases


def make_queue(name: str, kind: str = "text") -> Any:
    return SimpleNamespace(name=name, kind=kind, aliases=[])


def test_unknown_name_is_answered_by_the_only_model_of_the_kind() -> None:
    chat, embedder = make_queue("chat"), make_queue("bge", "embedding")
    models = ServedModels([embedder, chat])
    for name in ("gpt-4o", "default", "chat", "CHAT", "chat:latest", None, ""):
        assert models.get(name, "text") is chat
    for name in ("text-embedding-3-small", "bge", None):
        assert models.get(name, "embedding") is embedder
    assert models.get("bge", "text") is embedder  # the endpoint reports that it generates no text
    assert models.get("chat", "embedding") is chat


def test_unknown_name_is_an_error_with_several_models_or_none_of_the_kind() -> None:
    models = ServedModels([make_queue("a"), make_queue("b")])
    kinds: tuple[ModelKind, ...] = ("text", "embedding")
    for kind in kinds:
        with pytest.raises(ApiError, match=r"Model 'gpt-4o' is not served. Available models: a, b\.") as caught:
            models.get("gpt-4o", kind)
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert models.get(None, "embedding") is models.queues[0]


def test_strict_models_have_only_their_names() -> None:
    models = ServedModels([make_queue("a")], {"gpt-4o": "a"}, is_strict=True)
    assert models.get("gpt-4o", "text").name == "a"
    with pytest.raises(ApiError, match="Available models: a, gpt-4o"):
        models.get("gpt-4", "text")


def test_response_has_the_alias_of_the_request_in_any_case() -> None:
    queue: Any = SimpleNamespace(name="starter", aliases=["gpt-4o", "Small"])
    names = ("GPT-4O", "small", "starter", "other", None)
    found = [ModelQueue.choose_response_name(queue, name) for name in names]
    assert found == ["gpt-4o", "Small", "starter", "starter", "starter"]


def test_aliases_are_names_of_their_model() -> None:
    first: Any = make_queue("first")
    second: Any = make_queue("second")
    names = parse_aliases(["gpt-4o,default", "second=small", " second = tiny , mini "], [first, second])
    models = ServedModels([first, second], names)
    assert models.names == ["first", "second", "gpt-4o", "default", "small", "tiny", "mini"]
    assert models.get("Default:latest", "text") is first
    assert models.find_exact("mini") is second
    assert models.queues[1].aliases == ["small", "tiny", "mini"]
    assert models.find_exact("other") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["third=x"], "no model 'third' is served. Served models: first, second."),
        (["second"], "a served model has this name"), (["SECOND:latest"], "a served model has this name"),
        ([""], "empty name"), (["a,,b"], "empty name"), (["first="], "empty name"),
        (["x", "second=x"], "'x' is given for two models"),
    ],
)  # fmt: skip
def test_wrong_alias_is_reported(values: list[str], message: str) -> None:
    queues = [make_queue("first"), make_queue("second")]
    with pytest.raises(UsageError, match=message):
        ServedModels(queues, parse_aliases(values, queues))


def test_name_is_found_with_the_latest_tag_and_in_any_case() -> None:
    names = dict.fromkeys(["starter", "Qwen3:4b", "tagged:latest"])
    assert find_name("starter", names) == "starter"
    assert find_name("starter:latest", names) == "starter"
    assert find_name("STARTER", names) == "starter"
    assert find_name("qwen3:4b", names) == "Qwen3:4b"
    assert find_name("tagged", names) == "tagged:latest"
    for name in ("qwen3", "starter:1b", "", ":latest"):
        assert find_name(name, names) is None
