"""Faults repeated many times at random moments: nothing leaks, and parsers survive damaged files."""

from __future__ import annotations

import contextlib
import io
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

from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineDiedError, ModelFileError
from edgechat.modelfile.gguf import read_gguf_stream
from edgechat.modelfile.layers import read_layers
from edgechat.modelfile.split import read_header
from tests.conftest import edgechat_command
from tests.engine.conftest import load_request
from tests.faults.test_deaths import LONG, engine_of, wait_for_end
from tests.fuzzing import shorten
from tests.models import KINDS, Kind, write_tiny
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform == "win32", reason="signals")]


def test_engine_killed_at_any_moment_raises_and_restarts(starter: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    client = EngineClient()
    load = load_request(client, starter)
    client.load(load)
    rng = random.Random(1)
    for _ in range(shorten(12, 5)):
        pid = client.pid
        assert pid is not None
        killer = threading.Timer(rng.uniform(0, 0.4), os.kill, (pid, 9))
        killer.start()
        while client.pid == pid:  # the engine may also die between two requests
            request = protocol.Generate(id=client.next_id(), tokens=[11] * 900, ignore_eog=True, max_tokens=200)
            with contextlib.suppress(EngineDiedError):
                list(client.generate(request))
        killer.join()
        *_, last = client.generate(protocol.Generate(id=client.next_id(), tokens=[11] * 9, max_tokens=2))
        assert isinstance(last, protocol.RequestFinished)
    client.close()
    until(lambda: not sys.platform.startswith("linux") or len(os.listdir("/proc/self/fd")) <= before)
    until(lambda: engine_of(os.getpid()) is None)


def test_clients_killed_at_any_moment_leave_no_engine() -> None:
    rng = random.Random(2)
    for _ in range(shorten(10, 5)):
        client = subprocess.Popen(edgechat_command(*LONG), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.2, 0.8))
        engine = engine_of(client.pid)
        client.kill()
        client.wait()
        if engine is not None:
            wait_for_end(engine)


def test_chat_process_uses_less_than_80_mb() -> None:
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
    assert child.wait(timeout=60) == 0
    reader.join(timeout=5)
    os.close(main)
    assert used < 80 << 20


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        pass


CASES_PER_KIND = shorten(16_700, 2_000)
"""For each of six kinds of model: 100,000 in total."""


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_headers_are_read_or_rejected_in_bounded_memory(kind: Kind, tmp_path: Path) -> None:
    """Mutate real headers: change bytes, insert extreme numbers, remove or repeat parts."""
    import resource

    whole = write_tiny(tmp_path / "whole.gguf", kind).read_bytes()
    end = read_header(tmp_path / "whole.gguf").data_offset
    header, size = whole[:end], len(whole)
    draw = random.Random(kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(CASES_PER_KIND):
        changed = bytearray(header)
        for _ in range(draw.randint(1, 4)):
            _mutate(changed, draw)
        reader = io.BytesIO(changed)
        try:
            read_layers(read_gguf_stream("changed", reader.read, draw.choice((size, len(changed), 1 << 40))))
        except ModelFileError:
            refused += 1
    assert refused > CASES_PER_KIND / 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100e6


def _mutate(header: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(header))
    mutation = draw.randrange(5)
    if mutation == 0:
        header[at] = draw.randrange(256)
    elif mutation == 1:
        header[at : at + 8] = draw.choice((2**63, 2**64 - 1, 2**32, 1 << 20, 0, draw.randrange(2**64))).to_bytes(
            8, "little"
        )
    elif mutation == 2:
        header[at : at + 4] = draw.choice((0, 8, 9, 255, 2**31, 2**32 - 1)).to_bytes(4, "little")
    elif mutation == 3:
        del header[at : at + draw.randrange(64)]
    else:
        piece = header[at : at + draw.randrange(256)]
        header[at:at] = piece
    if not header:
        header += b"G"
