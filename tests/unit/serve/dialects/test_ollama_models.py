"""Descriptions of models in the form of the Ollama API."""

from __future__ import annotations

import pytest

from edgechat.serve.dialects.ollama_models import format_n_params, make_tagged_name


@pytest.mark.parametrize(
    ("n_params", "text"),
    [(134_515_008, "134.52M"), (4_022_468_096, "4.0B"), (79_230, "79.23K"), (120_000_000_000, "120.0B"), (0, "0.00K")],
)
def test_number_of_weights_has_ollamas_form(n_params: int, text: str) -> None:
    assert format_n_params(n_params) == text


def test_names_without_a_tag_get_the_tag_latest() -> None:
    assert make_tagged_name("starter") == "starter:latest"
    assert make_tagged_name("qwen3:4b") == "qwen3:4b"
