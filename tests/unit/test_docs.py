"""Pictures in the documentation."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def test_linked_pictures_exist_and_are_used() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = {
        (page.parent / link).resolve()
        for page in pages
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    assert links == set((ROOT / "docs" / "images").iterdir())
