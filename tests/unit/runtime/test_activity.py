"""Activities of the engine process, which its client reads after its death."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from edgechat.runtime import activity
from edgechat.runtime.activity import Activity, ActivityFile, ActivityState, decode_state


@pytest.fixture
def activity_file() -> Iterator[ActivityFile]:
    file = ActivityFile()
    yield file
    file.close()


@pytest.fixture(autouse=True)
def private_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own marks."""
    monkeypatch.setattr(activity, "_counts", bytearray(len(Activity) + 1))


def test_marks_are_visible_in_the_file_of_the_client(activity_file: ActivityFile) -> None:
    activity.share(os.dup(activity_file.fd))
    assert activity_file.read() == ActivityState()
    with activity.during(Activity.COMPUTING):
        assert activity_file.read().activities == {Activity.COMPUTING}
        with activity.during(Activity.TOKENIZING), activity.during(Activity.TOKENIZING):  # two threads
            assert activity_file.read().activities == {Activity.COMPUTING, Activity.TOKENIZING}
        assert activity_file.read().activities == {Activity.COMPUTING}
    activity.set_has_computed(True)
    assert activity_file.read() == ActivityState(has_computed=True)


def test_marks_end_after_an_exception() -> None:
    with pytest.raises(ValueError, match="stop"), activity.during(Activity.LOADING):
        raise ValueError("stop")
    assert activity.read_state() == ActivityState()


def _refuse(_name: str) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("memfd_create", [None, _refuse], ids=["missing", "refused"])
def test_file_is_on_disk_where_the_system_has_no_files_in_ram(
    monkeypatch: pytest.MonkeyPatch, memfd_create: Callable[[str], int] | None
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    if memfd_create is not None:
        monkeypatch.setattr(os, "memfd_create", memfd_create, raising=False)
    file = ActivityFile()
    activity.share(os.dup(file.fd))
    with activity.during(Activity.COMPUTING):
        assert file.read().activities == {Activity.COMPUTING}
    file.close()


@pytest.mark.skipif(sys.platform == "win32", reason="inherits a file descriptor")
@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_marks_outlive_the_process(activity_file: ActivityFile, signal_name: str) -> None:
    code = (
        "import contextlib, os, resource, signal, sys\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "from edgechat.runtime import activity\n"
        "activity.share(int(sys.argv[1]))\n"
        "activity.set_has_computed(True)\n"
        "with contextlib.ExitStack() as stack:\n"
        "    for each in activity.Activity:\n"
        "        stack.enter_context(activity.during(each))\n"
        "    os.kill(os.getpid(), getattr(signal, sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, str(activity_file.fd), signal_name]
    child = subprocess.run(command, pass_fds=(activity_file.fd,), check=False)
    assert child.returncode == -getattr(signal, signal_name)
    assert activity_file.read() == ActivityState(frozenset(Activity), has_computed=True)


@pytest.mark.parametrize("counts", [b"", b"\1", bytes(100)])
def test_file_of_another_size_describes_no_activity(counts: bytes) -> None:
    assert decode_state(counts) == ActivityState()


def test_closed_file_describes_no_activity(activity_file: ActivityFile) -> None:
    activity_file.close()
    assert activity_file.read() == ActivityState()


def test_descriptions_name_all_activities_in_progress() -> None:
    assert ActivityState().description == ""
    state = ActivityState(frozenset({Activity.COMPUTING, Activity.TOKENIZING}))
    assert state.description == "tokenising a text and computing"
