"""The conversation on the screen: nothing jumps, nothing is painted in vain, and anything can be said."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from textual.app import App, ComposeResult
from textual.strip import Strip
from textual.theme import BUILTIN_THEMES

from edgechat.chat.messages import Message, new_id
from edgechat.tui.render.entries import MessageEntry, TranscriptEntry
from edgechat.tui.render.layout_blocks import CodeLayout
from edgechat.tui.render.palette import UNICODE_GLYPHS, Palette
from edgechat.tui.widgets.transcript import Transcript

PALETTE = Palette(BUILTIN_THEMES["textual-dark"].to_color_system().generate(), dark=True, ansi=False)
LONG = "Some words that fill more than a line of the screen, so that they are wrapped.\n\n```python\nx = 1\n```\n\n- a\n- b\n"
HOSTILE = [
    "\x1b[2J\x1b]0;title\x07 escape", "[bold]markup[/bold] [/] [link=x]", "\u202eright to left\u202c \u2066x\u2069",
    "a\u200d\u200b\u0301b 👨‍👩‍👧‍👦 é", "x" * 1_000_000, "`" * 1_000_000, "\ufffd\udcff".encode("utf-8", "replace").decode(),
    "> " * 3000 + "deep", "* " * 3000, "|" * 5000 + "\n" + "|-" * 2500, "\t" * 100 + "tabs", "\r\rprogress\r", "\0\x7f\x9b31m",
    "#" * 2000, "<script>alert(1)</script><b>bold</b>", "![image](file:///etc/passwd) [link](javascript:x)", "\n" * 5000, "",
    "```" + "x" * 300 + "\ncode", "1. " * 2000, "**" * 3000, "&amp;&#27;[31m&#x9b;", "中" * 3000,
]  # fmt: skip


class Bare(App[None]):
    """Only a transcript."""

    def __init__(self, entries: list[TranscriptEntry]) -> None:
        super().__init__()
        self.entries = entries
        self.wanted: list[CodeLayout] = []

    def on_transcript_highlight_requested(self, message: Transcript.HighlightRequested) -> None:
        assert isinstance(message.block, CodeLayout)
        self.wanted.append(message.block)

    def compose(self) -> ComposeResult:
        yield Transcript(lambda: PALETTE, id="transcript")

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    def on_mount(self) -> None:
        self.animation_level = "none"
        self.call_after_refresh(lambda: self.transcript.set_entries(self.entries))


def entry(text: str, role: str = "assistant", **more: object) -> MessageEntry:
    message = Message(id=new_id(), role=role, text=text, finish_reason="stop" if role == "assistant" else "", **more)  # type: ignore[arg-type]
    return MessageEntry(message, (1, 1), UNICODE_GLYPHS)


def visible_rows(app: Bare) -> list[str]:
    transcript = app.transcript
    return [transcript.render_line(y).text.rstrip() for y in range(transcript.scrollable_content_region.height)]


async def test_nothing_jumps_when_one_scrolls_through_guessed_rows() -> None:
    """Row by row to the top: each step shows what was there, moved by one."""
    entries: list[TranscriptEntry] = [
        entry(f"message {i}\n\n{LONG * (i % 4)}", "user" if i % 2 else "assistant") for i in range(60)
    ]
    app = Bare(entries)
    async with app.run_test(size=(50, 20)) as pilot:
        await pilot.pause()
        transcript = app.transcript
        before = visible_rows(app)
        assert "- b" in "".join(before) or before
        seen = [*before]
        for _ in range(4000):
            if transcript.scroll_y == 0:
                break
            transcript.scroll_rows(-1)
            now = visible_rows(app)
            assert now[1:] == before[:-1]
            seen.insert(0, now[0])
            before = now
        assert transcript.scroll_y == 0
        assert [row.split()[-1] for row in seen if "message" in row] == [str(i) for i in range(60)]
        # And what was measured on the way is what the whole is.
        assert len(seen) == transcript.virtual_size.height


async def test_only_what_is_near_the_screen_is_laid_out() -> None:
    app = Bare([entry(LONG) for _ in range(2000)])
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        made = [piece for e in app.entries if e._blocks is not None for piece in e._blocks if piece.layout_width]
        assert 0 < len(made) < 60
        assert app.transcript.follows_end
        app.transcript.action_top()
        await pilot.pause()
        assert "Some words" in visible_rows(app)[1]
        for _ in range(300):
            app.transcript.action_page(1)
        made = [piece for e in app.entries if e._blocks is not None for piece in e._blocks if piece.layout_width]
        assert len(made) < 700


async def test_nothing_is_painted_while_the_end_is_out_of_view() -> None:
    last = entry("")
    app = Bare([*(entry(LONG) for _ in range(10)), last])
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        last.start_streaming()
        transcript = app.transcript
        transcript.action_page(-1)
        assert not transcript.follows_end
        before, shown = transcript.virtual_size, visible_rows(app)
        asked: list[object] = []
        transcript.refresh = lambda *args, **kwargs: asked.append(args) or transcript  # type: ignore[method-assign,func-returns-value]
        for _ in range(50):
            last.append("more words and\n\n", "")
            transcript.entry_changed(last)
        assert not asked
        assert transcript.virtual_size == before
        del transcript.refresh
        assert visible_rows(app) == shown
        transcript.action_bottom()
        assert "more words and" in visible_rows(app)[-2]


@pytest.mark.parametrize("text", [LONG * 3, "```py\n" + "x = 1 + 2\n" * 40 + "```\nand **bold\n** text " * 20])
async def test_all_that_changed_is_painted_and_little_else(text: str) -> None:
    """Rows above the part that is painted are as they were."""
    last = entry("")
    app = Bare([entry("before"), last])
    async with app.run_test(size=(60, 24)) as pilot:
        await pilot.pause()
        last.start_streaming()
        transcript = app.transcript
        tops: list[int] = []
        refresh = transcript.refresh
        transcript.refresh = lambda *regions, **more: tops.extend(r.y for r in regions) or refresh(*regions, **more)  # type: ignore[method-assign,func-returns-value]
        for start in range(0, len(text), 3):
            before = visible_rows(app)
            tops.clear()
            last.append(text[start : start + 3], "")
            transcript.entry_changed(last)
            assert visible_rows(app)[: min(tops)] == before[: min(tops)]


async def test_the_reader_gets_what_came_meanwhile_by_scrolling() -> None:
    last = entry("")
    app = Bare([*(entry(LONG) for _ in range(10)), last])
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        last.start_streaming()
        transcript = app.transcript
        transcript.scroll_rows(-3)
        last.append("one\n\n" * 100 + "the end", "")
        transcript.entry_changed(last)
        for _ in range(300):
            transcript.scroll_rows(1)
        assert transcript.follows_end
        assert visible_rows(app)[-2].strip() == "the end"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from(["a", "words ", "\n", "\n\n", "```py\n", "```\n", "- x\n", "1. y\n", "  ", "|a|b|\n|-|-|\n"]),
        max_size=30,
    ),
    st.integers(10, 60),
)
def test_what_grew_looks_like_what_is_complete(pieces: list[str], width: int) -> None:
    grown, whole = entry(""), entry("".join(pieces))
    grown.start_streaming()
    rows(grown, width)
    for piece in pieces:
        grown.append(piece, "")
        rows(grown, width)
    grown.finish(whole.message)
    assert rows(grown, width) == rows(whole, width)
    assert grown.height(width) == whole.height(width)


def rows(e: TranscriptEntry, width: int) -> list[str]:
    """All rows, as `Transcript` would show them."""
    found: list[str] = []
    for piece in e.blocks:
        if piece.layout_width != width or piece.is_stale:
            piece.lay_out(width, PALETTE)
        found += [""] * piece.gap
        found += [piece.row(i).text for i in range(piece.height(width))]
    return found


async def test_anything_can_be_said_at_any_size() -> None:
    app = Bare(
        [entry(text, role) for text in HOSTILE for role in ("user", "assistant")]
        + [TranscriptEntry("note", HOSTILE[0])]
    )
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        for size in ((80, 24), (10, 5), (200, 60), (40, 12), (1, 1), (80, 24)):
            await pilot.resize_terminal(*size)
            app.transcript.action_top()
            for _ in range(40):
                app.transcript.action_page(1)
            app.transcript.action_bottom()
            for strip in map(app.transcript.render_line, range(size[1])):
                assert isinstance(strip, Strip)
                assert not {"\x1b", "\x07", "\x9b", "\u202e", "\x00", "\r"} & set(strip.text)


async def test_a_resize_keeps_the_place() -> None:
    app = Bare([entry(f"message {i} {LONG}") for i in range(200)])
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        app.transcript.scroll_to(y=600, animate=False)
        top = next(row for row in visible_rows(app) if "message" in row).split("message")[1].split()[0]
        await pilot.resize_terminal(41, 24)
        await pilot.pause()
        shown = [int(row.split("message")[1].split()[0]) for row in visible_rows(app) if "message" in row]
        assert min(abs(int(top) - n) for n in shown) <= 1


async def test_selecting_copies_what_is_there_without_the_bar() -> None:
    app = Bare([entry("one two"), entry("```\ncode()\n```")])
    async with app.run_test(size=(40, 10)) as pilot:
        await pilot.pause()
        await pilot.mouse_down("#transcript", offset=(0, 1))
        await pilot.hover("#transcript", offset=(30, 3))
        await pilot.mouse_up("#transcript", offset=(30, 3))
        assert app.screen.get_selected_text() == "one two\n\n code()"


async def test_long_code_is_coloured_beside_the_screen_and_as_high_as_before() -> None:
    code = (
        "```python\n"
        + "def f(a):\n    return 'a string that is long enough to be wrapped somewhere in here'\n" * 300
        + "```"
    )
    app = Bare([entry(code)])
    async with app.run_test(size=(50, 20)) as pilot:
        await pilot.pause()
        from edgechat.tui.render.layout_blocks import highlight_code

        [piece] = app.wanted
        plain = rows(app.entries[0], piece.layout_width)
        made = highlight_code(piece.block, piece.layout_width, PALETTE)
        app.transcript.apply_highlighting(piece, made, piece.layout_width)
        assert piece.is_highlighted
        assert rows(app.entries[0], piece.layout_width) == plain


def test_no_lexer_loses_a_line() -> None:
    from pygments.lexers import get_all_lexers

    from edgechat.tui.render.layout_blocks import highlight_code
    from edgechat.tui.render.markdown_blocks import split_markdown

    source = "$ pip install x\n>>> y = 1\n\n- z: 1\tend"
    for _, names, _, _ in get_all_lexers():
        for name in names[:1]:
            [block] = split_markdown(f"```{name}\n{source}\n```\n")
            shown = [row.text.strip() for row in highlight_code(block, 60, PALETTE)][1:]
            assert shown == [line.expandtabs(4).strip() for line in source.split("\n")], name
