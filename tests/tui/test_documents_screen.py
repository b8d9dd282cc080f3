"""The documents screen: collections are added, used, updated, cancelled and removed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from textual.widgets import Input, OptionList, Static

from edgechat import paths
from edgechat.documents import indexing
from edgechat.documents.collection import CollectionInfo, DocumentProblem
from edgechat.documents.library import DocumentLibrary
from edgechat.tui.app import ChatApp
from tests.tui.app_driver import (
    is_open,
    make_scripted_app,
    option_texts,
    screen_text,
    session,
    title_text,
    wait_until_ready,
)
from tests.tui.test_snapshots import compare
from tests.waiting import until_async

if TYPE_CHECKING:
    from textual.pilot import Pilot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two documents, and one file that cannot be read."""
    result = tmp_path / "reports"
    result.mkdir()
    (result / "costs.md").write_text("# Costs\n\nEnergy costs 120 euros.\n")
    (result / "people.txt").write_text("Erika leads the office in Kiel.\n")
    (result / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    return result


async def open_screen(app: ChatApp, pilot: Pilot[int]) -> None:
    await wait_until_ready(app)
    app.pane.prompt.load("/docs")
    app.pane.prompt.action_send()
    await until_async(lambda: is_open(app, "DocumentsScreen"))
    await until_async(lambda: "Listing" not in shown(app, "#details"))
    await pilot.pause()


def shown(app: ChatApp, selector: str) -> str:
    return str(app.screen.query_one(selector, Static).content)


async def add(app: ChatApp, pilot: Pilot[int], path: Path, key: str = "a") -> None:
    await pilot.press(key)
    app.screen.query_one("#path", Input).value = str(path)
    await pilot.press("enter")


async def test_folder_is_added_and_used(folder: Path) -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        assert "There are no collections yet" in shown(app, "#details")
        await add(app, pilot, folder)
        await until_async(lambda: "up to date" in shown(app, "#notice") and option_texts(app))
        assert "2 added, 1 could not be read" in shown(app, "#notice")
        [row] = option_texts(app)
        assert row.startswith("☑ reports  2 documents, ")
        assert row.endswith("1 problem")
        assert f"From {folder}" in shown(app, "#details")
        assert "broken.pdf: " in shown(app, "#details")
        await until_async(lambda: session(app).settings.docs == ("reports",))


async def test_enter_changes_whether_the_conversation_uses_a_collection(folder: Path) -> None:
    add_collection("reports", folder)
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        assert option_texts(app)[0].startswith("☐ reports")
        await pilot.press("enter")
        await until_async(
            lambda: session(app).settings.docs == ("reports",) and option_texts(app)[0].startswith("☑ reports")
        )
        await pilot.press("enter")
        await until_async(lambda: session(app).settings.docs == ())


async def test_update_finds_new_changed_and_deleted_files(folder: Path) -> None:
    add_collection("reports", folder)
    (folder / "new.txt").write_text("A new file.")
    (folder / "costs.md").write_text("# Costs\n\nEnergy costs 130 euros.\n")
    (folder / "people.txt").unlink()
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        await pilot.press("u")
        await until_async(lambda: "up to date" in shown(app, "#notice"))
        assert "1 added, 1 changed, 1 removed, 1 could not be read" in shown(app, "#notice")


async def test_folder_is_added_to_the_highlighted_collection(folder: Path, tmp_path: Path) -> None:
    add_collection("reports", folder)
    more = tmp_path / "more"
    more.mkdir()
    (more / "more.txt").write_text("More text.")
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        await add(app, pilot, more, "A")
        await until_async(lambda: f"From {more}" in shown(app, "#details"))
        assert len(option_texts(app)) == 1


async def test_escape_cancels_the_update_and_then_closes_the_screen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_collection("reports", folder)

    def update_until_cancelled(*_arguments: object, **options: object) -> indexing.UpdateSummary:
        options["on_progress"](indexing.IndexProgress(phase="reading", n_files=5, n_files_done=2))  # type: ignore[operator]
        while not options["is_cancelled"]():  # type: ignore[operator]
            time.sleep(0.01)
        return indexing.UpdateSummary(is_cancelled=True)

    monkeypatch.setattr(indexing, "update", update_until_cancelled)
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        await pilot.press("u")
        await until_async(lambda: "reading, 2 of 5 files" in shown(app, "#notice"))
        await pilot.press("u")
        assert "reports is being updated" in shown(app, "#notice")
        await pilot.press("escape")
        await until_async(lambda: "cancelled; the next update continues" in shown(app, "#notice"))
        await pilot.press("escape")
        await until_async(lambda: not is_open(app, "DocumentsScreen"))


async def test_collection_is_removed_on_the_second_press(folder: Path) -> None:
    add_collection("reports", folder)
    app = make_scripted_app(docs=("reports",))
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        await pilot.press("d")
        assert "Press d again to remove the collection reports" in shown(app, "#notice").replace("D again", "d again")
        await pilot.press("d")
        await until_async(lambda: not option_texts(app))
        assert DocumentLibrary(paths.documents_dir()).names() == []
        await until_async(lambda: session(app).settings.docs == ())
        assert count_files(folder) == 3  # the files stay


async def test_removal_highlights_the_collection_in_its_place(folder: Path) -> None:
    for name in ("a", "b", "c"):
        add_collection(name, folder)
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        options = app.screen.query_one(OptionList)
        await pilot.press("down", "d", "d")
        await until_async(lambda: len(option_texts(app)) == 2)
        assert " c " in option_texts(app)[options.highlighted or 0]
        await pilot.press("d", "d")  # the last one
        await until_async(lambda: len(option_texts(app)) == 1)
        assert options.highlighted == 0
        assert DocumentLibrary(paths.documents_dir()).names() == ["a"]


async def test_missing_path_is_named_and_escape_closes_the_input() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        await add(app, pilot, Path("/no/such/folder"))
        assert "there is no such file or folder" in shown(app, "#notice")
        await pilot.press("escape")
        assert not app.screen.query_one("#path").display
        assert is_open(app, "DocumentsScreen")


async def test_path_is_completed(folder: Path) -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        await pilot.press("a", *str(folder)[:-3])
        path_input = app.screen.query_one("#path", Input)
        await until_async(lambda: path_input._suggestion == f"{folder}/")
        await pilot.press("tab")
        assert path_input.value == f"{folder}/"


async def test_damaged_collection_is_listed_with_its_reason(folder: Path) -> None:
    add_collection("reports", folder)
    file = DocumentLibrary(paths.documents_dir()).find_path("reports")
    file.write_bytes(b"damaged" * 1000)
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        assert option_texts(app)[0].endswith("needs an update")
        assert "damaged" in shown(app, "#details")


@pytest.mark.parametrize("size", [(80, 24), (120, 36)])
async def test_documents_snapshots(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    infos = [
        CollectionInfo(
            name="manuals", sources=("/home/ada/manuals",), n_documents=212, n_chunks=18_340, n_bytes=96_000_000,
            n_embedded=18_340, embedding_model="all-MiniLM-L6-v2",
        ),
        CollectionInfo(
            name="reports", sources=("/home/ada/reports", "/home/ada/notes.md"), n_documents=12, n_chunks=340,
            n_bytes=4_500_000,
            problems=(DocumentProblem("scan.pdf", "The pages are pictures without text."),
                      DocumentProblem("old.docx", "The file is encrypted.")),
        ),
    ]  # fmt: skip
    monkeypatch.setattr(DocumentLibrary, "list", lambda _library: infos)
    app = make_scripted_app(docs=("reports",))
    async with app.run_test(size=size) as pilot:
        await open_screen(app, pilot)
        await pilot.press("down")
        await pilot.pause()
        assert "2 files could not be read" in screen_text(app)
        await compare(app, f"documents-{size[0]}x{size[1]}")


async def test_damaged_collection_is_used_only_after_an_update(folder: Path) -> None:
    add_collection("reports", folder)
    (paths.documents_dir() / "reports.db").write_bytes(b"damaged" * 1000)
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        assert option_texts(app) == ["☐ reports  needs an update"]
        assert f"From {folder}" in shown(app, "#details")
        assert "The collection reports cannot be used" in shown(app, "#details")
        await pilot.press("enter")
        await until_async(lambda: shown(app, "#notice") == "reports cannot be used before an update. Press u.")
        assert session(app).settings.docs == ()
        await pilot.press("u")
        await until_async(lambda: "up to date" in shown(app, "#notice") and "2 documents" in option_texts(app)[0])
        await pilot.press("enter")
        await until_async(lambda: session(app).settings.docs == ("reports",))


def add_collection(name: str, folder: Path) -> None:
    with DocumentLibrary(paths.documents_dir()).create(name) as collection:
        indexing.update(collection, add=[folder])


def count_files(folder: Path) -> int:
    return len(list(folder.iterdir()))


async def test_title_line_names_the_documents(folder: Path) -> None:
    add_collection("reports", folder)
    app = make_scripted_app(docs=("reports",))
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        await until_async(lambda: "documents: reports" in title_text(app))


async def test_folder_without_documents_makes_no_collection(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot)
        await add(app, pilot, tmp_path / "empty")
        await until_async(lambda: "was not added, because there are no documents" in shown(app, "#notice"))
        assert DocumentLibrary(paths.documents_dir()).names() == []
        await add(app, pilot, tmp_path / "empty")  # the failed update has ended
        await until_async(lambda: "was not added" in shown(app, "#notice"))
