"""The transcript widget: stable scrolling, minimal painting, and display of any text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from textual.app import App, ComposeResult
from textual.strip import Strip

from edgechat.tui.render.code_layout import CodeLayout, highlight_code
from edgechat.tui.render.entries import TranscriptEntry
from edgechat.tui.widgets.transcript import Transcript
from tests.hostile_texts import HOSTILE_TEXTS
from tests.unit.tui.layouts import PALETTE, make_entry, rendered_rows
from tests.waiting import until_async

if TYPE_CHECKING:
    from textual.geometry import Region
    from textual.pilot import Pilot

LONG = (
    "Some words that fill more than a line of the screen, so that they are wrapped.\n\n"
    "```python\nx = 1\n```\n\n- a\n- b\n"
)


class TranscriptApp(App[None]):
    """An application with nothing but a transcript."""

    def __init__(self, entries: list[TranscriptEntry]) -> None:
        super().__init__()
        self.entries = entries
        self.highlight_requests: list[CodeLayout] = []
        self.are_entries_shown = False

    def on_transcript_highlight_requested(self, message: Transcript.HighlightRequested) -> None:
        assert isinstance(message.block, CodeLayout)
        self.highlight_requests.append(message.block)

    def compose(self) -> ComposeResult:
        yield Transcript(lambda: PALETTE, id="transcript")

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    def on_mount(self) -> None:
        self.animation_level = "none"
        self.call_after_refresh(self._show_entries)

    def _show_entries(self) -> None:
        self.transcript.set_entries(self.entries)
        self.are_entries_shown = True


def visible_rows(app: TranscriptApp) -> list[str]:
    transcript = app.transcript
    return [transcript.render_line(y).text.rstrip() for y in range(transcript.scrollable_content_region.height)]


async def wait_for_entries(app: TranscriptApp, pilot: Pilot[None]) -> None:
    await until_async(lambda: app.are_entries_shown)
    await pilot.pause()


def n_rendered_blocks(app: TranscriptApp) -> int:
    built = [entry for entry in app.entries if entry._blocks is not None]
    return sum(block.layout_width > 0 for entry in built for block in entry.blocks)


async def test_scrolling_through_estimated_rows_never_jumps() -> None:
    """Scroll up row by row: each step shows the same rows, moved by one."""
    entries: list[TranscriptEntry] = [
        make_entry(f"message {i}\n\n{LONG * (i % 4)}", "user" if i % 2 else "assistant") for i in range(60)
    ]
    app = TranscriptApp(entries)
    async with app.run_test(size=(50, 20)) as pilot:
        await wait_for_entries(app, pilot)
        transcript = app.transcript
        before = visible_rows(app)
        assert "- b" in "".join(before) or before
        rows = [*before]
        for _ in range(4000):
            if transcript.scroll_y == 0:
                break
            transcript.scroll_rows(-1)
            after = visible_rows(app)
            assert after[1:] == before[:-1]
            rows.insert(0, after[0])
            before = after
        assert transcript.scroll_y == 0
        assert [row.split()[-1] for row in rows if "message" in row] == [str(i) for i in range(60)]
        # All estimates are exact now.
        assert len(rows) == transcript.virtual_size.height


@pytest.mark.slow
async def test_only_blocks_near_the_screen_are_rendered() -> None:
    app = TranscriptApp([make_entry(LONG) for _ in range(2000)])
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for_entries(app, pilot)
        assert 0 < n_rendered_blocks(app) < 60
        assert app.transcript.follows_end
        app.transcript.action_top()
        await pilot.pause()
        assert "Some words" in visible_rows(app)[1]
        for _ in range(300):
            app.transcript.action_page(1)
        assert n_rendered_blocks(app) < 700


async def test_nothing_is_painted_while_the_end_is_not_visible() -> None:
    last = make_entry("")
    app = TranscriptApp([*(make_entry(LONG) for _ in range(10)), last])
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for_entries(app, pilot)
        last.start_streaming()
        transcript = app.transcript
        transcript.action_page(-1)
        assert not transcript.follows_end
        size, rows = transcript.virtual_size, visible_rows(app)
        painted: list[object] = []

        def refresh(*args: Any, **_options: Any) -> Transcript:
            painted.append(args)
            return transcript

        transcript.refresh = refresh  # type: ignore[method-assign]
        for _ in range(50):
            last.append("more words and\n\n", "")
            transcript.update_entry(last)
        assert not painted
        assert transcript.virtual_size == size
        del transcript.refresh
        assert visible_rows(app) == rows
        transcript.action_bottom()
        assert "more words and" in visible_rows(app)[-2]


@pytest.mark.slow
@pytest.mark.parametrize("text", [LONG * 3, "```py\n" + "x = 1 + 2\n" * 40 + "```\nand **bold\n** text " * 20])
async def test_rows_above_the_painted_region_are_unchanged(text: str) -> None:
    last = make_entry("")
    app = TranscriptApp([make_entry("before"), last])
    async with app.run_test(size=(60, 24)) as pilot:
        await wait_for_entries(app, pilot)
        last.start_streaming()
        transcript = app.transcript
        tops: list[int] = []
        original_refresh = transcript.refresh

        def refresh(*regions: Region, **options: Any) -> Transcript:
            tops.extend(region.y for region in regions)
            return original_refresh(*regions, **options)

        transcript.refresh = refresh  # type: ignore[method-assign]
        for start in range(0, len(text), 3):
            before = visible_rows(app)
            tops.clear()
            last.append(text[start : start + 3], "")
            transcript.update_entry(last)
            assert visible_rows(app)[: min(tops)] == before[: min(tops)]


async def test_scrolling_down_reveals_text_that_arrived_meanwhile() -> None:
    last = make_entry("")
    app = TranscriptApp([*(make_entry(LONG) for _ in range(10)), last])
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for_entries(app, pilot)
        last.start_streaming()
        transcript = app.transcript
        transcript.scroll_rows(-3)
        last.append("one\n\n" * 100 + "the end", "")
        transcript.update_entry(last)
        for _ in range(300):
            transcript.scroll_rows(1)
        assert transcript.follows_end
        assert visible_rows(app)[-2].strip() == "the end"


async def test_hostile_texts_are_shown_at_any_size_without_control_characters() -> None:
    app = TranscriptApp(
        [make_entry(text, role) for text in HOSTILE_TEXTS for role in ("user", "assistant")]
        + [TranscriptEntry("note", HOSTILE_TEXTS[0])]
    )
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for_entries(app, pilot)
        for size in ((80, 24), (10, 5), (200, 60), (40, 12), (1, 1), (80, 24)):
            await pilot.resize_terminal(*size)
            app.transcript.action_top()
            for _ in range(40):
                app.transcript.action_page(1)
            app.transcript.action_bottom()
            for strip in map(app.transcript.render_line, range(size[1])):
                assert isinstance(strip, Strip)
                assert not {"\x1b", "\x07", "\x9b", "\u202e", "\x00", "\r"} & set(strip.text)


async def test_resize_keeps_the_message_at_the_top() -> None:
    app = TranscriptApp([make_entry(f"message {i} {LONG}") for i in range(200)])
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for_entries(app, pilot)
        app.transcript.scroll_to(y=600, animate=False)
        top = next(row for row in visible_rows(app) if "message" in row).split("message")[1].split()[0]
        await pilot.resize_terminal(41, 24)
        await until_async(lambda: app.transcript.size.width == 41)
        await pilot.pause()
        numbers = [int(row.split("message")[1].split()[0]) for row in visible_rows(app) if "message" in row]
        assert min(abs(int(top) - n) for n in numbers) <= 1


async def test_selected_text_excludes_the_bar_and_the_caption() -> None:
    app = TranscriptApp([make_entry("one two"), make_entry("```\ncode()\n```")])
    async with app.run_test(size=(40, 10)) as pilot:
        await wait_for_entries(app, pilot)
        await pilot.mouse_down("#transcript", offset=(0, 1))
        await pilot.hover("#transcript", offset=(30, 4))
        await pilot.mouse_up("#transcript", offset=(30, 4))
        assert app.screen.get_selected_text() == "one two\n\n code()"


async def test_highlighting_long_code_keeps_its_rows() -> None:
    line = "    return 'a string that is long enough to be wrapped somewhere in here'\n"
    app = TranscriptApp([make_entry("```python\n" + f"def f(a):\n{line}" * 300 + "```")])
    async with app.run_test(size=(50, 20)):
        await until_async(lambda: app.highlight_requests)
        [block] = app.highlight_requests
        width = block.layout_width
        before = rendered_rows(app.entries[0], width)
        app.transcript.apply_highlighting(block, highlight_code(block.block, width, PALETTE), width)
        assert block.is_highlighted
        assert rendered_rows(app.entries[0], width) == before
