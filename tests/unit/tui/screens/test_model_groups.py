"""Names of models in rows of fixed columns."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from edgechat.tui.screens.model_groups import fit_name


@pytest.mark.parametrize(
    "name", ["short", "日本語のモデル:Q4_K_M", "日本語" * 9 + ":Q8_0", "long-" * 12 + ":Q8_0", "a\x1b[31mb"]
)
def test_name_takes_exactly_the_columns_of_its_field(name: str) -> None:
    text = fit_name(name, 20)
    assert cell_len(text) == 20
    assert text.isprintable()
    assert text.rstrip().endswith(name.partition(":")[2])
