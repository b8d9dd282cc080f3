"""Prefix cache of a real engine: damaged files, deleted directories, concurrent and killed engines."""

from __future__ import annotations

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

import psutil
import pytest

from edgechat import paths
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.engine.generation import GenerationStats
from edgechat.engine.server import IDLE_DELAY_S
from edgechat.planner.load_plan import make_manual_plan
from edgechat.prefix.segment_file import InvalidSegmentError, read_header
from tests.conftest import Cli
from tests.faults.test_deaths import wait_for_end
from tests.fuzzing import shorten
from tests.models import write_tiny
from tests.waiting import delete_tree, until

PROMPT = [1, *range(20, 300)]


class Engine:
    """Engine process with a tiny model and the prefix cache in the cache directory."""

    def __init__(self, model: Path, **options: object) -> None:
        self.client = EngineClient()
        plan_options = {
            "n_ctx": 1024, "n_threads": 1, "prefix_ram_bytes": 1 << 20, "prefix_disk_bytes": 50 << 20,
        } | options  # fmt: skip
        directory = str(plan_options.pop("prefix_dir", paths.prefix_dir()))
        plan = make_manual_plan(str(model), **plan_options)  # type: ignore[arg-type]
        self.client.load(protocol.Load(id=self.client.next_id(), plan=plan, prefix_dir=directory))

    def ask(
        self, tokens: list[int] = PROMPT, conversation: str = "talk"
    ) -> tuple[list[int], GenerationStats]:  # fmt: skip
        """Generate six tokens and return them with the statistics."""
        request = protocol.Generate(
            id=self.client.next_id(), tokens=tokens, max_tokens=6, ignore_eog=True, sampling=GREEDY,
            conversation=conversation,
        )  # fmt: skip
        reply: list[int] = []
        for event in self.client.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                reply += event.tokens
        assert isinstance(event, protocol.RequestFinished)
        return reply, event.stats

    def close(self) -> None:
        self.client.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf", "llama")


@pytest.fixture
def start(model: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start_engine(path: Path = model, **options: object) -> Engine:
        engines.append(Engine(path, **options))
        return engines[-1]

    yield start_engine
    for engine in engines:
        engine.close()


def files() -> list[Path]:
    return sorted(paths.prefix_dir().rglob("*.kv"))


def read_tokens(path: Path) -> list[int]:
    with path.open("rb") as file:
        return read_header(file).tokens


def save_conversation(start: Callable[..., Engine]) -> list[int]:
    """Cache a conversation with an engine that exits; return its reply."""
    engine = start()
    reply, stats = engine.ask()
    assert stats.cached_tokens == 0
    # A busy machine may not save all tokens when the engine ends, for which it has little time.
    until(lambda: any(len(read_tokens(path)) >= len(PROMPT) - 1 for path in files()))
    engine.close()
    return reply


def test_prefix_is_restored_from_disk_after_an_engine_restart(start: Callable[..., Engine]) -> None:
    reply = save_conversation(start)
    second_reply, stats = start().ask()
    assert second_reply == reply
    assert stats.cached_disk_tokens == stats.cached_tokens == len(PROMPT) - 1


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "cut":
        del data[len(data) // 2 :]
    elif kind == "bit flipped":
        data[-100] ^= 4
    elif kind == "emptied":
        data.clear()
    elif kind == "later version":
        data[15] = 2
    else:
        data[:] = data[:200] + bytes(len(data) - 200)
    path.write_bytes(data)


def test_damaged_file_is_a_cache_miss(start: Callable[..., Engine]) -> None:
    kinds = ["cut", "bit flipped", "emptied", "later version", "data zeroed"]
    prompts = [[300 + i, *PROMPT[1:]] for i in range(len(kinds))]  # with different first tokens, and so no common file
    engine = start(n_ctx=2048)
    replies = [engine.ask(prompt, kind)[0] for prompt, kind in zip(prompts, kinds, strict=True)]
    until(lambda: len({read_tokens(path)[0] for path in files()}) == len(kinds))
    engine.close()
    names: dict[str, list[str]] = {kind: [] for kind in kinds}
    for path in files():
        kind = kinds[read_tokens(path)[0] - 300]
        names[kind].append(path.name)
        damage(path, kind)
    engine = start(n_ctx=2048)
    for prompt, kind, reply in zip(prompts, kinds, replies, strict=True):
        second_reply, stats = engine.ask(prompt, kind)
        assert (second_reply, stats.cached_tokens < len(prompt) - 1) == (reply, True), kind
        log = paths.log_file().read_text()
        assert any(f"Deleted the invalid cached prefix {name};" in log for name in names[kind]), kind


def test_prefix_of_other_weights_is_not_used_but_of_a_copy_is(start: Callable[..., Engine], tmp_path: Path) -> None:
    reply = save_conversation(start)
    other = write_tiny(tmp_path / "other.gguf", "llama", seed=1)
    engine = start(other)
    other_reply, stats = engine.ask()
    assert stats.cached_tokens == 0
    assert other_reply != reply
    engine.close()
    copy = Path(shutil.copy(tmp_path / "tiny.gguf", tmp_path / "copy.gguf"))
    engine = start(copy)
    engine.ask()  # the engine hashes the copy in an idle moment
    engine.close()
    assert start(copy).ask()[1].cached_disk_tokens == len(PROMPT) - 1


def test_engine_survives_deletion_of_the_cache_directory(start: Callable[..., Engine]) -> None:
    engine = start()
    reply, _ = engine.ask()
    until(files)
    delete_tree(paths.prefix_dir())  # the engine may save a prefix meanwhile
    assert engine.ask()[0] == reply
    for number in range(3):
        engine.ask([*PROMPT, 50 + number], conversation=f"another{number}")
    engine.close()
    assert start().ask()[0] == reply


def test_engine_works_with_an_unwritable_cache_directory(start: Callable[..., Engine]) -> None:
    paths.prefix_dir().parent.mkdir(parents=True, exist_ok=True)
    paths.prefix_dir().write_text("a file in the place of the directory")
    engine = start()
    reply, _ = engine.ask()
    assert engine.ask()[0] == reply
    engine.close()  # saves the prefix
    assert start().ask()[0] == reply


def test_two_engines_on_one_conversation_give_equal_replies(start: Callable[..., Engine]) -> None:
    first, second = start(), start()
    replies: dict[int, list[list[int]]] = {0: [], 1: []}

    def converse(number: int, engine: Engine) -> None:
        tokens = list(PROMPT)
        for turn in range(4):
            reply, _ = engine.ask(tokens)
            replies[number].append(reply)
            tokens += [*reply, 30 + turn]
            time.sleep(IDLE_DELAY_S)  # usually, the engine saves the prefix meanwhile

    threads = [threading.Thread(target=converse, args=pair) for pair in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies[0] == replies[1]


def test_requests_without_conversation_or_cache_directory_write_no_file(start: Callable[..., Engine]) -> None:
    engine = start()
    engine.ask(conversation="")
    engine.close()  # saves the prefixes of conversations
    assert files() == []
    start(prefix_dir="").ask()
    assert files() == []


def test_cli_restores_a_conversation_and_deletes_its_prefixes_with_it(cli: Cli, home: Path) -> None:
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


KILLED_CHILD = """
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
    tokens = tokens[: draw.randrange(1, len(tokens) + 1)]
    tokens += [draw.randrange(10, 340) for _ in range(draw.randrange(5, 150))]
    engine.ask(tokens[:900])
    __import__("time").sleep(0.3 + draw.random() * 0.05)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_engines_killed_while_saving_leave_only_valid_prefixes_under_the_cap(model: Path) -> None:
    cap_bytes = 400_000
    draw = random.Random(1)
    for number in range(shorten(100, 12)):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED_CHILD, str(model), str(cap_bytes), str(number)], stdout=subprocess.PIPE,
            text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert child.stdout is not None
        killed_engine = psutil.Process(int(child.stdout.readline()))
        time.sleep(0.3 + draw.random() * 0.5)
        killed_engine.kill()
        child.kill()
        child.wait()
        child.stdout.close()
        wait_for_end(killed_engine)
        assert sum(p.stat().st_size for p in paths.prefix_dir().rglob("*") if p.is_file()) <= cap_bytes + 10_000
    engine, uncached = Engine(model), Engine(model, prefix_dir="")
    n_cached = 0
    for path in files():
        try:
            with path.open("rb") as file:
                tokens = [*read_header(file).tokens, 77]
        except (OSError, InvalidSegmentError):  # the engine has deleted it, or it was killed while it wrote it
            continue
        reply, stats = engine.ask(tokens[:900])
        n_cached += stats.cached_tokens
        assert reply == uncached.ask(tokens[:900], conversation="")[0]
    assert n_cached > 0
    engine.close()
    uncached.close()
