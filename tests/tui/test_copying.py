"""Copying and saving: selections, and code blocks by their numbers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual.theme import BUILTIN_THEMES

from edgechat.tui.render.contrast import COLOUR_SYSTEMS, compute_contrast
from tests.tui.app_driver import ask, footer_text, make_scripted_app, problem_text, screen_text, wait_until_ready
from tests.waiting import until_async

THREE_BLOCKS = "One:\n```python\nfirst()\n```\nTwo:\n```\nsecond\n```\nThree:\n```sh\nthird\n```\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_code_blocks_are_numbered() -> None:
    app = make_scripted_app(THREE_BLOCKS)
    async with app.run_test():
        await wait_until_ready(app)
        await ask(app, "Question")
        text = screen_text(app)
        assert "[1] python" in text
        assert "[2]\n" in text.replace(" \n", "\n").replace(" ", "") + "\n"
        assert "[3] sh" in text


@pytest.mark.parametrize(("keys", "copied"), [("c1", "first()"), ("c2", "second"), ("c3", "third"), ("cc", "third")])
async def test_c_and_a_digit_copy_a_code_block(keys: str, copied: str) -> None:
    app = make_scripted_app(THREE_BLOCKS)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("escape", *keys)
        await until_async(lambda: app.clipboard == copied)


@pytest.mark.parametrize("keys", [["c", "escape"], ["c", "9"], ["c", "up"]])
async def test_other_keys_copy_nothing(keys: list[str]) -> None:
    app = make_scripted_app(THREE_BLOCKS)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("escape", *keys)
        await pilot.pause()
        assert app.clipboard == ""
        assert app.pane.transcript.has_focus
        assert app.pane.prompt.text == ""


async def test_s_saves_code_to_new_files_with_the_suffix_of_the_language(folder: Path) -> None:
    app = make_scripted_app(THREE_BLOCKS)
    (folder / "code-1.py").write_text("precious")
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("escape", "s", "1")
        await until_async(lambda: "code-1-2.py" in footer_text(app))
        await pilot.press("s", "2", "s", "s")
        await until_async(lambda: "code-3.sh" in footer_text(app))
    assert (folder / "code-1.py").read_text() == "precious"
    assert (folder / "code-1-2.py").read_text() == "first()\n"
    assert (folder / "code-2.txt").read_text() == "second\n"
    assert (folder / "code-3.sh").read_text() == "third\n"


async def test_folder_that_cannot_be_written_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    app = make_scripted_app("```\nx\n```")
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        monkeypatch.setattr(Path, "open", refuse)
        await pilot.press("escape", "s")
        await until_async(lambda: "Permission denied" in problem_text(app))
    assert os.listdir(folder) == ["home"]


@pytest.mark.parametrize("copies", [True, False])
async def test_selection_is_copied_on_release_if_set(copies: bool) -> None:
    app = make_scripted_app("A reply to select.", copy_on_select=copies)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.mouse_down("#transcript", offset=(4, 3))
        await pilot.hover("#transcript", offset=(9, 3))
        await pilot.mouse_up("#transcript", offset=(9, 3))
        await until_async(lambda: app.screen.get_selected_text() is not None)
        await pilot.pause()
        assert (app.clipboard in "A reply to select." and app.clipboard != "") == copies


@pytest.mark.parametrize("system", COLOUR_SYSTEMS)
@pytest.mark.parametrize("theme", [name for name, theme in BUILTIN_THEMES.items() if not theme.ansi])
async def test_selected_text_is_readable_on_the_screen(theme: str, system: str) -> None:
    app = make_scripted_app("Prose, and\n```python\ndef code(): return 1  # with colours\n```", theme=theme)
    app.console._color_system = COLOUR_SYSTEMS[system]
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        app.screen.text_select_all()
        await pilot.pause()
        rows = app.screen._compositor.render_strips()
        cells = [s for row in rows[:10] for s in row.crop(2, 40) if s.text.strip() and s.style and s.style.bgcolor]
        selected = [s for s in cells if any(word in s.text for word in ("Prose", "def", "return", "colours"))]
        assert selected
        for segment in selected:
            assert segment.style is not None
            assert segment.style.color is not None
            assert segment.style.bgcolor is not None
            text, area = segment.style.color.get_truecolor().hex, segment.style.bgcolor.get_truecolor().hex
            assert compute_contrast(text, area, COLOUR_SYSTEMS[system]) >= 4.5, segment


async def test_footer_lists_the_keys_that_copy_and_save() -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await pilot.press("escape")
        await until_async(lambda: "c code  s save" in footer_text(app))
