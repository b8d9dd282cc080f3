"""Keyword search in scripts without spaces between words."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.documents.bigrams import separate_query, separate_text
from edgechat.documents.indexing import update
from edgechat.documents.keyword_search import find_coverage, find_words, search_keywords
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.search import search
from tests.unit.documents.collections import TextExtractor, make_reader, read_contents

TEXTS = {
    "chinese": "公司去年的收入是四百万元。",
    "japanese": "2024年の売上はデータセンターが最大でした。黒猫がいる。",
    "korean": "작년 회사의 수입은 사백만 원이었다.",
    "thai": "รายได้ของบริษัทเมื่อปีที่แล้วคือสี่ล้านบาท",
    "english": "The revenue of the company was four million.",
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("公司收入", "公司 司收 收入 入"),
        ("2024年の売上", "2024 年の の売 売上 上"),
        ("GPU版と猫。犬", "GPU 版と と猫 猫 。 犬"),
        ("수입은 ", "수입 입은 은"),
        (unicodedata.normalize("NFD", "ガス"), "ガス ス"),
        ("สี่ล้าน", "สล ลา าน น"),
        ("Zürich, αβγ", "Zürich, αβγ"),
        ("plain text", "plain text"),
    ],
)
def test_runs_of_letters_become_bigrams(text: str, words: str) -> None:
    assert " ".join(separate_text(text).split()) == words


def test_bigrams_of_a_query_have_no_single_letter_at_the_end() -> None:
    assert find_words("公司收入 2024年 猫?") == ["公司", "司收", "收入", "2024", "年", "猫"]


@given(st.text(alphabet="公司ガの収ー수 a1。\u0e35\u0e17\u3099", max_size=30))
def test_words_of_a_query_are_words_of_the_same_text(text: str) -> None:
    words = separate_text(text).split()
    for word in separate_query(text).split():
        assert any(w.startswith(word) if len(word) == 1 else w == word for w in words)


def test_words_within_a_run_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    with DocumentLibrary(tmp_path / "documents").create("notes") as collection:
        update(collection, add=[folder], reader=make_reader(TextExtractor()))
        for query, name in (
            ("收入", "chinese"), ("公司的收入是多少?", "chinese"), ("売上", "japanese"), ("データ", "japanese"),
            ("猫", "japanese"), ("2024年", "japanese"), ("수입", "korean"), ("รายได้", "thai"), ("บริษัท", "thai"),
            ("revenue", "english"),
        ):  # fmt: skip
            found = search([collection], query, n_results=5)
            assert [chunk.chunk.text for chunk in found][:1] == [TEXTS[name]], query
            [(chunk_id, _), *_] = search_keywords(collection.database, query, 1)
            assert find_coverage(collection.database, query, chunk_id) >= 0.5
        assert search([collection], "天气", n_results=5) == []
        read_contents(collection)  # the index has the words of the stored text


def test_index_of_changed_and_removed_documents_has_no_old_bigrams(tmp_path: Path) -> None:
    folder = tmp_path / "会社"
    folder.mkdir()
    (folder / "売上高.txt").write_text("去年的收入", encoding="utf-8")
    (folder / "b.txt").write_text("费用很高", encoding="utf-8")
    reader = make_reader(TextExtractor())
    with DocumentLibrary(tmp_path / "documents").create("notes") as collection:
        update(collection, add=[folder], reader=reader)
        assert len(search_keywords(collection.database, "売上", 5)) == 1  # the name of the file
        (folder / "売上高.txt").write_text("今年的利润", encoding="utf-8")
        (folder / "b.txt").unlink()
        update(collection, reader=reader)
        for query, n_found in (("收入", 0), ("费用", 0), ("利润", 1), ("売上", 1)):
            assert len(search_keywords(collection.database, query, 5)) == n_found
        read_contents(collection)
