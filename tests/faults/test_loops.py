"""The same deaths many times, at random moments, and what is left afterwards."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineDiedError, ModelFileError
from edgechat.modelfile.split import read_header
from tests.conftest import edgechat_command
from tests.engine.conftest import a_load
from tests.faults.test_deaths import LONG, engine_of, until
from tests.models import write_tiny_llama

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform == "win32", reason="signals")]


def test_an_engine_killed_at_any_moment_is_an_error_and_comes_back(starter: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    client = EngineClient()
    load = a_load(client, starter)
    client.load(load)
    rng = random.Random(1)
    for _ in range(12):
        pid = client.pid
        assert pid is not None
        killer = threading.Timer(rng.uniform(0, 0.4), os.kill, (pid, 9))
        killer.start()
        while client.pid == pid:  # it may also die between two requests
            request = protocol.Generate(id=client.next_id(), tokens=[11] * 900, ignore_eog=True, max_tokens=200)
            with contextlib.suppress(EngineDiedError):
                list(client.generate(request))
        killer.join()
        *_, last = client.generate(protocol.Generate(id=client.next_id(), tokens=[11] * 9, max_tokens=2))
        assert isinstance(last, protocol.TurnFinished)
    client.close()
    until(lambda: not sys.platform.startswith("linux") or len(os.listdir("/proc/self/fd")) <= before)
    assert not [p for p in psutil.Process().children() if "_engine" in p.cmdline()]


def test_clients_killed_at_any_moment_leave_no_engine() -> None:
    rng = random.Random(2)
    for _ in range(10):
        asking = subprocess.Popen(edgechat_command(*LONG), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.2, 0.8))
        engine = engine_of(asking.pid)
        asking.kill()
        asking.wait()
        if engine is not None:
            until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, seconds=1)  # noqa: B023


def test_the_chat_stays_under_80_mb() -> None:
    main, side = pty.openpty()
    child = subprocess.Popen(edgechat_command(), stdin=side, stdout=side, stderr=side)
    os.close(side)
    reader = threading.Thread(target=_drain, args=(main,), daemon=True)
    reader.start()
    until(lambda: engine_of(child.pid) is not None)
    time.sleep(2)
    os.write(main, b"Tell me a long story.\r")
    time.sleep(4)
    used = psutil.Process(child.pid).memory_info().rss
    os.write(main, b"\x11")
    assert child.wait(timeout=20) == 0
    reader.join(timeout=5)
    os.close(main)
    assert used < 80 << 20


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        pass


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf").read_bytes()


@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_header_hurts_the_reader(tiny: bytes, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(tiny)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, 12_000))
        whole[start : start + 8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    path = tmp_path / "changed.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        read_header(path)
    except ModelFileError:
        pass
