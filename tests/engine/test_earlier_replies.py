"""Why earlier questions are not recognised by embeddings: the similarities of the labelled pairs."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from edgechat import paths
from edgechat.chat.question_words import parse_question
from edgechat.config import Settings
from edgechat.documents.embedding import open_embedder
from edgechat.files import read_toml
from tests.embedding_model import require_embedding_model

PAIRS: Final[dict[str, Any]] = read_toml(Path(__file__).parents[1] / "fixtures" / "asked_before.toml")
# Precision of the most precise threshold; docs/decisions.md has the numbers.
_BEST_PRECISION: Final = 0.69


def list_pairs(kind: str) -> list[tuple[str, str]]:
    return [(first, second) for part in PAIRS.values() for first, second in part[kind]]


@pytest.mark.slow
def test_no_threshold_of_the_similarity_separates_the_pairs_as_their_words_do(home: Path) -> None:
    model = require_embedding_model()
    paths.models_dir().mkdir(parents=True, exist_ok=True)
    shutil.copy(model, paths.models_dir())
    embedder = open_embedder(Settings(n_threads=1), lambda message: None)
    assert embedder is not None
    texts = sorted({text for kind in ("same", "different") for pair in list_pairs(kind) for text in pair})
    vectors = dict(zip(texts, embedder.embed(texts, is_query=False), strict=True))
    embedder.close()

    def compare(pair: tuple[str, str]) -> float:
        return math.fsum(a * b for a, b in zip(vectors[pair[0]], vectors[pair[1]], strict=True))

    def count(kind: str, threshold: float, *, beyond_words: bool = False) -> int:
        return sum(
            compare(pair) >= threshold
            and not (beyond_words and parse_question(pair[0]).is_same(parse_question(pair[1])))
            for pair in list_pairs(kind)
        )

    for threshold in (0.9, 0.95, 0.966, 0.98, 0.99):
        n_same, n_different = count("same", threshold), count("different", threshold)
        assert n_same / (n_same + n_different) <= _BEST_PRECISION + 0.02
        added = [count(kind, threshold, beyond_words=True) for kind in ("same", "different")]
        assert added[0] < added[1]
