"""Embeddings of all-MiniLM-L6-v2: the cosines that the documentation of sentence-transformers prints."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from tests.embedding_model import require_embedding_model
from tests.engine.conftest import load_request

pytestmark = pytest.mark.long

# Queries of the example of semantic search, and its five best sentences for each.
DOCUMENTED = {
    "A man is eating pasta.": {
        "A man is eating food.": 0.7035,
        "A man is eating a piece of bread.": 0.5272,
        "A man is riding a horse.": 0.1889,
        "A man is riding a white horse on an enclosed ground.": 0.1047,
        "A cheetah is running behind its prey.": 0.0980,
    },
    "Someone in a gorilla costume is playing a set of drums.": {
        "A monkey is playing drums.": 0.6433,
        "A woman is playing violin.": 0.2564,
        "A man is riding a horse.": 0.1389,
        "A man is riding a white horse on an enclosed ground.": 0.1191,
        "A cheetah is running behind its prey.": 0.1080,
    },
    "A cheetah chases prey on across a field.": {
        "A cheetah is running behind its prey.": 0.8253,
        "A man is eating food.": 0.1399,
        "A monkey is playing drums.": 0.1292,
        "A man is riding a white horse on an enclosed ground.": 0.1097,
        "A man is riding a horse.": 0.0650,
    },
}


@pytest.fixture(scope="module")
def client(warm_verdicts: Path) -> Iterator[EngineClient]:
    path = require_embedding_model()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
        client = EngineClient()
        client.load(load_request(client, path, n_ctx=512))
        yield client
        client.close()


def embed(client: EngineClient, texts: Sequence[str]) -> list[list[float]]:
    request = protocol.Embed(id=client.next_id(), inputs=[client.tokenize(text) for text in texts])
    return client._call(request, protocol.EmbeddingsComputed).embeddings


@pytest.mark.parametrize("query", DOCUMENTED)
def test_cosines_are_the_documented_ones_to_three_decimals(client: EngineClient, query: str) -> None:
    sentences = DOCUMENTED[query]
    query_embedding, *embeddings = embed(client, [query, *sentences])
    assert len(query_embedding) == 384
    cosines = [sum(map(operator.mul, query_embedding, embedding)) for embedding in embeddings]
    assert cosines == pytest.approx(list(sentences.values()), abs=5e-4)


def test_case_and_accents_do_not_change_an_embedding(client: EngineClient) -> None:
    texts = "a cafe in munchen", "A CAFÉ in München"
    assert client.tokenize(texts[0]) == client.tokenize(texts[1])
    plain, other = embed(client, texts)
    assert other == pytest.approx(plain, abs=1e-4)
