"""Ends the resident engines that a test has started."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from edgechat.engine import protocol, resident_client
from edgechat.engine.local_socket import locate_socket_dir
from edgechat.engine.resident_files import list_records
from tests.waiting import until

TIMEOUT_S = 120
# In its reply each token is far ahead of the next, so that neither drafts nor other requests change it.
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nCount from 1 to 20.<|im_end|>\n<|im_start|>assistant\n"
)


def end_engines() -> None:
    """End the resident engines of this test's home, and delete the folder of their sockets."""
    try:
        for record in list_records():
            resident_client.stop_engine(record)
        assert wait_until(lambda: not list(list_records()))
    finally:
        shutil.rmtree(locate_socket_dir(), ignore_errors=True)  # in /tmp, if the path of the home is long


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait until `condition` is true, and return True; fail the test after `TIMEOUT_S`."""
    until(condition, TIMEOUT_S)
    return True


def read_status() -> protocol.EngineStatus:
    """Return the status of the only engine, which a busy machine can delay."""
    [record] = list_records()
    deadline = time.monotonic() + TIMEOUT_S
    while (status := resident_client.read_status(record)) is None and time.monotonic() < deadline:
        assert record.is_running
    assert status is not None
    return status
