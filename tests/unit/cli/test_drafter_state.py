"""State of the model drafter in `edgechat engine status` and `edgechat doctor`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.cli.drafter_state import format_drafter, make_drafter_object
from edgechat.engine.generation import DrafterState


def describe(state: DrafterState | None, drafter: str | None = "eagle3", error: str = "") -> list[str]:
    status: Any = SimpleNamespace(loaded=SimpleNamespace(drafter=drafter, drafter_error=error), drafter=state)
    return format_drafter(make_drafter_object(status, "m.gguf"))


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, "drafts with an EAGLE-3 head"),
        (
            DrafterState(is_open=True, draft_costs={1: 0.254, 3: 0.762}),
            "drafts with an EAGLE-3 head; a draft token takes 0.25 of the time of a token without drafts",
        ),
        (
            DrafterState(is_open=True, is_asleep=True),
            "drafts with an EAGLE-3 head; asleep until its next trial: no gain, or no free memory",
        ),
        (DrafterState(is_open=False, error="It failed."), "drafts without a model: It failed."),
    ],
)
def test_states_of_a_drafter(state: DrafterState | None, text: str) -> None:
    assert describe(state) == [text]


def test_a_drafter_that_was_not_opened_or_not_planned() -> None:
    assert describe(None, drafter=None, error="It is damaged.") == ["drafts without a model: It is damaged."]
    assert describe(None, drafter=None) == []


def test_an_engine_that_does_not_answer() -> None:
    assert format_drafter(make_drafter_object(None, "m.gguf")) == []
