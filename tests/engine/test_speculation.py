"""Speculative decoding with tiny random models: drafts, step-cost measurement, and the corpus on disk."""

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
from edgechat.engine import drafting, protocol, sequence
from edgechat.engine.client import EngineClient
from edgechat.engine.generation import DraftCounts
from edgechat.engine.server import IDLE_DELAY_S
from edgechat.hardware.contention import Timing
from edgechat.planner.load_plan import make_manual_plan
from edgechat.prefix.disk_tier import delete_conversation
from edgechat.prefix.shared_prefix import make_folder_name
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context
from edgechat.speculation.step_costs import STEP_SIZES, RunningMean
from tests.conftest import Cli
from tests.engine.text_models import SteppedModel
from tests.models import write_tiny
from tests.serve.client import CERTAIN_PROMPT
from tests.waiting import until

PROMPT = [1, *range(20, 120)]
OPTIONS: dict[str, Any] = {
    "n_ctx": 1024, "n_threads": 1, "prefix_ram_bytes": 1 << 20, "prefix_disk_bytes": 50 << 20, "draft_tokens": 5000
}  # fmt: skip
# Time in which an engine process saves its files and ends, even on a busy machine.
EXIT_TIMEOUT_S = 60
Open = Callable[..., SteppedModel]


@pytest.fixture
def open_model(native: Bindings, tmp_path: Path) -> Iterator[Open]:
    """Open tiny models in this process, which save their drafts in the cache folder of the test."""
    models: list[SteppedModel] = []

    def open_one(kind: str = "llama", *, free_drafts: bool = False, **options: Any) -> SteppedModel:
        path = tmp_path / f"{kind}.gguf"
        if not path.exists():
            write_tiny(path, kind)  # type: ignore[arg-type]
        models.append(SteppedModel(native, path, paths.prefix_dir(), **OPTIONS | options))
        if free_drafts:
            manager = models[-1].model._draft_manager
            assert manager is not None
            costs = manager._profile.costs
            costs.ratios = [{n: RunningMean(1.0, 1000) for n in STEP_SIZES} for _ in costs.ratios]
        return models[-1]

    yield open_one
    for model in models:
        if model.context.is_open:
            model.model.close()


def ask(model: SteppedModel, tokens: list[int] = PROMPT, **options: Any) -> tuple[list[int], protocol.RequestFinished]:
    output, final = model.ask(tokens, **{"max_tokens": 80, "conversation": "talk"} | options)
    assert isinstance(final, protocol.RequestFinished)
    return output, final


def work_until_idle(model: SteppedModel) -> None:
    """Do the idle work of the model, until none is left."""
    until(lambda: model.model.idle_step(lambda _is_allowed: None) is None)


def corpus_files(conversation: str = "talk") -> list[Path]:
    return list(paths.prefix_dir().glob(f"drafts-*/{make_folder_name(conversation)}/said.tokens"))


def read_step_costs(model: SteppedModel) -> set[int]:
    """Return the sizes of the steps whose costs are known."""
    return set(model.model._create_stats(0).step_costs)


def test_repetitive_text_is_drafted(open_model: Open) -> None:
    model = open_model(free_drafts=True)
    forced = list(range(20, 60)) * 4
    output, final = ask(model, forced_tokens=forced, max_tokens=len(forced))
    assert output == forced
    stats = final.stats
    assert stats.n_drafts > 0
    assert stats.n_drafted >= stats.n_accepted > 10
    assert stats.mean_acceptance_length == pytest.approx(1 + stats.n_accepted / stats.n_drafts)
    assert stats.speculation_gain > 0
    assert stats.drafts_by_source == {"context": DraftCounts(stats.n_drafted, stats.n_accepted)}
    assert final.context_tokens == len(PROMPT) + len(forced) - 1
    plain, final = ask(model, speculate=False, forced_tokens=forced, max_tokens=len(forced))
    assert plain == output
    assert (final.stats.n_drafts, final.stats.n_drafted, final.stats.speculation_gain) == (0, 0, 1.0)
    assert final.stats.drafts_by_source is msgspec.UNSET
    assert final.context_tokens == len(PROMPT) + len(forced) - 1


def test_prompt_continues_from_the_cache_after_drafts(open_model: Open) -> None:
    model = open_model("hybrid", n_rs_seq=7, free_drafts=True)
    forced = [*range(20, 60), *range(20, 50), 90, *range(20, 58), 91]
    _, final = ask(model, forced_tokens=forced, max_tokens=len(forced))
    assert final.stats.n_drafted > final.stats.n_accepted > 0
    following = [*PROMPT, *forced[:-1], 70, 71, 72]
    cached, final = ask(model, following, max_tokens=12, speculate=False)
    assert final.stats.cached_tokens == len(PROMPT) + len(forced) - 1
    assert model.find_difference(following, cached, bypass_cache=True) is None


@pytest.mark.parametrize("kind", ["llama", "hybrid", "sliding"])
def test_reply_can_be_cancelled_during_drafts(open_model: Open, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cancellation comes between two steps, and the others abort a step of several tokens."""
    monkeypatch.setattr(sequence, "FLUSH_INTERVAL_S", 0)  # this model generates 900 tokens in a few intervals
    model = open_model(kind, n_rs_seq=7, free_drafts=True)
    forced = list(range(20, 40)) * 45
    for number in range(3):
        request = model.start(PROMPT, forced_tokens=forced, max_tokens=900, bypass_cache=True)
        cancel_after(model, request, 100 + 50 * number, aborts=number > 0)
        output, final = model.tokens(request), model.final(request)
        assert final.finish_reason == "cancelled"
        assert final.stats.n_accepted > 5
        assert output == forced[: len(output)]
        # The context contains every token that was sent, except perhaps the last one.
        assert final.context_tokens - len(PROMPT) in (len(output) - 1, len(output))
        following = [*PROMPT, *output, 77]
        after, final = ask(model, following, max_tokens=5, speculate=False)
        assert final.stats.cached_tokens >= len(PROMPT) + len(output) - 1 - (kind == "sliding") * 50
        assert model.find_difference(following, after, bypass_cache=True) is None


def cancel_after(model: SteppedModel, request: int, n_tokens: int, *, aborts: bool) -> None:
    """Run a request, and cancel it after `n_tokens`; with `aborts`, abort a decode before, as the engine does."""
    has_aborted = not aborts

    def on_step(_step: int) -> set[int]:
        nonlocal has_aborted
        if len(model.tokens(request)) <= n_tokens:
            return set()
        if not has_aborted:
            has_aborted = True
            model.model.abort()
            return set()
        return {request}

    model.finish(on_step)


def test_step_costs_are_measured_in_idle_time(open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    time_decode = Context.time_decode
    monkeypatch.setattr(  # measurements that another program disturbs do not count
        Context, "time_decode", lambda *arguments: Timing(time_decode(*arguments).elapsed_s)
    )
    monkeypatch.setattr(drafting, "_MEASUREMENT_ROUND_S", 600)
    model = open_model()
    ask(model, max_tokens=4, speculate=False)
    assert not read_step_costs(model)
    work_until_idle(model)
    assert read_step_costs(model) == set(STEP_SIZES)
    # The measurement left nothing behind.
    assert model.model._create_stats(0).context_tokens == len(PROMPT) + 3
    model.model.close()
    model = open_model()  # the profile is saved
    ask(model, max_tokens=4, speculate=False)
    assert read_step_costs(model) == set(STEP_SIZES)


def test_output_is_deleted_with_its_conversation(open_model: Open) -> None:
    model = open_model()
    ask(model)
    work_until_idle(model)
    assert corpus_files()
    delete_conversation(paths.prefix_dir(), "talk")
    assert not corpus_files()
    ask(model, conversation="other")
    work_until_idle(model)
    assert corpus_files("other")
    model.model.close()
    assert not corpus_files()


def test_no_files_are_written_without_a_disk_budget(open_model: Open) -> None:
    model = open_model(prefix_disk_bytes=0)
    ask(model)
    work_until_idle(model)
    model.model.close()
    assert not paths.prefix_dir().exists()


@pytest.mark.parametrize("damage", ["cut", "foreign", "huge", "a folder"])
def test_damaged_files_are_ignored(open_model: Open, damage: str) -> None:
    model = open_model()
    expected, _ = ask(model, speculate=False)
    work_until_idle(model)
    model.model.close()
    [corpus], [profile] = corpus_files(), list(paths.prefix_dir().glob("drafts-*/*.json"))
    for path in (corpus, profile):
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
    model = open_model()
    assert model.find_difference(PROMPT, expected) is None
    assert len(ask(model)[0]) == 80
    work_until_idle(model)


# In a real engine process


class Engine:
    """An engine process with a tiny random model."""

    def __init__(self, model: Path) -> None:
        self.client = EngineClient()
        plan = make_manual_plan(str(model), **OPTIONS)
        self.client.load(protocol.Load(id=self.client.next_id(), plan=plan, prefix_dir=str(paths.prefix_dir())))

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
def start(tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    engines: list[Engine] = []
    model = write_tiny(tmp_path / "llama.gguf", "llama")

    def start_engine() -> Engine:
        engines.append(Engine(model))
        return engines[-1]

    yield start_engine
    for engine in engines:
        engine.client.close()


def test_request_interrupts_the_measurement(start: Callable[[], Engine]) -> None:
    """A request at a random moment of a measurement gets the correct reply."""
    engine = start()
    engine.ask(max_tokens=5, speculate=False)
    expected, _ = engine.ask(max_tokens=5, speculate=False)  # decodes the same batches as the requests below
    rng = random.Random(0)
    for _ in range(8):
        time.sleep(IDLE_DELAY_S + rng.uniform(-0.02, 0.08))
        assert engine.ask(max_tokens=5, speculate=False)[0] == expected


def test_output_is_saved_with_its_conversation(start: Callable[[], Engine]) -> None:
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
    engine.client.close(EXIT_TIMEOUT_S)
    make_drafts_free()
    engine = start()  # the output of one conversation is a draft for another
    other, final = engine.ask([1, *range(200, 230)], conversation="new", forced_tokens=output, max_tokens=len(output))
    assert other == output
    assert final.stats.n_accepted > 0


# With the command line


def ask_cli(cli: Cli, *arguments: str) -> dict[str, Any]:
    result = cli("ask", "--json", "--temperature", "0", "--max-tokens", "40", *arguments)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


LIST = "Repeat this list twice: apple, pear, plum, cherry, apple, pear, plum, cherry, apple, pear, plum, cherry."


def test_speculation_can_be_disabled(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    # The engine ends with the command, and saves its files only if it has the time.
    until(lambda: ask_cli(cli, LIST) and list(paths.prefix_dir().glob("drafts-*/*.json")), timeout_s=300)
    make_drafts_free()
    assert ask_cli(cli, LIST)["stats"]["n_drafted"] > 0
    plain = ask_cli(cli, "--no-speculation", LIST)
    assert plain["stats"]["n_drafted"] == 0
    monkeypatch.setenv("EDGECHAT_STRICT", "true")
    strict = [
        ask_cli(cli, *options, CERTAIN_PROMPT)
        for options in (("--conversation", plain["conversation_id"]), ("--ephemeral",), ("--ephemeral",))
    ]
    assert all(a["stats"]["n_drafted"] == a["stats"]["cached_tokens"] == 0 for a in strict)
    assert strict[1]["text"] == strict[2]["text"]


def test_attached_file_is_saved_for_drafts(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("The meeting is at nine. " * 20)
    names: list[str] = []

    def ask_and_save() -> list[Path]:
        names.append(ask_cli(cli, "-a", str(file), "When is it?")["conversation_id"])
        return corpus_files(names[-1])

    until(ask_and_save, timeout_s=300)  # the engine ends with the command, and saves the text only if it has the time
    (path,) = corpus_files(names[-1])
    texts = msgspec.msgpack.decode(path.read_bytes()[19:])
    assert max(len(t) // 4 for t in texts) > 100
    saved = list(paths.prefix_dir().glob("drafts-*/*/said.tokens"))
    ask_cli(cli, "--ephemeral", "-a", str(file), "When is it?")
    assert list(paths.prefix_dir().glob("drafts-*/*/said.tokens")) == saved
    assert cli("history", "delete", names[-1], "--yes").returncode == 0
    assert not corpus_files(names[-1])
