"""Speculative decoding in a real engine process: drafts, step-cost measurement, and the corpus on disk."""

from __future__ import annotations

import json
import random
import stat
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgechat import paths
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.planner.load_plan import make_manual_plan
from edgechat.prefix.disk_tier import delete_conversation
from edgechat.prefix.shared_prefix import make_folder_name
from edgechat.speculation.step_costs import STEP_SIZES
from tests.conftest import Cli
from tests.models import write_tiny
from tests.serve.client import CERTAIN_PROMPT
from tests.waiting import delete_tree, until

PROMPT = [1, *range(20, 120)]
Start = Callable[..., "Engine"]


class Engine:
    """An engine process with a tiny random model, which tends to repeat itself."""

    def __init__(self, model: Path, **options: Any) -> None:
        self.client = EngineClient()
        fields: dict[str, Any] = {
            "n_ctx": 1024, "n_threads": 1, "prefix_ram_bytes": 1 << 20, "prefix_disk_bytes": 50 << 20,
            "draft_tokens": 5000,
        } | options  # fmt: skip
        directory = fields.pop("prefix_dir", str(paths.prefix_dir()))
        plan = make_manual_plan(str(model), **fields)
        self.client.load(protocol.Load(id=self.client.next_id(), plan=plan, prefix_dir=directory))

    def ask(self, tokens: list[int] = PROMPT, **options: Any) -> tuple[list[int], protocol.RequestFinished]:
        fields: dict[str, Any] = {
            "max_tokens": 80,
            "ignore_eog": True,
            "sampling": GREEDY,
            "conversation": "talk",
        } | options
        request = protocol.Generate(id=self.client.next_id(), tokens=tokens, **fields)
        output: list[int] = []
        for event in self.client.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                output += event.tokens
        assert isinstance(event, protocol.RequestFinished)
        return output, event


def make_drafts_free() -> None:
    """Set the step costs in all saved profiles to one, so that no test depends on the load of the machine."""
    profiles = list(paths.prefix_dir().glob("drafts-*/*.json"))
    assert profiles
    for path in profiles:
        saved = json.loads(path.read_bytes())
        mean = {"value": 1.0, "count": 1000, "measured_at": time.time()}
        saved["ratios"] = [dict.fromkeys(STEP_SIZES, mean) for _ in saved["ratios"]]
        path.write_text(json.dumps(saved))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    engines: list[Engine] = []
    models: dict[str, Path] = {}

    def start_engine(kind: str = "llama", *, free_drafts: bool = False, **options: Any) -> Engine:
        if kind not in models:
            models[kind] = write_tiny(tmp_path / f"{kind}.gguf", kind)  # type: ignore[arg-type]
        engines.append(Engine(models[kind], **options))
        if free_drafts:
            engines[-1].ask(max_tokens=3, conversation="warm-up")
            engines[-1].client.close()
            make_drafts_free()
            engines.append(Engine(models[kind], **options))
        return engines[-1]

    yield start_engine
    for engine in engines:
        engine.client.close()


def corpus_files(conversation: str = "talk") -> list[Path]:
    return list(paths.prefix_dir().glob(f"drafts-*/{make_folder_name(conversation)}/said.tokens"))


def test_repetitive_text_is_drafted(start: Start) -> None:
    engine = start(free_drafts=True)
    forced = list(range(20, 60)) * 4
    output, final = engine.ask(forced_tokens=forced, max_tokens=len(forced))
    assert output == forced
    stats = final.stats
    assert stats.n_drafts > 0
    assert stats.n_drafted >= stats.n_accepted > 10
    assert stats.mean_acceptance_length == pytest.approx(1 + stats.n_accepted / stats.n_drafts)
    assert stats.speculation_gain > 0
    assert final.context_tokens == len(PROMPT) + len(forced) - 1
    plain, final = engine.ask(speculate=False, forced_tokens=forced, max_tokens=len(forced))
    assert plain == output
    assert (final.stats.n_drafts, final.stats.n_drafted, final.stats.speculation_gain) == (0, 0, 1.0)
    assert final.context_tokens == len(PROMPT) + len(forced) - 1


def test_prompt_continues_from_the_cache_after_drafts(start: Start) -> None:
    engine = start("hybrid", n_rs_seq=7, free_drafts=True)
    forced = [*range(20, 60), *range(20, 50), 90, *range(20, 58), 91]
    _, final = engine.ask(forced_tokens=forced, max_tokens=len(forced))
    assert final.stats.n_drafted > final.stats.n_accepted > 0
    following = [*PROMPT, *forced[:-1], 70, 71, 72]
    cached, final = engine.ask(following, max_tokens=12, speculate=False)
    assert final.stats.cached_tokens == len(PROMPT) + len(forced) - 1
    cold, _ = engine.ask(following, max_tokens=12, speculate=False, bypass_cache=True, ephemeral=True)
    assert cached == cold


@pytest.mark.parametrize("kind", ["llama", "hybrid", "sliding"])
def test_reply_can_be_cancelled_during_drafts(start: Start, kind: str) -> None:
    engine = start(kind, n_rs_seq=7, free_drafts=True)
    forced = list(range(20, 40)) * 45
    for number in range(3):
        request = protocol.Generate(
            id=engine.client.next_id(), tokens=PROMPT, forced_tokens=forced, max_tokens=900, ignore_eog=True,
            bypass_cache=True,
        )  # fmt: skip
        output: list[int] = []
        for event in engine.client.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                output += event.tokens
                if len(output) > 100 + 50 * number:
                    engine.client.cancel(request.id)
        assert isinstance(event, protocol.RequestFinished)
        assert event.finish_reason == "cancelled"
        assert event.stats.n_accepted > 5
        assert output == forced[: len(output)]
        # The context contains every token that was sent, except perhaps the last one.
        assert event.context_tokens - len(PROMPT) in (len(output) - 1, len(output))
        following = [*PROMPT, *output, 77]
        after, final = engine.ask(following, max_tokens=5, speculate=False)
        assert final.stats.cached_tokens >= len(PROMPT) + len(output) - 1 - (kind == "sliding") * 50
        assert after == engine.ask(following, max_tokens=5, speculate=False, bypass_cache=True)[0]


def test_step_costs_are_measured_in_idle_time(start: Start) -> None:
    engine = start()
    engine.ask(max_tokens=4, speculate=False)
    sizes: set[int] = set()
    for _ in range(60):  # a busy machine disturbs most measurements
        time.sleep(1.5)  # a request interrupts the measurement
        sizes = set(engine.client.stats().step_costs)
        if sizes == set(STEP_SIZES):
            break
    assert sizes == set(STEP_SIZES)
    assert engine.client.stats().context_tokens == len(PROMPT) + 3  # the measurement left nothing behind
    engine.client.close()
    engine = start()  # the profile is saved
    engine.ask(max_tokens=4, speculate=False)
    assert set(engine.client.stats().step_costs) == set(STEP_SIZES)


def test_request_interrupts_the_measurement(start: Start) -> None:
    """A request at a random moment of a measurement gets the correct reply."""
    engine = start()
    expected, _ = engine.ask(max_tokens=5, speculate=False)
    rng = random.Random(0)
    for _ in range(25):
        time.sleep(rng.uniform(0.2, 0.45))
        assert engine.ask(max_tokens=5, speculate=False)[0] == expected


def test_output_is_saved_with_its_conversation(start: Start) -> None:
    engine = start()
    output, _ = engine.ask(attached_texts=["a text that was attached to the message"])
    engine.ask(conversation="")
    engine.ask(conversation="other", ephemeral=True)
    until(corpus_files)
    assert not corpus_files("other")
    (path,) = corpus_files()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    texts = [array("i", t).tolist() for t in msgspec.msgpack.decode(path.read_bytes()[19:])]
    assert output in texts
    assert len(texts) == 2
    assert len(list(paths.prefix_dir().glob("drafts-*/*/said.tokens"))) == 1
    engine.client.close()
    make_drafts_free()
    engine = start()  # the output of one conversation is a draft for another
    other, final = engine.ask([1, *range(200, 230)], conversation="new", forced_tokens=output, max_tokens=len(output))
    assert other == output
    assert final.stats.n_accepted > 0


def test_output_is_deleted_with_its_conversation(start: Start) -> None:
    engine = start()
    engine.ask()
    until(corpus_files)
    delete_conversation(paths.prefix_dir(), "talk")
    assert not corpus_files()
    engine.ask(conversation="other")
    until(lambda: corpus_files("other"))
    engine.client.close()
    assert not corpus_files()


def test_no_files_are_written_without_a_disk_budget(start: Start) -> None:
    engine = start(prefix_disk_bytes=0)
    engine.ask()
    time.sleep(0.6)
    engine.client.close()
    assert not paths.prefix_dir().exists()


@pytest.mark.parametrize("damage", ["cut", "foreign", "huge", "a folder"])
def test_damaged_files_are_ignored(start: Start, damage: str) -> None:
    engine = start()
    expected, _ = engine.ask(speculate=False)
    until(lambda: corpus_files() and list(paths.prefix_dir().glob("drafts-*/*.json")))
    engine.client.close()
    profiles = list(paths.prefix_dir().glob("drafts-*/*.json"))
    assert len(profiles) == 1
    for path in (*corpus_files(), *profiles):
        if damage == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif damage == "foreign":
            path.write_bytes(random.Random(0).randbytes(5000))
        elif damage == "huge":
            with path.open("r+b") as file:
                file.truncate(1 << 34)
        else:
            path.unlink()
            path.mkdir()
    engine = start()
    assert engine.ask()[0][:20] == expected[:20]
    engine.client.close()
    delete_tree(paths.prefix_dir())


# With the command line


def ask_cli(cli: Cli, *arguments: str) -> dict[str, Any]:
    result = cli("ask", "--json", "--temperature", "0", "--max-tokens", "60", *arguments)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


LIST = "Repeat this list twice: apple, pear, plum, cherry, apple, pear, plum, cherry, apple, pear, plum, cherry."


def test_speculation_can_be_disabled(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_cli(cli, LIST)
    make_drafts_free()
    assert ask_cli(cli, LIST)["stats"]["n_drafted"] > 0
    plain = ask_cli(cli, "--no-speculation", LIST)
    assert plain["stats"]["n_drafted"] == 0
    certain = ask_cli(cli, CERTAIN_PROMPT)
    monkeypatch.setenv("EDGECHAT_STRICT", "true")
    conversation = plain["conversation_id"]
    strict = [ask_cli(cli, "--conversation", conversation, "Again.") for _ in range(2)]
    assert all(a["stats"]["n_drafted"] == a["stats"]["cached_tokens"] == 0 for a in strict)
    strict_texts = [ask_cli(cli, "--ephemeral", CERTAIN_PROMPT)["text"] for _ in range(2)]
    assert strict_texts[0] == strict_texts[1] == certain["text"]


def test_attached_file_is_saved_for_drafts(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("The meeting is at nine. " * 20)
    name = ask_cli(cli, "-a", str(file), "When is it?")["conversation_id"]
    (path,) = corpus_files(name)
    texts = msgspec.msgpack.decode(path.read_bytes()[19:])
    assert max(len(t) // 4 for t in texts) > 100
    ask_cli(cli, "--ephemeral", "-a", str(file), "When is it?")
    assert len(list(paths.prefix_dir().glob("drafts-*/*/said.tokens"))) == 1
    assert cli("history", "delete", name, "--yes").returncode == 0
    assert not corpus_files(name)
