"""Groups, labels and rows of the settings screen."""

from __future__ import annotations

from edgechat.config import Settings
from edgechat.tui.screens.setting_rows import GROUPS, LABELS, list_rows


def test_every_setting_has_a_group_and_a_label() -> None:
    names = [name for group in GROUPS for name in group.labels]
    assert sorted(names) == sorted(Settings.__struct_fields__)
    assert len(set(LABELS.values())) == len(names)


def test_rows_are_grouped_unless_they_are_found_by_words() -> None:
    names = ["theme", "top_k", "seed"]
    rows = list(list_rows(names, Settings(seed=5), 76, with_headings=True))
    assert [(row.id, row.disabled) for row in rows] == [
        (None, True), ("top_k", False), ("seed", False), (None, True), ("theme", False)
    ]  # fmt: skip
    assert [row.id for row in list_rows(names, Settings(), 76, with_headings=False)] == names
    assert str(rows[2].prompt).split() == ["Random", "seed", "seed", "5"]


def test_narrow_rows_have_no_names() -> None:
    (row,) = list_rows(["n_ctx"], Settings(), 40, with_headings=False)
    assert str(row.prompt) == "Context length            (not set)"
