"""The models screen: rows before and after the measurement, quants, and downloads with a queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from edgechat import paths
from edgechat.catalogue import library
from edgechat.catalogue.download.request import RetryPolicy
from edgechat.config import Settings
from edgechat.models import resources, selection
from edgechat.planner.throughput import DeviceRates
from edgechat.tui.app import ChatApp
from edgechat.tui.screens import hub_models, model_groups
from edgechat.tui.screens.models import ModelsScreen
from tests.hub import FakeRepo, LocalHub
from tests.models import write_parrot
from tests.tui.app_driver import make_scripted_app, screen_text, session, shown_texts, wait_until_ready
from tests.tui.model_lists import REPO, details, highlighted_id, notice, option_ids, row_texts, set_machine
from tests.waiting import until_async

if TYPE_CHECKING:
    from textual.pilot import Pilot


@pytest.fixture(autouse=True)
def no_speed_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the speed measurement, which takes seconds and has its own tests."""
    monkeypatch.setattr(selection, "measure_speeds", lambda *_arguments: None)


async def open_models(app: ChatApp, pilot: Pilot[int]) -> None:
    """Open the models screen, and wait until the models of the catalogue are planned."""
    await wait_until_ready(app)
    await pilot.press("ctrl+o")
    await until_async(lambda: isinstance(app.screen, ModelsScreen) and "[" in details(app))


async def test_names_and_sizes_are_shown_before_the_models_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    may_plan = threading.Event()
    list_candidates = selection.list_installed_candidates

    def wait_and_list(entries: Any) -> Any:
        may_plan.wait(60)
        return list_candidates(entries)

    monkeypatch.setattr(selection, "list_installed_candidates", wait_and_list)
    set_machine(monkeypatch)
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        try:
            await wait_until_ready(app)
            await pilot.press("ctrl+o")
            await until_async(lambda: "starter" in option_ids(app) and "model:qwen3.5-4b" in option_ids(app))
            row = row_texts(app)["model:qwen3.5-4b"]
            assert row.split() == ["▸", "qwen3.5-4b:Q4_K_M", "2.74", "GB"]
            await pilot.press(*"qwen3.5-4b", "right")  # quants are known, too
            await until_async(lambda: row_texts(app).get("qwen3.5-4b:Q8_0", "").split() == ["Q8_0", "~4.95", "GB"])
        finally:
            may_plan.set()
        await until_async(lambda: len(row_texts(app)["qwen3.5-4b:Q4_K_M"].split()) > 6)
        assert highlighted_id(app) == "qwen3.5-4b:Q4_K_M"  # the plan recommends another quant than the highlighted one


async def test_plans_follow_the_options_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the load of a chosen model does."""
    plan_models, planned = model_groups.plan_models, []

    def record(settings: Settings, installed: Any) -> Any:
        planned.append((settings.draft_model, settings.budget))
        return plan_models(settings, installed)

    monkeypatch.setattr(model_groups, "plan_models", record)
    set_machine(monkeypatch)
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        current = session(app)
        current.settings = msgspec.structs.replace(current.settings, draft_model="off", budget="3GB")
        await open_models(app, pilot)
        assert set(planned) == {("off", "3GB")}


async def test_speeds_are_filled_in_after_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    is_measured = threading.Event()
    report: list[Callable[[str], object]] = []

    def measure(_cancellation: object, on_progress: Callable[[str], object]) -> None:
        report.append(on_progress)
        is_measured.wait(60)
        set_machine(monkeypatch)

    set_machine(monkeypatch, DeviceRates())
    monkeypatch.setattr(selection, "measure_speeds", measure)
    monkeypatch.setattr(resources, "load_measured_speeds", lambda: is_measured.is_set() or None)
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        try:
            await open_models(app, pilot)
            await until_async(lambda: bool(report))
            report[0]("Measuring the speed of cpu-haswell: 42 %")
            await until_async(lambda: "cpu-haswell: 42 %" in notice(app))
            await pilot.press(*"qwen3.5-4b", "down")
            assert row_texts(app)["model:qwen3.5-4b"].split()[-2:] == ["?", "?"]
            assert "speed unknown" in details(app)
        finally:
            is_measured.set()
        await until_async(lambda: "?" not in row_texts(app)["model:qwen3.5-4b"])
        await until_async(lambda: "tokens/s" in details(app))
        assert "a typical reply takes about" in details(app).lower()
        assert notice(app) == ""


async def test_model_unfolds_into_its_quants_with_memory_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_models(app, pilot)
        assert not [name for name in option_ids(app) if name.startswith("qwen3.5-4b:")]
        await pilot.press(*"qwen3.5-4b")
        await until_async(lambda: highlighted_id(app) == "model:qwen3.5-4b")
        folded = row_texts(app)["model:qwen3.5-4b"]
        assert folded.startswith("▸ qwen3.5-4b:")
        assert "Right and Left show and hide all" in details(app)
        await pilot.press("right")
        await until_async(lambda: "qwen3.5-4b:Q8_0" in option_ids(app))
        assert highlighted_id(app) == "model:qwen3.5-4b"
        rows = row_texts(app)
        assert rows["model:qwen3.5-4b"].startswith("▾ qwen3.5-4b ")
        names = [name for name in option_ids(app) if name.startswith("qwen3.5-4b:")]
        assert len(names) > 4
        recommended = [name for name in names if rows[name].startswith("* ")]
        assert recommended == [folded.split()[1]]
        q4 = rows["qwen3.5-4b:Q4_K_M"].removeprefix("* ").split()
        assert q4[:3] == ["Q4_K_M", "2.74", "GB"]
        assert q4[4] == "GB"  # memory
        assert float(q4[5]) > 1  # tokens/s
        assert q4[7] in {"s", "min"}
        await pilot.press(*["down"] * 3, "left")
        await until_async(lambda: "qwen3.5-4b:Q8_0" not in option_ids(app))
        assert highlighted_id(app) == "model:qwen3.5-4b"


async def test_filter_with_the_name_of_a_quant_shows_that_quant(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_models(app, pilot)
        await pilot.press(*"qwen3.5-4b:q8")
        await until_async(lambda: option_ids(app) == ["model:qwen3.5-4b", "qwen3.5-4b:Q8_0"])
        started: list[str] = []
        monkeypatch.setattr(app.downloads, "start", started.append)
        await pilot.press("down", "enter")
        assert started == ["qwen3.5-4b:Q8_0"]
        await pilot.press("up", "enter")
        assert started[1].startswith("qwen3.5-4b:")
        await pilot.press("ctrl+u", *"no such model")
        await until_async(lambda: "Enter searches Hugging Face" in details(app))


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 36)])
async def test_every_row_is_complete_at_the_size_of_the_screen(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    set_machine(monkeypatch)
    app = make_scripted_app()
    async with app.run_test(size=size) as pilot:
        await open_models(app, pilot)
        await pilot.press(*"gemma-4-e2b:")
        await until_async(lambda: "gemma-4-e2b:Q8_0" in option_ids(app))
        text = screen_text(app)
        columns = "file    memory tok/s  reply"
        assert columns in text
        assert all(len(row) <= size[0] for row in text.splitlines())
        if size[0] >= 80:
            labels = [row_texts(app)[name].split("  ")[-1].strip() for name in option_ids(app)]
            assert all(label in text for label in labels)


async def test_highlight_stays_on_its_model_while_rows_move(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    paths.models_dir().mkdir(parents=True)
    for name in ("aaa", "zzz"):
        write_parrot(paths.models_dir() / f"{name}.gguf", "Bird")
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        session(app).model_path = paths.models_dir() / "zzz.gguf"
        await pilot.press("ctrl+o")
        await until_async(lambda: isinstance(app.screen, ModelsScreen) and highlighted_id(app) == "zzz")
        screen = app.screen
        assert isinstance(screen, ModelsScreen)
        await until_async(lambda: "[" in details(app))
        assert highlighted_id(app) == "zzz"
        await pilot.press("ctrl+end")
        while not (chosen_id := highlighted_id(app) or "").startswith("model:"):
            await pilot.press("up")
        screen.on_models_screen_groups_ready(ModelsScreen.GroupsReady(screen._groups[::-1]))
        await pilot.pause()
        assert highlighted_id(app) == chosen_id
        row, first = screen.options.highlighted or 0, round(screen.options.scroll_y)
        assert first <= row < first + screen.options.scrollable_content_region.height
        group = next(g for g in screen._groups if f"model:{g.name}" == chosen_id)
        other = next(file for file in group.files if file is not group.recommended)
        changed = [g._replace(recommended=other) if g is group else g for g in screen._groups]
        screen.on_models_screen_groups_ready(ModelsScreen.GroupsReady(changed))
        assert highlighted_id(app) == group.recommended.name  # Enter downloads what was highlighted


async def test_marks_and_bar_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch, DeviceRates())
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_models(app, pilot)
        await pilot.press(*"gemma-4-e2b:")
        await until_async(lambda: "gemma-4-e2b:Q8_0" in option_ids(app))
        assert "+ copied weights" in details(app)
        assert "~ about" in details(app)
        assert " GB>" not in screen_text(app)
        assert " GB<" not in screen_text(app)
        assert "quality 0.0" not in details(app)


async def test_installed_quant_is_used_instead_of_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    folder = paths.models_dir() / "unsloth" / "Qwen3.5-4B-GGUF"
    folder.mkdir(parents=True)
    write_parrot(folder / "Qwen3.5-4B-Q4_K_M.gguf", "Bird")
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_models(app, pilot)
        await pilot.press(*"qwen3.5-4b:q4_k_m")
        await until_async(lambda: row_texts(app).get("qwen3.5-4b:Q4_K_M", "").endswith("installed"))
        used: list[str] = []
        monkeypatch.setattr(app.actions, "use_model", used.append)
        await until_async(lambda: option_ids(app)[-1] == "qwen3.5-4b:Q4_K_M")
        app.screen.query_one("OptionList").highlighted = len(app.screen.query_one("OptionList").options) - 1  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until_async(lambda: used == ["Qwen3.5-4B-Q4_K_M"])


async def test_repository_of_the_hub_unfolds_into_its_quants(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos[REPO].files["parrot-Q4_0.gguf"] = write_parrot(tmp_path / "small.gguf", "Small")
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_models(app, pilot)
        await pilot.press(*"parrot", "ctrl+s")
        await until_async(lambda: highlighted_id(app) == f"hub:{REPO}")
        await pilot.press("right")
        await until_async(lambda: f"{REPO}:Q8_0" in option_ids(app))
        await pilot.press("down", "down")
        await until_async(lambda: "Enter downloads this model" in details(app))
        await pilot.press("left")
        await until_async(lambda: highlighted_id(app) == f"hub:{REPO}" and f"{REPO}:Q8_0" not in option_ids(app))
        await pilot.press("right", "down")
        await until_async(lambda: (highlighted_id(app) or "").startswith(f"{REPO}:"))
        reference = highlighted_id(app) or ""
        await pilot.press("enter")
        await until_async(lambda: len(list(paths.models_dir().rglob("*.gguf"))) == 1)
        assert reference.partition(":")[2] in next(paths.models_dir().rglob("*.gguf")).name


def add_slow_models(hub: LocalHub, *names: str) -> list[str]:
    """Add repositories whose files arrive at 20 kB/s; return their names."""
    hub.faults.bytes_per_s = 20_000
    [file] = hub.repos[REPO].files.values()
    repos = [f"someone/{name}-GGUF" for name in names]
    for repo, name in zip(repos, names, strict=True):
        hub.repos[repo] = FakeRepo({f"{name}-Q8_0.gguf": file})
    return repos


async def test_downloads_wait_pause_resume_and_are_cancelled(hub: LocalHub) -> None:
    first, second, third = add_slow_models(hub, "one", "two", "three")
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_models(app, pilot)
        for repo in (first, second, third):
            app.downloads.start(repo)

        def row(repo: str) -> str:
            return row_texts(app).get(f"download:{repo}", "")

        await until_async(lambda: "kB/s" in row(first) and " left" in row(first) and "%" in row(first))
        assert "█" in row(first) or "░" in row(first)
        assert row(second).endswith("waiting")
        assert row(third).endswith("waiting")
        assert max(len(row(repo)) for repo in (first, second, third)) <= 75
        await pilot.press("ctrl+t")  # no row of a download is highlighted: the running one
        await until_async(lambda: row(first).endswith("paused") and "kB/s" in row(second))
        assert "%" in row(first)
        part_bytes = sum(part.stat().st_size for part in paths.models_dir().rglob("*.part"))
        assert part_bytes > 0
        app.screen.query_one("OptionList").highlighted = 3  # type: ignore[attr-defined]
        await until_async(lambda: highlighted_id(app) == f"download:{third}")
        await pilot.press("ctrl+x")
        await until_async(lambda: not row(third) and "Cancelled the download" in notice(app))
        app.screen.query_one("OptionList").highlighted = 1  # type: ignore[attr-defined]
        await until_async(lambda: "Enter or Ctrl+T resumes it" in details(app))
        await pilot.press("enter")
        await until_async(lambda: row(first).endswith("waiting"))
        hub.faults.bytes_per_s = 0
        await until_async(lambda: {"one-Q8_0", "two-Q8_0"} <= set(option_ids(app)))
        assert "three-Q8_0" not in option_ids(app)
        assert not any(i.startswith("download:") for i in option_ids(app))


async def test_running_download_is_visible_wherever_the_list_is_scrolled(hub: LocalHub) -> None:
    first, second = add_slow_models(hub, "one", "two")
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_models(app, pilot)
        assert "Ctrl+T: pause" not in screen_text(app)
        app.screen.query_one("OptionList").action_last()  # type: ignore[attr-defined]
        app.downloads.start(first)
        app.downloads.start(second)

        def last_row() -> str:
            return screen_text(app).splitlines()[-2]

        await until_async(lambda: "someone/one-GGUF" in last_row() and "kB/s" in last_row() and " left" in last_row())
        assert last_row().rstrip(" │").endswith("+1")
        assert "Ctrl+T: pause   Ctrl+X: cancel" in screen_text(app)
        await pilot.press("ctrl+t")
        await until_async(lambda: "someone/two-GGUF" in last_row())
        await pilot.press("ctrl+x")
        await until_async(lambda: "someone/one-GGUF" in last_row() and "paused" in last_row())
        await pilot.press("ctrl+x")
        await until_async(lambda: "GGUF" not in last_row() and "Ctrl+T: pause" not in screen_text(app))


async def test_paused_download_resumes_from_its_part_file(hub: LocalHub) -> None:
    [repo] = add_slow_models(hub, "one")
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_models(app, pilot)
        app.downloads.start(repo)
        await until_async(lambda: "kB/s" in row_texts(app).get(f"download:{repo}", ""))
        await pilot.press("ctrl+t")
        await until_async(lambda: not hub.open_bodies)
        n_requests = len(hub.file_requests())
        hub.faults.bytes_per_s = 0
        await pilot.press("escape")
        assert "paused" in app.download_status
        app.downloads.start(repo)
        await until_async(lambda: any("Installed" in text for text in shown_texts(app, "note")))
        ranges = [request[1] for request in hub.file_requests()[n_requests:]]
        assert ranges
        assert "bytes=0-" not in ranges
        assert app.download_status == ""


@pytest.mark.parametrize("fault", ["api", "file", "killed", "missing"])
async def test_failed_download_is_one_sentence_and_enter_tries_again(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from edgechat.catalogue import pull

    policy = RetryPolicy(max_tries=2, first_pause_s=0.01)
    download = pull.download_model
    monkeypatch.setattr(pull, "download_model", lambda *arguments: download(*arguments, policy))  # type: ignore[call-arg]
    faults: dict[str, dict[str, object]] = {
        "api": {"api_status": 503}, "file": {"statuses": [500] * 8}, "killed": {"drop_after": [5] * 8}, "missing": {}
    }  # fmt: skip
    for name, value in faults[fault].items():
        setattr(hub.faults, name, value)
    repo = "someone/nothing" if fault == "missing" else REPO
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_models(app, pilot)
        app.downloads.start(repo)
        await until_async(lambda: row_texts(app).get(f"download:{repo}", "").endswith("failed"))
        await until_async(lambda: len(notice(app)) > 20)
        assert notice(app)[0].isupper() or notice(app).startswith(("someone/", "parrot", "http"))
        assert "Traceback" not in notice(app)
        assert len(notice(app)) < 300
        if fault == "missing":
            await pilot.press("ctrl+x")
            await until_async(lambda: f"download:{repo}" not in option_ids(app))
            return
        hub.faults.api_status, hub.faults.statuses, hub.faults.drop_after = 0, [], []
        app.screen.query_one("OptionList").highlighted = 1  # type: ignore[attr-defined]
        await until_async(lambda: highlighted_id(app) == f"download:{repo}")
        await pilot.press("enter")
        await until_async(lambda: "parrot-Q8_0" in option_ids(app))


async def test_download_in_ascii_has_a_bar_of_ascii(hub: LocalHub) -> None:
    [repo] = add_slow_models(hub, "one")
    app = make_scripted_app(ascii=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_models(app, pilot)
        app.downloads.start(repo)
        await until_async(lambda: "-" * 5 in row_texts(app).get(f"download:{repo}", ""))
        assert "+ " in row_texts(app)["model:qwen3.5-4b"]


def test_status_names_the_running_download_and_counts_the_others() -> None:
    from edgechat.tui.downloads import Download, format_status

    progress: Any = SimpleNamespace(text="1 MB of 2 MB (50 %), 1 MB/s, 1 s left")
    downloads = [
        Download("a", "downloading", progress),
        Download("b"),
        Download("c", "paused"),
        Download("d", "failed"),
    ]
    assert format_status(downloads) == f"Downloading a: {progress.text}, 1 waiting, 1 paused"
    assert format_status(downloads[2:]) == "Download paused: c"
    assert format_status(downloads[3:]) == ""


async def test_models_screen_names_the_configured_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    app = make_scripted_app(keys={"models.hub": "f8", "models.unfold": "f9", "listing.leave": "f10"})
    async with app.run_test(size=(80, 24)) as pilot:
        await open_models(app, pilot)
        assert "Enter: use or get   F9: quants   F8: Hugging Face   F10: close" in screen_text(app)
        await pilot.press(*"qwen3.5-4b")
        await until_async(lambda: "F9 and Left show and hide all" in details(app))


async def test_installed_models_are_read_once_when_the_screen_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[str] = []
    scan = library.scan

    def count_and_scan(*arguments: Any) -> Any:
        scans.append("scan")
        return scan(*arguments)

    set_machine(monkeypatch)
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        monkeypatch.setattr(library, "scan", count_and_scan)
        await open_models(app, pilot)
        assert scans == ["scan"]


async def test_model_of_the_hub_is_planned_once(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []
    plan = hub_models.plan

    def count_and_plan(reference: str, settings: Any) -> Any:
        requests.append(reference)
        return plan(reference, settings)

    set_machine(monkeypatch)
    monkeypatch.setattr(hub_models, "plan", count_and_plan)
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_models(app, pilot)
        await pilot.press(*"parrot", "ctrl+s")
        await until_async(lambda: highlighted_id(app) == f"hub:{REPO}")
        await until_async(lambda: "Enter downloads this model" in details(app))
        shown = details(app)
        for _ in range(3):
            await pilot.press("up")
            await until_async(lambda: details(app) != shown)
            await pilot.press("down")
            await until_async(lambda: details(app) == shown)
        assert requests == [REPO]
