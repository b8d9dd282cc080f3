"""Drafts in a real engine process: used, measured, kept with their conversation, and never in the way."""

from __future__ import annotations

import json
import random
import shutil
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
from edgechat.planner.plan import manual_plan
from edgechat.prefix.disk_tier import delete_conversation, folder_name
from edgechat.speculation.step_costs import SIZES
from tests.conftest import Cli
from tests.models import write_tiny
from tests.waiting import until

PROMPT = [1, *range(20, 120)]
Start = Callable[..., "Engine"]


class Engine:
    """An engine on a tiny model, which says the same again and again."""

    def __init__(self, model: Path, **options: Any) -> None:
        self.client = EngineClient()
        given: dict[str, Any] = {
            "n_ctx": 1024, "n_threads": 1, "prefix_ram_bytes": 1 << 20, "prefix_disk_bytes": 50 << 20,
            "draft_tokens": 5000,
        } | options  # fmt: skip
        directory = given.pop("prefix_dir", str(paths.prefix_dir()))
        plan = manual_plan(str(model), **given)
        self.client.load(protocol.Load(id=self.client.next_id(), plan=plan, prefix_dir=directory))

    def ask(self, tokens: list[int] = PROMPT, **options: Any) -> tuple[list[int], protocol.RequestFinished]:
        given: dict[str, Any] = {
            "max_tokens": 80,
            "ignore_eog": True,
            "sampling": GREEDY,
            "conversation": "talk",
        } | options
        request = protocol.Generate(id=self.client.next_id(), tokens=tokens, **given)
        drawn: list[int] = []
        for event in self.client.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                drawn += event.tokens
        assert isinstance(event, protocol.RequestFinished)
        return drawn, event


def let_drafts_pay() -> None:
    """Have every profile that is kept say that drafts cost nothing, so that no test depends on how busy the machine is."""
    profiles = list(paths.prefix_dir().glob("drafts-*/*.json"))
    assert profiles
    for path in profiles:
        kept = json.loads(path.read_bytes())
        kept["ratios"] = [{n: {"value": 1.0, "count": 1000} for n in SIZES} for _ in kept["ratios"]]
        path.write_text(json.dumps(kept))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    engines: list[Engine] = []
    models: dict[str, Path] = {}

    def make(kind: str = "llama", *, drafts_pay: bool = False, **options: Any) -> Engine:
        if kind not in models:
            models[kind] = write_tiny(tmp_path / f"{kind}.gguf", kind)  # type: ignore[arg-type]
        engines.append(Engine(models[kind], **options))
        if drafts_pay:
            engines[-1].ask(max_tokens=3, conversation="learning")
            engines[-1].client.close()
            let_drafts_pay()
            engines.append(Engine(models[kind], **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.client.close()


def kept(name: str = "talk") -> list[Path]:
    return list(paths.prefix_dir().glob(f"drafts-*/{folder_name(name)}/said.tokens"))


def test_a_text_that_repeats_itself_is_drafted(start: Start) -> None:
    engine = start(drafts_pay=True)
    forced = list(range(20, 60)) * 4
    said, turn = engine.ask(forced_tokens=forced, max_tokens=len(forced))
    assert said == forced
    stats = turn.stats
    assert stats.n_drafts > 0
    assert stats.n_drafted >= stats.n_accepted > 10
    assert stats.mean_acceptance_length == pytest.approx(1 + stats.n_accepted / stats.n_drafts)
    assert stats.speculation_gain > 0
    assert turn.context_tokens == len(PROMPT) + len(forced) - 1
    plain, turn = engine.ask(speculate=False, forced_tokens=forced, max_tokens=len(forced))
    assert plain == said
    assert (turn.stats.n_drafts, turn.stats.n_drafted, turn.stats.speculation_gain) == (0, 0, 1.0)
    assert turn.context_tokens == len(PROMPT) + len(forced) - 1


def test_the_context_can_be_gone_on_from_after_drafts(start: Start) -> None:
    engine = start("hybrid", n_rs_seq=7, drafts_pay=True)
    forced = [*range(20, 60), *range(20, 50), 90, *range(20, 58), 91]
    _, turn = engine.ask(forced_tokens=forced, max_tokens=len(forced))
    assert turn.stats.n_drafted > turn.stats.n_accepted > 0
    following = [*PROMPT, *forced[:-1], 70, 71, 72]
    cached, turn = engine.ask(following, max_tokens=12, speculate=False)
    assert turn.stats.cached_tokens == len(PROMPT) + len(forced) - 1
    cold, _ = engine.ask(following, max_tokens=12, speculate=False, bypass_cache=True, ephemeral=True)
    assert cached == cold


@pytest.mark.parametrize("kind", ["llama", "hybrid", "sliding"])
def test_an_answer_can_be_stopped_among_drafts(start: Start, kind: str) -> None:
    engine = start(kind, n_rs_seq=7, drafts_pay=True)
    forced = list(range(20, 40)) * 45
    for number in range(3):
        request = protocol.Generate(
            id=engine.client.next_id(), tokens=PROMPT, forced_tokens=forced, max_tokens=900, ignore_eog=True, bypass_cache=True,
        )  # fmt: skip
        said: list[int] = []
        for event in engine.client.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                said += event.tokens
                if len(said) > 100 + 50 * number:
                    engine.client.cancel(request.id)
        assert isinstance(event, protocol.RequestFinished)
        assert event.finish_reason == "cancelled"
        assert event.stats.n_accepted > 5
        assert said == forced[: len(said)]
        # Every word that was heard is in the context, but perhaps the last one.
        assert event.context_tokens - len(PROMPT) in (len(said) - 1, len(said))
        following = [*PROMPT, *said, 77]
        after, turn = engine.ask(following, max_tokens=5, speculate=False)
        assert turn.stats.cached_tokens >= len(PROMPT) + len(said) - 1 - (kind == "sliding") * 50
        assert after == engine.ask(following, max_tokens=5, speculate=False, bypass_cache=True)[0]


def test_costs_are_measured_while_nothing_is_asked(start: Start) -> None:
    engine = start()
    engine.ask(max_tokens=4, speculate=False)
    found: set[int] = set()
    for _ in range(10):
        time.sleep(1.5)  # asking ends what is measured
        found = set(engine.client.stats().step_costs)
        if found == set(SIZES):
            break
    assert found == set(SIZES)
    assert engine.client.stats().context_tokens == len(PROMPT) + 3  # nothing of that stayed
    engine.client.close()
    engine = start()  # it remembers
    engine.ask(max_tokens=4, speculate=False)
    assert set(engine.client.stats().step_costs) == set(SIZES)


def test_a_request_ends_what_is_measured(start: Start) -> None:
    """At whatever moment it comes, it is answered, and right."""
    engine = start()
    expected, _ = engine.ask(max_tokens=5, speculate=False)
    draw = random.Random(0)
    for _ in range(25):
        time.sleep(draw.uniform(0.2, 0.45))
        assert engine.ask(max_tokens=5, speculate=False)[0] == expected


def test_what_was_said_is_kept_with_its_conversation(start: Start) -> None:
    engine = start()
    said, _ = engine.ask(attached_texts=["a text that was attached to the message"])
    engine.ask(conversation="")
    engine.ask(conversation="other", ephemeral=True)
    until(kept)
    assert not kept("other")
    (path,) = kept()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    texts = [array("i", t).tolist() for t in msgspec.msgpack.decode(path.read_bytes()[19:])]
    assert said in texts
    assert len(texts) == 2
    assert len(list(paths.prefix_dir().glob("drafts-*/*/said.tokens"))) == 1
    engine.client.close()
    let_drafts_pay()
    engine = start()  # what one conversation said, another drafts from
    other, turn = engine.ask([1, *range(200, 230)], conversation="new", forced_tokens=said, max_tokens=len(said))
    assert other == said
    assert turn.stats.n_accepted > 0


def test_what_was_said_goes_with_its_conversation(start: Start) -> None:
    engine = start()
    engine.ask()
    until(kept)
    delete_conversation(paths.prefix_dir(), "talk")
    assert not kept()
    engine.ask(conversation="other")
    until(lambda: kept("other"))
    engine.client.close()
    assert not kept()


def test_no_disk_no_files(start: Start) -> None:
    engine = start(prefix_disk_bytes=0)
    engine.ask()
    time.sleep(0.6)
    engine.client.close()
    assert not paths.prefix_dir().exists()


@pytest.mark.parametrize("damage", ["cut", "foreign", "huge", "a folder"])
def test_damaged_files_are_no_trouble(start: Start, damage: str) -> None:
    engine = start()
    expected, _ = engine.ask(speculate=False)
    until(kept)
    engine.client.close()
    profiles = list(paths.prefix_dir().glob("drafts-*/*.json"))
    assert len(profiles) == 1
    for path in (*kept(), *profiles):
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
    shutil.rmtree(paths.prefix_dir())


# From the command line


def ask_json(cli: Cli, *arguments: str) -> dict[str, Any]:
    result = cli("ask", "--json", "--temperature", "0", "--max-tokens", "60", *arguments)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


LIST = "Repeat this list twice: apple, pear, plum, cherry, apple, pear, plum, cherry, apple, pear, plum, cherry."


def test_drafts_can_be_turned_off(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_json(cli, LIST)
    let_drafts_pay()
    assert ask_json(cli, LIST)["stats"]["n_drafted"] > 0
    plain = ask_json(cli, "--no-speculation", LIST)
    assert plain["stats"]["n_drafted"] == 0
    monkeypatch.setenv("EDGECHAT_STRICT", "true")
    conversation = plain["conversation_id"]
    strict = [ask_json(cli, "--conversation", conversation, "Again.") for _ in range(2)]
    assert all(a["stats"]["n_drafted"] == a["stats"]["cached_tokens"] == 0 for a in strict)
    first = [ask_json(cli, "--ephemeral", LIST)["text"] for _ in range(2)]
    assert first[0] == first[1] == plain["text"]


def test_an_attached_file_is_kept_for_drafts(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("The meeting is at nine. " * 20)
    name = ask_json(cli, "-a", str(file), "When is it?")["conversation_id"]
    (path,) = kept(name)
    texts = msgspec.msgpack.decode(path.read_bytes()[19:])
    assert max(len(t) // 4 for t in texts) > 100
    ask_json(cli, "--ephemeral", "-a", str(file), "When is it?")
    assert len(list(paths.prefix_dir().glob("drafts-*/*/said.tokens"))) == 1
    assert cli("history", "delete", name, "--yes").returncode == 0
    assert not kept(name)
