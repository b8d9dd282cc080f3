"""Corpus files that are damaged, too large, or of another vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.speculation.corpus import Corpus
from tests.suffix_reference import PlainIndex
from tests.unit.speculation.corpus_texts import add, draft, load_corpus, save, text

if TYPE_CHECKING:
    import pytest


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_is_deleted_and_others_are_loaded(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    corpus = load_corpus(folder)
    add(corpus, "a", text(100))
    add(corpus, "b", text(200))
    save(corpus)
    path = folder / "a" / "said.tokens"
    original = path.read_bytes()
    damaged = bytearray(original)
    if data.draw(st.booleans()):
        offset = data.draw(st.integers(0, len(damaged) - 1))
        damaged[offset] ^= data.draw(st.integers(1, 255))
    else:
        variants = st.one_of(st.binary(max_size=60), st.just(original[:-1]), st.just(original + b"\0"))
        damaged = bytearray(data.draw(variants))
    path.write_bytes(damaged)
    reloaded = load_corpus(folder)
    assert not draft(reloaded, [101])
    assert draft(reloaded, [201])
    assert not path.exists()


def test_oversized_file_is_not_read(tmp_path: Path) -> None:
    corpus = load_corpus(tmp_path)
    add(corpus, "a", text(100))
    save(corpus)
    with (tmp_path / "a" / "said.tokens").open("r+b") as file:
        file.truncate(1 << 36)
    assert not draft(load_corpus(tmp_path), [101])


def test_tokens_beyond_the_vocabulary_are_rejected(tmp_path: Path) -> None:
    corpus = Corpus(PlainIndex, 1000, 1 << 20, tmp_path)
    add(corpus, "a", text(5000))
    save(corpus)
    assert not draft(load_corpus(tmp_path), [5001])
