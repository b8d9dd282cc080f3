"""Recognising the format of an import file, and refusing everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.errors import ImportRefusedError
from edgechat.store import importing, open_ephemeral_store
from edgechat.store.formats import edgechat_json
from tests.unit.store.examples import (
    archive_json,
)


def test_message_of_50_mb_and_control_characters_are_imported(tmp_path: Path) -> None:
    odd = "\0 \u202e \x1b[2J \ud800 end"
    file = tmp_path / "odd.json"
    file.write_bytes(
        archive_json({"id": "a", "text": "word " * 10_000_000}, {"id": "b", "parent_id": "a", "text": odd})
    )
    store = open_ephemeral_store()
    edgechat_json.merge(store, importing.read_file(file), dry_run=False)
    long, strange = store.messages("c")
    assert len(long.text) == 50_000_000
    assert strange.text == "\0 \u202e \x1b[2J ? end"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"), (b" \n", "the file is empty"), (b"\xff\xfe", "not a Markdown file"),
        (b"hello", "not a Markdown file exported by edgechat"), (b"h\xe9llo", "the file is not UTF-8 text"),
        (bytes(5000), "the file contains only zeros"), (b"[1, " + bytes(9), "zeros instead of text, as after a system"),
        (b"\x1f\x8b\x08\x00", "the file is compressed with gzip. Decompress it with `gunzip` first"),
        (b"{", "not valid JSON"), (b"[]", "no ChatGPT conversations"), (b"{}", "not an edgechat export"),
        (b'[{"mapping": 3}]', "no ChatGPT conversations"),
        (b'{"format": "edgechat", "version": 99, "conversations": []}', "Update edgechat"),
        (
            b'{"format": "edgechat", "conversations": [{"conversation": {"id": "x"}, "messages": [{"id": 1}]}]}',
            "messages",
        ),
        (b"[" * 100_000, "not valid JSON"), (b"PK\x03\x04 not a zip", "ZIP file cannot be read"),
        (b"SQLite format 3\0 and then nothing", "is not a log database"), (b'"\xff"', "not UTF-8"),
        (
            b'{"format": "edgechat", "conversations": [{"conversation": {"id": "\xff"}, "messages": []}]}',
            "not valid JSON",
        ),
        (b"null", "the file is JSON, but contains no conversations"),
        (b" 3\n", "the file is JSON, but contains no conversations"),
        (b'"hi"', "the file is JSON, but contains no conversations"),
        (b'[{"title": "caf\xe9"}]', "not valid JSON: its byte 15 of 19 is 0xe9, which is not UTF-8"),
        (b'{"conversations": 3}', "not an edgechat export: conversations must be an array, not an integer"),
        (b'\n{"a": 1}', "not an edgechat export: it lacks the field conversations"),
        (b'<!-- edgechat {"format":1} -->\n', "not a Markdown file exported by edgechat"),
    ],
)  # fmt: skip
def test_invalid_file_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ImportRefusedError, match=message):
        importing.read_file(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_export_with_a_byte_order_mark_is_imported(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "file"
    data = archive_json({"id": "a", "text": "é"})
    file.write_bytes(data.decode().encode(encoding))
    expected = tmp_path / "expected"
    expected.write_bytes(data)
    assert importing.read_file(file) == importing.read_file(expected)


def test_folder_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=r"it is a folder. Import the files in it"):
        importing.read_file(tmp_path)


@given(st.binary(max_size=80))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("garbage") / "file"
    file.write_bytes(content)
    with pytest.raises(ImportRefusedError):
        importing.read_file(file)


def test_half_of_a_surrogate_pair_at_the_end_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(rb'[{"mapping":{"a":{"message":{"author":"user","content":"x \ud800"}}}}]'.replace(b" ", b""))
    assert importing.read_file(file).records[0].messages[0].text == "x?"
