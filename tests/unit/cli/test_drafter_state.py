"""State of the model drafter in `edgechat engine status` and `edgechat doctor`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.cli.drafter_state import describe_used_drafter, format_drafter, make_drafter_object
from edgechat.engine.generation import DrafterState
from edgechat.planner.drafter_plan import DrafterPlan


def describe(state: DrafterState | None, drafter: str | None = "eagle3", error: str = "") -> list[str]:
    return format_drafter(make_drafter_object(make_status(state, drafter, error), "m.gguf"))


def make_status(
    state: DrafterState | None, drafter: Any, error: str = "", file: str = "/heads.gguf", refusal: str = ""
) -> Any:
    planned_drafter = DrafterPlan(kind=drafter, model_path=file) if drafter else None
    plan = SimpleNamespace(drafter=planned_drafter, reasons={"draft_model": refusal} if refusal else {})
    loaded = SimpleNamespace(drafter=drafter, drafter_error=error)
    return SimpleNamespace(loaded=loaded, load=SimpleNamespace(plan=plan), drafter=state)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, "drafts with an EAGLE-3 head (/heads.gguf)"),
        (
            DrafterState(is_open=True, draft_costs={1: 0.254, 3: 0.762}),
            "drafts with an EAGLE-3 head (/heads.gguf); a draft token takes 0.25 of the time of a token without drafts",
        ),
        (
            DrafterState(is_open=True, is_asleep=True),
            "drafts with an EAGLE-3 head (/heads.gguf); asleep until its next trial: no gain, or no free memory",
        ),
        (DrafterState(is_open=False, error="It failed."), "decodes without the drafter: It failed."),
    ],
)
def test_states_of_a_drafter(state: DrafterState | None, text: str) -> None:
    assert describe(state) == [text]


def test_file_of_the_drafter_is_named() -> None:
    """Heads in the file of the model are in that file, which the status names already."""
    assert make_drafter_object(make_status(None, "draft-model"), "m.gguf")["drafter_file"] == "/heads.gguf"
    own_heads = make_drafter_object(make_status(None, "mtp", file=""), "m.gguf")
    assert own_heads["drafter_file"] == "m.gguf"
    assert format_drafter(own_heads) == ["drafts with the MTP heads of the model"]
    failed = make_drafter_object(make_status(DrafterState(is_open=False, error="It failed."), "eagle3"), "m.gguf")
    assert failed["drafter_file"] is None


def test_a_drafter_that_was_not_opened_or_not_planned() -> None:
    assert describe(None, drafter=None, error="It is damaged.") == ["decodes without the drafter: It is damaged."]
    assert describe(None, drafter=None) == []


def test_a_named_drafter_that_is_not_used() -> None:
    refused = make_drafter_object(make_status(None, None, refusal="No model with the name 'x'"), "m.gguf")
    assert refused["drafter_refusal"] == "No model with the name 'x'"
    assert format_drafter(refused) == ["does not draft with the named drafter: No model with the name 'x'"]
    with_heads = make_drafter_object(make_status(None, "mtp", file="", refusal="It is damaged"), "m.gguf")
    assert format_drafter(with_heads) == [
        "drafts with the MTP heads of the model", "does not draft with the named drafter: It is damaged",
    ]  # fmt: skip


def test_an_engine_that_does_not_answer() -> None:
    assert format_drafter(make_drafter_object(None, "m.gguf")) == []


@pytest.mark.parametrize(
    ("state", "refusal", "expected"),
    [
        (DrafterState(is_open=True), "", ("draft-model", "")),
        (None, "small.gguf is missing", ("draft-model", "small.gguf is missing")),
        (DrafterState(is_open=False, error="It failed in this reply."), "", (None, "It failed in this reply")),
    ],
)
def test_output_of_a_reply_names_the_drafter_that_still_works(
    state: DrafterState | None, refusal: str, expected: tuple[str | None, str]
) -> None:
    model: Any = SimpleNamespace(model_properties=SimpleNamespace(drafter="draft-model"), drafter_refusal=refusal)
    assert describe_used_drafter(model, state) == expected
