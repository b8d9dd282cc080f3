"""JSON schemas for `ask --schema`: each invalid file is one clear error with exit code 2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from edgechat.cli.output_schema import read_schema_rule
from edgechat.errors import EdgechatError
from tests.conftest import Cli


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "is not valid JSON"), (b"", "is not valid JSON"), (b"\xff\xfe", "is not valid JSON"),
        (b"[1]", "must be an object or a boolean"), (b'"x"', "must be an object or a boolean"),
        (b"[" * 100_000, "is not valid JSON"), (b" " * 300_000, "larger than 262,144 bytes"),
        (b'{"x-guidance": {}}', "x-guidance is not supported, because edgechat sets this keyword"),
        (b'{"type": "object", "minProperties": 3}', "minProperties above the number of required properties"),
    ],
)  # fmt: skip
def test_invalid_schema_is_one_error(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_bytes(content)
    with pytest.raises(EdgechatError, match=message) as caught:
        read_schema_rule(file)
    assert caught.value.exit_code == 2
    assert str(file) in str(caught.value)


def test_missing_file_is_reported_before_standard_input_is_read(cli: Cli, tmp_path: Path) -> None:
    result = cli("ask", "--schema", str(tmp_path / "none.json"))
    assert result.returncode == 2
    assert result.stderr == f"edgechat: Cannot read the JSON schema {tmp_path}/none.json: No such file or directory.\n"


def test_missing_package_is_reported_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "schema.json"
    file.write_text("{}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EdgechatError, match="pip install edgechat") as caught:
        read_schema_rule(file)
    assert caught.value.exit_code == 2
