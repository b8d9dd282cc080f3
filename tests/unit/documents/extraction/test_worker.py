from __future__ import annotations

import os
import subprocess
import sys
from io import BufferedReader
from pathlib import Path

import pytest

from edgechat.documents.extraction import formats, worker
from edgechat.documents.extraction.builder import DocumentBuilder, ExtractionLimits
from edgechat.documents.extraction.protocol import ExtractionReply, ExtractionRequest
from edgechat.errors import DocumentError


def process_request(path: Path) -> ExtractionReply:
    return worker.process_request(ExtractionRequest(os.fsencode(path), ExtractionLimits(), 100))


def test_file_that_changes_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first")
    extract, changes = formats.extract, ["second, longer"]

    def extract_and_change(file: BufferedReader, name: str, builder: DocumentBuilder) -> None:
        extract(file, name, builder)
        if changes:
            path.write_text(changes.pop())

    monkeypatch.setattr(formats, "extract", extract_and_change)
    reply = process_request(path)
    assert reply.document is not None
    assert reply.document.sections[0].text == "second, longer"


def test_file_that_keeps_changing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    extract = formats.extract

    def extract_and_change(file: BufferedReader, name: str, builder: DocumentBuilder) -> None:
        extract(file, name, builder)
        path.write_text(f"{path.read_text()} more")
        raise ValueError("the parser has seen half of the change")

    monkeypatch.setattr(formats, "extract", extract_and_change)
    assert process_request(path).error == "it changed while it was read. Try again when it is complete."


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("bad\nvalue"), "it is damaged or incomplete (bad value)"),
        (KeyError("x"), "it is damaged or incomplete"),
        (OSError(22, "Invalid argument"), "it is damaged or incomplete"),
        (RecursionError(), "it is nested too deeply, as a damaged or malicious file is"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (DocumentError("It is a photo."), "it is a photo."),
    ],
)
def test_errors_of_parsers_become_one_line(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: BufferedReader, name: str, builder: DocumentBuilder) -> None:
        raise error

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(formats, "extract", fail)
    assert process_request(tmp_path / "a.txt").error == message


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "open('/tmp/edgechat-test', 'w')",
        "import os; os.open('/tmp/edgechat-test', os.O_RDWR)",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')",
    ],
)
def test_reading_process_cannot_use_network_processes_or_write_files(code: str) -> None:
    prefix = (
        "import sys; from edgechat.documents.extraction.worker import forbid_side_effects as f; sys.addaudithook(f); "
    )
    done = subprocess.run([sys.executable, "-c", prefix + code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not allowed while a document is read" in done.stderr
