"""Attached text files in the prompt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgechat.chat import attachments
from edgechat.chat.attachments import load_attachments, prepend_attachments
from edgechat.chat.messages import Attachment
from edgechat.errors import AttachmentError, AttachmentTooLargeError, ContextOverflowError
from tests.time_limit import ends_within


def prompt_with(data: bytes) -> str:
    attachment = Attachment(sha256="0" * 64, name="notes.md", media_type="text/markdown", size_bytes=len(data))
    return prepend_attachments("Summarise.", [attachment], lambda sha256: data)


@pytest.mark.parametrize(("text", "fence"), [("plain", "```"), ("a `b` ```c```", "````"), ("``````", "```````")])
def test_fence_is_longer_than_every_run_of_backticks_in_the_file(text: str, fence: str) -> None:
    assert prompt_with(text.encode()) == f"notes.md:\n{fence}\n{text}\n{fence}\n\nSummarise."


def test_file_of_backticks_takes_linear_time() -> None:
    with ends_within():  # a search per length of the fence would take hours
        prompt = prompt_with(b"`" * 2_000_000)
    assert len(prompt) > 6_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX devices")
@pytest.mark.parametrize("kind", ["directory", "pipe", "/dev/zero", "/dev/null", "/proc/self/mem"])
def test_special_files_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif not path.exists():
        pytest.skip("exists on Linux only")
    with pytest.raises(AttachmentError, match="Cannot read"):
        load_attachments([path])


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="exists on Linux only")
def test_files_of_the_system_without_a_size_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    [attachment], contents = load_attachments([Path("/proc/cpuinfo")])
    assert attachment.size_bytes == len(contents[attachment.sha256]) > 0
    monkeypatch.setattr(attachments, "MAX_BYTES", 100)
    with pytest.raises(AttachmentError, match="larger than 100 B") as caught:
        load_attachments([Path("/proc/cpuinfo")])
    assert caught.value.exit_code == ContextOverflowError.exit_code


def test_attachments_of_a_message_are_limited_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_BYTES", 100)
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file in files:
        file.write_text("x" * 40)
    assert len(load_attachments(files[:2])[0]) == 2
    with pytest.raises(AttachmentError, match="at most 100 B together"):
        load_attachments(files)


def test_text_that_grows_in_utf8_is_limited_in_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_BYTES", 100)
    (tmp_path / "big").write_bytes(("\ufeff" + "你" * 40).encode("utf-16-le"))  # 82 bytes, in UTF-8 120
    (tmp_path / "a").write_text("x" * 60)
    (tmp_path / "b").write_bytes(("\ufeff" + "你" * 15).encode("utf-16-le"))  # 32 bytes, in UTF-8 45
    with pytest.raises(AttachmentTooLargeError, match=r"big: its text in UTF-8 is larger than 100 B\.$"):
        load_attachments([tmp_path / "big"])
    with pytest.raises(AttachmentTooLargeError, match="b: the attachments of a message can have at most 100 B toget"):
        load_attachments([tmp_path / "a", tmp_path / "b"])
    loaded, _ = load_attachments([tmp_path / "b", tmp_path / "b"])
    assert sum(attachment.size_bytes for attachment in loaded) == 90
