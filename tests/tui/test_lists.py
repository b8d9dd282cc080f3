"""Lists of all screens: keys that move far leave the selected row visible."""

from __future__ import annotations

import pytest

from edgechat.store import open_ephemeral_store
from tests.tui.app_driver import (
    is_open,
    make_scripted_app,
    option_list,
    save_conversation,
    screen_text,
    wait_until_ready,
)
from tests.waiting import until_async


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (60, 14)])
@pytest.mark.parametrize("keys", [["end"], ["pagedown", "pagedown"], ["end", "up", "pageup"], ["end", "home"]])
async def test_selected_setting_stays_visible(size: tuple[int, int], keys: list[str]) -> None:
    app = make_scripted_app()
    async with app.run_test(size=size) as pilot:
        await wait_until_ready(app)
        await pilot.press("f2")
        await until_async(lambda: is_open(app, "SettingsScreen") and option_list(app).option_count > 20)
        option_list(app).focus()
        await pilot.press(*keys)
        await pilot.pause()
        options = option_list(app)
        first, height = round(options.scroll_y), options.scrollable_content_region.height
        assert options.highlighted is not None
        assert first <= options.highlighted < first + height


async def test_list_of_themes_explains_its_keys_and_auto() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        app.actions.run("theme")
        await until_async(lambda: is_open(app, "PickerScreen") and option_list(app).option_count > 15)
        await pilot.pause()
        text = screen_text(app)
        assert "Enter: use   Esc: close" in text
        assert "auto: light or dark like the terminal" in text


async def test_pages_of_a_filtered_list() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        app.actions.run("theme")
        await until_async(lambda: is_open(app, "PickerScreen") and option_list(app).option_count > 15)
        await pilot.press("pagedown")
        assert (option_list(app).highlighted or 0) > 5
        await pilot.press("pageup")
        assert option_list(app).highlighted == 0
        await pilot.press("ctrl+end")
        assert option_list(app).highlighted == option_list(app).option_count - 1
        await pilot.press("ctrl+home")
        assert option_list(app).highlighted == 0


@pytest.mark.parametrize("size", [(10, 4), (20, 6), (40, 8)])
@pytest.mark.parametrize("key", ["f1", "f2", "ctrl+p", "ctrl+f", "ctrl+o", "ctrl+b"])
async def test_lists_on_tiny_screens_accept_all_keys(size: tuple[int, int], key: str) -> None:
    store = open_ephemeral_store()
    app = make_scripted_app(store=store, conversation=save_conversation(store, [("Word", "Words")] * 9))
    async with app.run_test(size=size) as pilot:
        await wait_until_ready(app)
        await pilot.press(key, "w", "pagedown", "pageup", "ctrl+end", "ctrl+home", "down", "up", "backspace", "end")
        await pilot.pause()
        assert app.return_code is None
        assert app.is_running
