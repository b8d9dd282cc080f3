"""Split models: file names, lists of files, and joined headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.errors import ModelFileError
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.modelfile.split import join_headers, list_model_files, parse_part_name, read_header
from tests.models import split_tiny


def test_split_model_reads_as_one_header(tmp_path: Path) -> None:
    files = split_tiny(tmp_path)
    whole, joined = read_header(tmp_path / "whole.gguf"), read_header(files[0])
    assert {(t.name, t.shape, t.type, t.size_bytes) for t in joined.tensors} == {
        (t.name, t.shape, t.type, t.size_bytes) for t in whole.tensors
    }
    assert {t.part_index for t in joined.tensors} == {0, 1, 2}
    assert joined.file_bytes == sum(path.stat().st_size for path in files)


def test_incomplete_or_misnamed_split_models_are_refused(tmp_path: Path) -> None:
    files = split_tiny(tmp_path)
    with pytest.raises(ModelFileError, match=r"open the first part, .*-00001-of-00003\.gguf"):
        read_header(files[1])
    parts = [read_gguf_header(path) for path in files]
    for wrong in ([parts[0], parts[2], parts[1]], parts[:2], [parts[0], parts[1], parts[1]]):
        with pytest.raises(ModelFileError, match="part"):
            join_headers(wrong)
    files[2].rename(tmp_path / "away")
    with pytest.raises(ModelFileError, match=r"missing in its folder: .*-00003-of-00003\.gguf"):
        read_header(files[0])
    files[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match="does not end in -00001-of-00003"):
        read_header(tmp_path / "renamed.gguf")


def test_part_numbers_outside_the_valid_range_are_no_part_names() -> None:
    assert parse_part_name("a-00002-of-00001.gguf") is None
    assert parse_part_name("a-00001-of-99999.gguf") is None
    assert parse_part_name("a.gguf") is None


def test_model_files_lists_all_parts_of_a_split_model(tmp_path: Path) -> None:
    names = [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert [path.name for path in list_model_files(tmp_path / names[0])] == names
    assert [path.name for path in list_model_files(tmp_path / names[2])] == names
    assert list_model_files(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]


def test_model_files_accepts_names_with_brackets(tmp_path: Path) -> None:
    assert len(list_model_files(tmp_path / "m[1]-00001-of-00002.gguf")) == 2
