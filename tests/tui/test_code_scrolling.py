"""Long lines of code: wrapped, or cut and scrolled with keys and the wheel."""

from __future__ import annotations

from textual import events
from textual.geometry import Offset
from textual.selection import Selection

from edgechat.tui.app import ChatApp
from tests.tui.app_driver import ask, make_scripted_app, wait_until_ready
from tests.waiting import until_async

LONG_LINE = "value = [" + ", ".join(str(number) for number in range(100, 160)) + "]  # end"
REPLY = f"Words\n\n```py\n{LONG_LINE}\nshort = 1\n```\n\n```py\nx = 2\n```\n"


def code_rows(app: ChatApp) -> list[str]:
    transcript = app.pane.transcript
    rows = [transcript.render_line(y).text.rstrip() for y in range(transcript.size.height)]
    return [row for row in rows if row.strip()]


def wheel(app: ChatApp, kind: type[events.MouseEvent], *, shift: bool) -> events.MouseEvent:
    transcript = app.pane.transcript
    return kind(
        transcript,
        x=5,
        y=5,
        delta_x=0,
        delta_y=1,
        button=0,
        shift=shift,
        meta=False,
        ctrl=False,
        screen_x=5,
        screen_y=5,
    )


async def test_keys_cut_and_scroll_code() -> None:
    app = make_scripted_app(REPLY)
    async with app.run_test(size=(60, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("escape")
        assert sum("\u21aa" in row for row in code_rows(app)) > 3
        await pilot.press("shift+right")
        await until_async(lambda: not any("\u21aa" in row for row in code_rows(app)))
        [row] = [row for row in code_rows(app) if "100, 101" in row]
        assert row.endswith("\u203a")
        for _ in range(100):
            await pilot.press("shift+right")
        await until_async(lambda: any(row.endswith("# end") for row in code_rows(app)))
        [row] = [row for row in code_rows(app) if row.endswith("# end")]
        assert row.strip("\u258c ").startswith("\u2039")
        assert any("x = 2" in row for row in code_rows(app))  # a short block is not scrolled
        for _ in range(100):
            await pilot.press("shift+left")
        await until_async(lambda: any("short = 1" in row for row in code_rows(app)))
        await pilot.press("alt+z")
        await until_async(lambda: any("\u21aa" in row for row in code_rows(app)))


async def test_wheel_with_shift_scrolls_code_and_without_it_the_transcript() -> None:
    app = make_scripted_app(REPLY + "\n\nword\n" * 60)
    async with app.run_test(size=(60, 30)):
        await wait_until_ready(app)
        await ask(app, "Question")
        transcript = app.pane.transcript
        transcript.action_top()
        top = transcript.scroll_y
        for _ in range(3):
            transcript.post_message(wheel(app, events.MouseScrollDown, shift=True))
        await until_async(lambda: any("\u2039" in row for row in code_rows(app)))
        assert transcript.scroll_y == top
        transcript.post_message(wheel(app, events.MouseScrollLeft, shift=False))
        transcript.post_message(wheel(app, events.MouseScrollUp, shift=True))
        await until_async(lambda: not any("\u2039" in row for row in code_rows(app)))
        transcript.post_message(wheel(app, events.MouseScrollDown, shift=False))
        await until_async(lambda: transcript.scroll_y > top)


async def test_selected_lines_are_copied_whole_though_they_are_cut() -> None:
    app = make_scripted_app(REPLY, ascii=True)
    async with app.run_test(size=(60, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("escape", "alt+z")
        await until_async(lambda: any(row.endswith(">") for row in code_rows(app)))
        transcript = app.pane.transcript
        start = next(y for y in range(20) if "Words" in transcript.render_line(y).text)
        selection = Selection(Offset(0, start), Offset(0, start + 5))
        text, _ = transcript.get_selection(selection) or ("", "")
        assert LONG_LINE in text


async def test_growing_code_can_be_cut() -> None:
    app = make_scripted_app(REPLY)
    async with app.run_test(size=(60, 30)):
        await wait_until_ready(app)
        app.pane.transcript.action_wrap_code()
        await ask(app, "Question")
        assert not any("\u21aa" in row for row in code_rows(app))
        assert any(row.endswith("\u203a") for row in code_rows(app))
