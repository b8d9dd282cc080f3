"""Reasons why a search is by keywords only."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgechat.config import Settings
from edgechat.documents import embedding
from edgechat.documents.collection import CollectionInfo
from edgechat.documents.search_models import SearchModels

INFOS = [CollectionInfo(name="notes", n_chunks=3, n_embedded=3)]


@pytest.fixture
def installed_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("The embedding model was opened.")

    monkeypatch.setattr(embedding, "choose_embedding_model", lambda: SimpleNamespace(name="tiny-bert"))
    monkeypatch.setattr(embedding, "open_embedder", fail)


@pytest.mark.usefixtures("installed_model")
def test_missing_native_library_is_named_and_no_embeddings_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgechat.documents.search_models.load_library", lambda: None)
    models = SearchModels()
    assert "libedgechat-vectors" in models.explain_keyword_search(INFOS)
    assert models.open_embedder(Settings()) is None
    assert "libedgechat-vectors" in models.problem
    reason = models.explain_keyword_search(INFOS)
    assert reason.endswith("is missing or cannot be loaded. Reinstall edgechat.")
    assert "docs update" not in reason


@pytest.mark.usefixtures("installed_model")
def test_missing_embeddings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgechat.documents.search_models.load_library", object)
    assert "notes has no embeddings of tiny-bert yet" in SearchModels().explain_keyword_search(INFOS)


def test_missing_model_is_no_problem_without_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgechat.documents.search_models.load_library", lambda: None)
    monkeypatch.setattr(embedding, "choose_embedding_model", lambda: None)
    monkeypatch.setattr(embedding, "open_embedder", lambda *arguments: None)
    models = SearchModels()
    assert models.open_embedder(Settings()) is None
    assert models.problem == ""
    assert "no embedding model is installed" in models.explain_keyword_search(INFOS)
