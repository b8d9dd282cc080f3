"""Clients of one resident engine that attach, ask, cancel and are killed at random moments."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgechat.config import GREEDY, Settings
from edgechat.engine import protocol, resident_client
from edgechat.engine.resident_files import list_records
from edgechat.hardware.memory import read_private_bytes
from edgechat.models.loaded_model import LoadedModel
from tests.fuzzing import shorten
from tests.resident_engines import PROMPT, TIMEOUT_S, wait_until

pytestmark = pytest.mark.slow

N_CLIENTS = 10
DURATION_S = shorten(20, 4)
N_TOKENS = 24

CLIENT = """
import random
import sys
from pathlib import Path
from edgechat.config import GREEDY, Sampling, Settings
from edgechat.engine import protocol
from edgechat.models.loaded_model import LoadedModel
from tests.faults.test_resident_clients import N_TOKENS, PROMPT

rng = random.Random(int(sys.argv[2]))
while True:
    model = LoadedModel("ask")
    model.open(Path(sys.argv[1]), Settings(n_ctx=2048, keep_alive=3, budget="300MB"))
    for _ in range(rng.randrange(1, 4)):
        model.restart_if_dead()
        kind = rng.choice(["certain", "random", "cancel"])
        request = protocol.Generate(
            id=model.engine.next_id(), text=PROMPT, max_tokens=N_TOKENS if kind != "cancel" else 500,
            ignore_eog=True, sampling=Sampling(temperature=1.0, seed=rng.randrange(99)) if kind == "random" else GREEDY,
            n_sequences=2 if kind == "random" else 1,
        )
        text, n_tokens, end_at = "", 0, rng.randrange(1, 20)
        for event in model.engine.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                text += event.text
                n_tokens += len(event.tokens)
                if kind == "cancel" and n_tokens >= end_at:
                    model.engine.cancel(request.id)
            if isinstance(event, protocol.RequestFinished):
                assert event.stats.completion_tokens == n_tokens, (event, n_tokens)
                # On a busy machine, all tokens can be generated before the engine receives the cancellation.
                is_complete = kind != "cancel" or n_tokens == 500
                assert event.finish_reason == ("length" if is_complete else "cancelled"), event
        print(kind, text.replace(chr(10), " ") if kind == "certain" else "", flush=True)
    model.close()
"""


class ClientProcess:
    """A client that writes what it does to a file, so that it never waits for a reader."""

    def __init__(self, starter: Path, seed: int, output: Path) -> None:
        self._output = output
        command = [sys.executable, "-c", CLIENT, str(starter), str(seed)]
        with output.open("wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file)

    def end(self, signal_number: int = signal.SIGKILL) -> list[str]:
        """End the client and return its complete lines."""
        self._process.send_signal(signal_number)
        self._process.wait(TIMEOUT_S)
        return [line for line in self._output.read_text().splitlines(keepends=True) if line.endswith("\n")]


def count_clients() -> int:
    """Return the number of clients of all engines; -1 while one of them does not answer."""
    statuses = [resident_client.read_status(record) for record in list_records()]
    return -1 if None in statuses else sum(len(status.clients) for status in statuses if status is not None)


def ask(model: LoadedModel, n_sequences: int = 1) -> str:
    request = protocol.Generate(
        id=model.engine.next_id(), text=PROMPT, max_tokens=N_TOKENS, ignore_eog=True, sampling=GREEDY,
        n_sequences=n_sequences,
    )  # fmt: skip
    events = model.engine.generate(request)
    return "".join(e.text for e in events if isinstance(e, protocol.TokensGenerated) and e.sequence == 0)


def fill_context(model: LoadedModel) -> None:
    """Use all cells, whose memory the system gives only when they are used first."""
    engine = model.engine
    tokens = engine.tokenize(" word" * 2000)[:2000]
    list(engine.generate(protocol.Generate(id=engine.next_id(), tokens=tokens, max_tokens=1, bypass_cache=True)))


def test_clients_that_end_at_random_lose_no_word_of_the_others(starter: Path, tmp_path: Path, resident: None) -> None:
    rng = random.Random(0)
    # With this budget, the prefix cache in RAM has 8 MB, so that its growth does not look like a leak.
    settings = Settings(n_ctx=2048, keep_alive=3, budget="300MB")
    model = LoadedModel()
    model.open(starter, settings)
    expected = ask(model).replace("\n", " ")
    assert model.plan is not None
    n_sequences = model.plan.options.n_seqs
    fill_context(model)
    ask(model, n_sequences)
    pid = model.engine.pid
    assert pid is not None
    bytes_at_start = read_private_bytes(pid)
    clients = [ClientProcess(starter, seed, tmp_path / f"{seed}.txt") for seed in range(N_CLIENTS)]
    lines: list[str] = []
    n_ended = 0
    try:
        ended_at = time.monotonic() + DURATION_S
        while time.monotonic() < ended_at or not any(line.startswith("certain") for line in lines):
            assert ask(model).replace("\n", " ") == expected
            index = rng.randrange(N_CLIENTS)
            lines += clients[index].end(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            n_ended += 1
            seed = N_CLIENTS + n_ended
            clients[index] = ClientProcess(starter, seed, tmp_path / f"{seed}.txt")
    finally:
        for client in clients:
            lines += client.end()
    assert {line.partition(" ")[0].strip() for line in lines} <= {"certain", "random", "cancel"}, lines
    texts = {line.partition(" ")[2].rstrip("\n") for line in lines if line.startswith("certain")}
    assert texts == {expected}
    assert wait_until(lambda: count_clients() == 1)
    assert model.engine.pid == pid
    assert ask(model, n_sequences).replace("\n", " ") == expected  # no sequence was lost
    # Memory that it shares with other processes, such as the weights, does not count: they come and go.
    assert read_private_bytes(pid) <= bytes_at_start + (24 << 20)
    model.close()
    assert wait_until(lambda: not list(list_records()))
