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
        (b"", "not a Markdown file exported by edgechat"), (b"hello", "not a Markdown file exported by edgechat"),
            (b"\xff\xfe", "not UTF-8"),
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
        (b'<!-- edgechat {"format":1} -->\n', "not a Markdown file exported by edgechat"),
    ],
)  # fmt: skip
def test_invalid_file_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ImportRefusedError, match=message):
        importing.read_file(file)


@given(st.binary(max_size=80))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("garbage") / "file"
    file.write_bytes(content)
    with pytest.raises(ImportRefusedError):
        importing.read_file(file)
