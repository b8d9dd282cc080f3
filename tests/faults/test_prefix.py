"""What is cached of a conversation is worth a prefill and nothing else, whatever happens to it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.planner.plan import manual_plan
from tests.conftest import Cli
from tests.models import write_tiny
from tests.waiting import until

PROMPT = [1, *range(20, 300)]
Ask = Callable[..., tuple[list[int], protocol.GenerationStats]]


class Engine:
    """An engine on a tiny model, with its prefixes in the cache directory."""

    def __init__(self, model: Path, **options: object) -> None:
        self.client = EngineClient()
        given = {
            "n_ctx": 1024, "n_threads": 1, "prefix_ram_bytes": 1 << 20, "prefix_disk_bytes": 50 << 20,
        } | options  # fmt: skip
        directory = str(given.pop("prefix_dir", paths.prefix_dir()))
        plan = manual_plan(str(model), **given)  # type: ignore[arg-type]
        self.client.load(protocol.Load(id=self.client.next_id(), plan=plan, prefix_dir=directory))

    def ask(self, tokens: list[int] = PROMPT, whose: str = "talk") -> tuple[list[int], protocol.GenerationStats]:
        request = protocol.Generate(
            id=self.client.next_id(), tokens=tokens, max_tokens=6, ignore_eog=True, sampling=GREEDY, conversation=whose
        )
        drawn: list[int] = []
        for event in self.client.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                drawn += event.tokens
        assert isinstance(event, protocol.RequestFinished)
        return drawn, event.stats

    def close(self) -> None:
        self.client.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf", "llama")


@pytest.fixture
def start(model: Path) -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def begin(path: Path = model, **options: object) -> Engine:
        started.append(Engine(path, **options))
        return started[-1]

    yield begin
    for engine in started:
        engine.close()


def files() -> list[Path]:
    return sorted(paths.prefix_dir().rglob("*.kv"))


def saved(start: Callable[..., Engine], **options: object) -> list[int]:
    """Have a conversation cached by an engine that then ends; returns its answer."""
    engine = start(**options)
    drawn, stats = engine.ask()
    assert stats.cached_tokens == 0
    engine.close()
    assert files()
    return drawn


def test_a_conversation_goes_on_after_the_engine_ended(start: Callable[..., Engine]) -> None:
    drawn = saved(start)
    again, stats = start().ask()
    assert again == drawn
    assert stats.cached_disk_tokens == stats.cached_tokens == len(PROMPT) - 1


@pytest.mark.parametrize("how", ["cut", "flipped", "emptied", "later", "swapped"])
def test_a_damaged_prefix_is_a_miss(start: Callable[..., Engine], how: str) -> None:
    drawn = saved(start)
    for path in files():
        data = bytearray(path.read_bytes())
        if how == "cut":
            del data[len(data) // 2 :]
        elif how == "flipped":
            data[-100] ^= 4
        elif how == "emptied":
            data.clear()
        elif how == "later":
            data[15] = 2
        else:  # another conversation's bytes under this one's name
            data[:] = data[:200] + bytes(len(data) - 200)
        path.write_bytes(data)
    again, stats = start().ask()
    assert (again, stats.cached_tokens < len(PROMPT) - 1) == (drawn, True)
    assert "Cannot use the cached prefix" in paths.log_file().read_text()


def test_another_model_of_the_same_shape_gets_nothing_of_it(start: Callable[..., Engine], tmp_path: Path) -> None:
    drawn = saved(start)
    other = write_tiny(tmp_path / "other.gguf", "llama", seed=1)
    engine = start(other)
    answer, stats = engine.ask()
    assert stats.cached_tokens == 0
    assert answer != drawn
    engine.close()
    # The same file under another name is the same model, once its hash is known.
    copy = Path(shutil.copy(tmp_path / "tiny.gguf", tmp_path / "copy.gguf"))
    engine = start(copy)
    engine.ask()
    engine.close()
    assert start(copy).ask()[1].cached_disk_tokens == len(PROMPT) - 1


def test_a_cache_directory_that_is_deleted_while_running(start: Callable[..., Engine]) -> None:
    engine = start()
    drawn, _ = engine.ask()
    until(files)
    shutil.rmtree(paths.prefix_dir())
    assert engine.ask()[0] == drawn
    for number in range(3):
        engine.ask([*PROMPT, 50 + number], whose=f"another{number}")
    engine.close()
    assert start().ask()[0] == drawn


def test_a_cache_directory_that_cannot_be_written_to(start: Callable[..., Engine]) -> None:
    paths.prefix_dir().parent.mkdir(parents=True, exist_ok=True)
    paths.prefix_dir().write_text("in the way")
    engine = start()
    drawn, _ = engine.ask()
    time.sleep(0.5)
    assert engine.ask()[0] == drawn


def test_two_engines_on_one_conversation(start: Callable[..., Engine]) -> None:
    first, second = start(), start()
    answers: dict[int, list[list[int]]] = {0: [], 1: []}

    def talk(number: int, engine: Engine) -> None:
        tokens = list(PROMPT)
        for turn in range(6):
            drawn, _ = engine.ask(tokens)
            answers[number].append(drawn)
            tokens += [*drawn, 30 + turn]
            time.sleep(0.3)

    threads = [threading.Thread(target=talk, args=pair) for pair in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[0] == answers[1]


def test_nothing_is_written_for_nobody(start: Callable[..., Engine]) -> None:
    engine = start()
    engine.ask(whose="")
    time.sleep(0.5)
    engine.close()
    assert files() == []
    start(prefix_dir="").ask()
    assert files() == []


def test_a_talk_is_read_once_and_goes_with_its_conversation(cli: Cli, home: Path) -> None:
    long = "Remember these words: " + " ".join(f"word{n}" for n in range(150))
    first = json.loads(cli("ask", long, "--max-tokens", "5", "--json").stdout)
    assert first["stats"]["cached_tokens"] == 0
    second = json.loads(cli("ask", "-c", "Which?", "--max-tokens", "5", "--json").stdout)
    assert second["stats"]["cached_disk_tokens"] > 400
    assert second["stats"]["cached_tokens"] >= first["stats"]["prompt_tokens"] - 1
    [summary] = json.loads(cli("history", "list", "--json").stdout)
    assert files()
    assert cli("history", "delete", "--yes", summary["conversation"]["id"]).returncode == 0
    assert files() == []
    cli("ask", long, "--max-tokens", "5", "--ephemeral")
    assert files() == []
    cli("ask", long, "--max-tokens", "5", env=os.environ | {"EDGECHAT_PREFIX_CACHE": "false"})
    assert files() == []
    assert [p for p in (home / "cache").rglob("*") if p.is_file() and b"word149" in p.read_bytes()] == []


KILLED = """
import sys, random
from pathlib import Path
from edgechat.config import GREEDY
from edgechat.engine import protocol
from tests.faults.test_prefix import Engine
engine = Engine(Path(sys.argv[1]), prefix_disk_bytes=int(sys.argv[2]))
print(engine.client.pid, flush=True)
draw = random.Random(int(sys.argv[3]))
tokens = [1]
while True:
    tokens = tokens[: draw.randrange(1, len(tokens) + 1)] + [draw.randrange(10, 340) for _ in range(draw.randrange(5, 150))]
    engine.ask(tokens[:900])
    __import__("time").sleep(0.3 + draw.random() * 0.05)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_an_engine_killed_a_hundred_times_while_it_saves(model: Path) -> None:
    cap_bytes = 400_000
    draw = random.Random(1)
    for number in range(100):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(model), str(cap_bytes), str(number)], stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert child.stdout is not None
        engine_pid = int(child.stdout.readline())
        time.sleep(0.3 + draw.random() * 0.5)
        os.kill(engine_pid, 9)
        child.kill()
        child.wait()
        child.stdout.close()
        assert sum(p.stat().st_size for p in paths.prefix_dir().rglob("*") if p.is_file()) <= cap_bytes + 10_000
    engine, plain = Engine(model), Engine(model, prefix_dir="")
    n_cached = 0
    for path in files():
        with contextlib.suppress(Exception), path.open("rb") as file:
            from edgechat.prefix.segment_file import read_header

            tokens = [*read_header(file).tokens, 77]
            drawn, stats = engine.ask(tokens[:900])
            n_cached += stats.cached_tokens
            assert drawn == plain.ask(tokens[:900], whose="")[0]
    assert n_cached > 0
    engine.close()
    plain.close()
