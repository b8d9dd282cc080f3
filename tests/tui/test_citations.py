"""Citations in the conversation, and the panel with the cited passages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from rich.text import Text
from textual.widgets import Static

from edgechat.chat.session import Session
from edgechat.documents.passages import PassageSet, SearchedDocuments
from edgechat.store import open_ephemeral_store
from edgechat.tui.app import ChatApp
from edgechat.tui.messages import CopyRequested
from edgechat.tui.screens.passages import PassagesScreen
from tests.tui.app_driver import (
    is_open,
    make_scripted_app,
    option_texts,
    problem_text,
    screen_text,
    shown_messages,
    wait_until_ready,
)
from tests.tui.documents_conversation import FOUND, PASSAGES, REPLY, save_cited_conversation
from tests.tui.test_snapshots import compare
from tests.waiting import until_async

if TYPE_CHECKING:
    from textual.pilot import Pilot


def make_cited_app(passages: PassageSet = FOUND, reply: str = REPLY, *, ascii: bool = False) -> ChatApp:  # noqa: A002
    store = open_ephemeral_store()
    return make_scripted_app(store=store, conversation=save_cited_conversation(store, passages, reply), ascii=ascii)


async def open_reply(app: ChatApp, pilot: Pilot[int]) -> None:
    """Wait for the conversation, and put the cursor on its reply."""
    await wait_until_ready(app)
    await until_async(lambda: shown_messages(app))
    await pilot.press("escape")
    await until_async(lambda: app.pane.transcript.has_focus and app.pane.status_line.context_tokens)


async def click_text(app: ChatApp, pilot: Pilot[int], text: str) -> None:
    rows = screen_text(app).split("\n")
    y = next(n for n, row in enumerate(rows) if text in row)
    await pilot.click(offset=(rows[y].index(text), y))


def panel_title(app: ChatApp) -> str:
    return str(app.screen.query_one("Vertical").border_title)


def panel_text(app: ChatApp, selector: str = "#text") -> str:
    return str(app.screen.query_one(selector, Static).content)


async def test_citations_are_links_with_a_mark_after_doubtful_ones() -> None:
    app = make_cited_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        text = screen_text(app)
        assert "in 2024 [1], and" in text
        assert "150 thousand euros [2]⚠." in text
        assert "Mustermann [1,3]." in text
        assert "80 thousand [2]" in text
        assert "about 2025 [9]⚠." in text
        assert "a[1] stays" in text
        assert "▸ 3 passages of 3 documents, searched by keywords" in text
        assert "vnd.edgechat" not in text
        assert "documents," not in text.replace("3 documents,", "")


async def test_citations_in_ascii() -> None:
    app = make_cited_app(ascii=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        assert "euros [2]!." in screen_text(app)


async def test_click_on_a_citation_opens_its_passage() -> None:
    app = make_cited_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        await click_text(app, pilot, "[2]⚠")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        assert panel_title(app).startswith("Passage 2 (2 of 7)")
        place = panel_text(app, "#place")
        assert "notes/costs.md, lines 40-44" in place
        assert "⚠ not in the passage: 150" in place
        assert "number 2 by keywords" in place
        assert "42 - Energy: 120 thousand euros" in panel_text(app)
        await pilot.press("escape")
        await until_async(lambda: not is_open(app, "PassagesScreen"))


async def test_click_on_a_citation_in_a_table_opens_its_passage() -> None:
    app = make_cited_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        rows = screen_text(app).split("\n")
        y = next(n for n, row in enumerate(rows) if "80 thousand" in row)
        await pilot.click(offset=(rows[y].index("[2]") + 1, y))
        await until_async(lambda: is_open(app, "PassagesScreen"))
        assert "(6 of 7)" in panel_title(app)


async def test_keys_open_and_step_through_the_cited_passages() -> None:
    app = make_cited_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("o")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        assert panel_title(app).startswith("Passage 1 (1 of 7)")
        assert "annual-report.pdf, page 12" in panel_text(app, "#place")
        assert "similarity 0.71, relevance 0.93" in panel_text(app, "#place")
        await pilot.press("left")
        assert panel_title(app).startswith("Passage 9 (7 of 7)")
        assert "no such passage: 9" in panel_text(app, "#place")
        await pilot.press("o", "y")  # nothing to open or to copy
        await pilot.press("right", "right")
        assert panel_title(app).startswith("Passage 2 (2 of 7)")


async def test_line_of_a_question_opens_the_list_of_its_passages() -> None:
    app = make_cited_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        await click_text(app, pilot, "3 passages of 3 documents")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        assert option_texts(app)[1] == "[2] notes/costs.md, lines 40-44  Costs"
        await pilot.press("down", "down")
        assert "Erika Mustermann" in panel_text(app)
        await click_text(app, pilot, "[2] notes/costs.md")
        assert "Energy" in panel_text(app)


async def test_question_at_the_cursor_opens_its_list() -> None:
    app = make_cited_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("up", "o")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        assert len(option_texts(app)) == 3


async def test_reply_without_citations_opens_the_passages_of_its_question() -> None:
    app = make_cited_app(reply="I cannot tell.")
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("o")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        assert len(option_texts(app)) == 3


@pytest.mark.parametrize(
    ("passages", "line"),
    [
        (msgspec.structs.replace(FOUND, is_whole=True, query=""), "▸ 3 documents, read whole"),
        (
            msgspec.structs.replace(FOUND, passages=()),
            "▸ Nothing found in 12 documents (340 passages) by keywords",
        ),
        (
            msgspec.structs.replace(
                FOUND, searched=SearchedDocuments(n_documents=1, n_chunks=3, n_embedded=3, embedding_model="MiniLM")
            ),
            "▸ 3 passages of 3 documents, searched by keywords and meaning",
        ),
    ],
)
async def test_line_below_a_question_says_what_was_read_or_searched(passages: PassageSet, line: str) -> None:
    app = make_cited_app(passages)
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        assert line in screen_text(app)


async def test_message_without_passages_says_so() -> None:
    app = make_cited_app(msgspec.structs.replace(FOUND, passages=()))
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("o")
        await until_async(lambda: problem_text(app))
        assert (
            problem_text(app)
            == "This message has no passages of documents. Choose documents with /docs, and ask again."
        )


async def test_panel_is_beside_the_conversation_on_a_wide_screen() -> None:
    app = make_cited_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("o")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        await until_async(lambda: app.pane.transcript.size.width <= 60)
        await pilot.pause()
        assert "How did revenue and costs develop?" in screen_text(app)
        await pilot.resize_terminal(80, 24)
        await until_async(lambda: app.screen.query_one("Vertical").size.width > 70)
        await pilot.press("escape")
        await until_async(lambda: app.pane.transcript.size.width >= 78)


async def test_passage_is_copied_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[CopyRequested] = []
    app = make_cited_app()
    monkeypatch.setattr(ChatApp, "on_copy_requested", lambda _app, message: copied.append(message))
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("o")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        await pilot.press("y")
        await until_async(lambda: copied)
        assert copied[0].text == f"{PASSAGES[0].text}\n\n(2024/annual-report.pdf, page 12)"
        await pilot.press("enter")  # a document without lines
        await until_async(lambda: len(copied) == 2)
        assert copied[1].text == "/home/ada/reports/2024/annual-report.pdf"


async def test_document_opens_at_the_lines_of_the_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    app = make_cited_app()
    monkeypatch.setattr(app, "_open_file", lambda path, line: opened.append((str(path), line)))
    async with app.run_test(size=(100, 30)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("o", "right")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        await pilot.press("enter")
        await until_async(lambda: opened)
        assert opened == [("/home/ada/reports/notes/costs.md", 40)]


async def test_terms_of_the_sentence_are_highlighted_and_scrolled_into_view() -> None:
    lines = [f"line {n} of the text" for n in range(200)]
    lines[150] = "Here is Nordlicht, with 4711 items."
    long = msgspec.structs.replace(PASSAGES[0], text="\n".join(lines))
    app = make_cited_app(msgspec.structs.replace(FOUND, passages=(long,)), "There are 4711 at Nordlicht [1].")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("o")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        await until_async(lambda: "Here is Nordlicht, with 4711 items." in screen_text(app))
        text = app.screen.query_one("#text", Static).content
        assert isinstance(text, Text)
        assert [text.plain[span.start : span.end] for span in text.spans] == ["Nordlicht", "4711"]


async def test_long_passage_scrolls() -> None:
    long = msgspec.structs.replace(PASSAGES[0], text="\n".join(f"line {n}" for n in range(200)))
    app = make_cited_app(msgspec.structs.replace(FOUND, passages=(long,)), "It is [1].")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("o")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        await pilot.press("pagedown")
        await until_async(lambda: "line 20" in screen_text(app))
        await pilot.press("up")
        assert isinstance(app.screen, PassagesScreen)


async def test_citations_appear_when_the_reply_ends() -> None:
    store = open_ephemeral_store()
    app = make_scripted_app(
        "It is 980 in 2023 [1], as before.", store=store, conversation=save_cited_conversation(store)
    )
    async with app.run_test(size=(100, 40)) as pilot:
        await open_reply(app, pilot)
        await pilot.press("i")
        app.pane.prompt.load("And before?")
        app.pane.prompt.action_send()
        await until_async(lambda: len(shown_messages(app)) == 4 and not app.pane.is_busy)
        assert [c.numbers for c in shown_messages(app)[-1].citations] == [(1,)]
        await click_text(app, pilot, "[1], as before")
        await until_async(lambda: is_open(app, "PassagesScreen"))


@pytest.mark.parametrize("size", [(80, 24), (120, 36)])
async def test_citation_snapshots(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(Session, "context_usage", lambda _session, _text, _files: (300, 0))
    app = make_cited_app()
    async with app.run_test(size=size) as pilot:
        await open_reply(app, pilot)
        await pilot.pause()
        await compare(app, f"citations-{size[0]}x{size[1]}")
        await pilot.press("o", "right")
        await until_async(lambda: is_open(app, "PassagesScreen"))
        await pilot.pause()
        await compare(app, f"citations-panel-{size[0]}x{size[1]}")
        await pilot.press("escape", "up", "o")
        await until_async(lambda: is_open(app, "PassagesScreen") and option_texts(app))
        await pilot.pause()
        await compare(app, f"citations-list-{size[0]}x{size[1]}")
