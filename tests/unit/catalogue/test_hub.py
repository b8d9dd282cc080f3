"""Repositories of the hub: variants, split models, cut files, and hostile answers of the API."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat.catalogue import hub, hub_client, pull
from edgechat.catalogue.download import http
from edgechat.errors import CatalogueError, HubError
from tests.hub import FakeRepo, LocalHub, local_hub

NAME = "own/repo"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with local_hub() as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield local


def refusal(reference: str) -> str:
    with pytest.raises((CatalogueError, HubError)) as error:
        pull.find_target(reference)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x.Q8_0.gguf.part1of2", "x.Q8_0.gguf.part2of2"),
        ("x.Q8_0.gguf-split-a", "x.Q8_0.gguf-split-b"),
        ("big/x.Q8_0.part1of2.gguf", "big/x.Q8_0.part2of2.gguf"),
        ("x.Q8_0.part1of2", "x.Q8_0.part2of2"),
    ],
)
def test_cut_file_in_a_repository_is_to_be_joined(server: LocalHub, first: str, second: str) -> None:
    files: dict[str, Path | bytes] = {first: b"GGUF", second: b"more"}
    server.repos[NAME] = FakeRepo({**files, "x.Q4_0.gguf": b"GGUF", "model-part-b.Q2_K.gguf": b"GGUF"})
    names = [name.rsplit("/", 1)[-1] for name in (first, second)]
    for reference in (f"{NAME}:q8_0", f"{NAME}:x.Q8_0.gguf"):
        text = refusal(reference)
        assert f"Download them from {server.url}/{NAME}" in text
        assert f"`cat {names[0]} {names[1]} > x.Q8_0.gguf`" in text
    assert pull.find_target(NAME).quant == "Q4_0"
    assert pull.find_target(f"{NAME}:Q2_K").quant == "Q2_K"  # the only file of its kind, so it is no part
    server.repos[NAME] = FakeRepo(files)
    assert "join them" in refusal(NAME)
    if not first.endswith(".gguf"):
        assert "Download all parts, join them" in refusal(f"{server.store_url}/{NAME}/{first}")


def test_split_model_with_missing_parts_is_explained(server: LocalHub) -> None:
    server.repos[NAME] = FakeRepo({"x-Q8_0-00002-of-00003.gguf": b"GGUF", "x-Q4_0.gguf": b"GGUF"})
    assert "x-Q8_0.gguf has 3 parts, but the repository contains only 1 of them" in refusal(f"{NAME}:Q8_0")


def answer(server: LocalHub, repo: object = NAME, **changes: object) -> None:
    """Let the hub describe a repository with one file, with `changes` in the description of the file."""
    file = {"rfilename": "x-Q4_0.gguf", "size": 4, "lfs": {"sha256": "0" * 64, "size": 4, "pointerSize": 130}}
    content = {"id": repo, "sha": "c" * 40, "siblings": [{**file, **changes}]}
    server.faults.api_body = json.dumps(content).encode()


def test_file_with_an_impossible_size_is_left_out(server: LocalHub) -> None:
    server.repos[NAME] = FakeRepo({})
    for size in (-1, True, 1.5, "4", 1 << 70, None):
        answer(server, size=size)
        assert hub.Hub().get_repository(NAME).variants == ()


def test_published_hash_in_another_form_is_ignored(server: LocalHub) -> None:
    server.repos[NAME] = FakeRepo({})
    for sha256, expected in (("A" * 64, "a" * 64), ("sha256:0", ""), (None, ""), ("0" * 63 + "g", "")):
        answer(server, lfs={"sha256": sha256, "size": 4, "pointerSize": 130})
        [variant] = hub.Hub().get_repository(NAME).variants
        assert variant.files[0].sha256 == expected


@pytest.mark.parametrize("name", ["../up", "a/../../b", "/etc/x", "a/b/c/d", "x\x00/y", "CON/x", "a" * 300 + "/x", 3])
def test_repository_name_of_the_answer_cannot_leave_the_models_folder(server: LocalHub, name: object) -> None:
    server.repos[NAME] = FakeRepo({})
    answer(server, name)
    assert "sent an invalid response for own/repo: the repository name" in refusal(NAME)


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"id": "a/b", "siblings": [3]}', b"<html>Sign in"]
)
def test_answer_that_is_not_usable_is_one_sentence(server: LocalHub, body: bytes) -> None:
    server.repos[NAME] = FakeRepo({})
    server.faults.api_body = body
    assert "sent an invalid response" in refusal(NAME)


def test_huge_and_compressed_answers_are_refused(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repos[NAME] = FakeRepo({})
    monkeypatch.setattr(hub_client, "_MAX_RESPONSE_BYTES", 1 << 20)
    server.faults.api_body = b" " * (2 << 20)
    assert "more than 1 MiB" in refusal(NAME)
    server.faults.api_body, server.faults.encoding = gzip.compress(b" " * (100 << 20)), "gzip"
    assert "sent compressed data (gzip)" in refusal(NAME)


def test_redirect_of_the_hub_from_https_to_http_is_refused() -> None:
    client = hub_client.make_client("https://hub.example.test")
    with client, pytest.raises(HubError, match="from https to http"):
        client.get("http://hub.example.test/api/models")


def test_token_is_not_sent_to_another_host_by_the_api(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.repos[NAME] = FakeRepo({"x-Q4_0.gguf": b"GGUF"})
    server.faults.api_redirect_to = f"{server.store_url}/elsewhere"
    with pytest.raises(HubError):
        hub.Hub().get_repository(NAME)
    assert "hf_secret" in str(server.requests[0][2])
    assert len(server.requests) > 1
    assert all("hf_secret" not in str(headers) for _, _, headers in server.requests[1:])


def test_endless_redirects_end(server: LocalHub) -> None:
    server.repos[NAME] = FakeRepo({"x.gguf": b"GGUF"})
    server.faults.api_redirect_to = f"{server.url}/api/models/{NAME}"
    with pytest.raises(HubError):
        hub.Hub().get_repository(NAME)
    assert len(server.requests) < 50
    server.faults.redirect_to = f"{server.url}/{NAME}/resolve/main/x.gguf"
    with pytest.raises(http.InvalidUrlError, match="redirects more than 5 times"):
        http.get(server.faults.redirect_to)


def test_repository_that_the_hub_lists_twice_is_shown_once(server: LocalHub) -> None:
    server.repos[NAME] = FakeRepo({"x.Q4_0.gguf": b"GGUF"})
    server.n_repeats_in_search = 2
    assert [result.id for result in hub.Hub().search("repo")] == [NAME]
