"""Encodings, limits and damage of text files."""

from __future__ import annotations

import codecs
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.documents.extraction.builder import ExtractionLimits
from edgechat.documents.text import ExtractedDocument, Section
from tests.unit.documents.extraction.helpers import extract, fail


def test_text_file_is_one_section_with_lines_of_the_file() -> None:
    assert extract(b"one\r\ntwo\rthree\n", "a.txt").sections == (Section(text="one\ntwo\nthree\n", first_line=1),)


@pytest.mark.parametrize(
    ("data", "notice"),
    [
        ("Käse, ˇ".encode(), ""),
        (codecs.BOM_UTF8 + "Käse, ˇ".encode(), ""),
        (codecs.BOM_UTF16_LE + "Käse, ˇ".encode("utf-16-le"), ""),
        (codecs.BOM_UTF32_BE + "Käse, ˇ".encode("utf-32-be"), ""),
    ],
)
def test_encodings_of_unicode_are_read(data: bytes, notice: str) -> None:
    document = extract(data, "a.md")
    assert (document.sections[0].text, document.notice) == ("Käse, ˇ", notice)


def test_utf_16_without_byte_order_mark_is_read() -> None:
    assert extract("A longer text.\n".encode("utf-16-le"), "a.txt").sections[0].text == "A longer text.\n"


def test_older_encoding_is_read_with_a_notice() -> None:
    document = extract("Käse für 3 €".encode("cp1252"), "a.txt")
    assert document.sections[0].text == "Käse für 3 €"
    assert "Windows-1252" in document.notice


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("公司去年的收入是四百万元, GDP 5 %.", "gbk"),
        ("公司去年的收入是四百萬元", "big5"),
        ("昨年の会社の収入は四百万円でした。", "shift_jis"),
        ("データ カタログ ソフトウェア コンピュータ", "shift_jis"),
        ("昨年の会社の収入は四百万円でした。", "euc_jp"),
        ("작년 회사의 수입은 사백만 원이었다.", "euc_kr"),
        ("Доход компании в прошлом году", "cp1251"),
        ("Доход компании в прошлом году", "koi8-r"),
        ("έσοδα της εταιρείας πέρυσι", "iso8859-7"),
    ],
)
def test_encoding_of_another_script_is_refused(text: str, encoding: str) -> None:
    assert fail(text.encode(encoding), "a.txt").endswith("such as GBK, Shift-JIS or Windows-1251. Save it as UTF-8.")


@pytest.mark.parametrize("text", [
    "«\xa0Où est passé le garçon ? À l'été… — déjà ! »", "ÉÈÀ", "€", "—" * 40 + "\n“…” text", "int main() {} // «—…»",
])  # fmt: skip
def test_western_text_is_not_refused(text: str) -> None:
    document = extract(text.encode("cp1252"), "a.txt")
    assert (document.sections[0].text, "Windows-1252" in document.notice) == (text, True)


def test_invalid_bytes_in_utf_8_are_replaced_with_a_notice() -> None:
    document = extract("Käse Käse Käse Käse ".encode() + b"\xff", "a.txt")
    assert document.sections[0].text == "Käse Käse Käse Käse \ufffd"
    assert "not valid UTF-8" in document.notice


@pytest.mark.parametrize("data", [b"a\0b", bytes(100), b"\xfd\x01\x02" * 9, random.Random(1).randbytes(5000)])
def test_binary_file_is_refused(data: bytes) -> None:
    assert fail(data, "a.txt")


def test_single_null_characters_are_left_out_with_a_notice() -> None:
    document = extract(b"text\0 " + b"word " * 500, "a.log")
    assert document.sections[0].text.startswith("text word word")
    assert document.notice == "Null characters (1) were left out."


def test_empty_text_file_has_a_notice() -> None:
    assert extract(b"", "a.txt") == ExtractedDocument(sections=(), notice="The file has no text.")


@given(st.integers(1, 300), st.sampled_from(["a", "é", "日", "🦉", "\n"]), st.sampled_from(["utf-8", "utf-16"]))
def test_long_text_is_cut_off_at_the_limit_with_a_notice(n_chars: int, character: str, encoding: str) -> None:
    text = character * n_chars
    document = extract(text.encode(encoding), "a.txt", ExtractionLimits(max_text_bytes=300))
    read = "".join(section.text for section in document.sections)
    assert text.startswith(read)
    assert len(read.encode()) <= 300
    assert ("Only the first" in document.notice) == (read != text) or not text.strip()
