"""Names of colour themes, and files of the user."""

from __future__ import annotations

from edgechat import paths
from edgechat.tui import themes


def test_file_with_a_reserved_or_unprintable_name_is_no_theme() -> None:
    paths.themes_dir().mkdir(parents=True)
    for name in ("auto", "mine", "a\x1b[31m\nb"):
        (paths.themes_dir() / f"{name}.toml").write_text('primary = "#ff0000"\n')
    names = themes.theme_names()
    assert names[:2] == ["auto", "mine"]
    assert names.count("auto") == 1
    assert all(name.isprintable() for name in names)
    assert "rename the file" in themes.find_theme("auto")[1]
