"""Faults of model drafters in the engine processes of tests.

`arrange` writes a sitecustomize.py that calls `install` in every engine process which gets its environment variables.
There, the drafter is asked in every step, and its third draft has the fault.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

_ROOT = Path(__file__).resolve().parents[2]
_SITECUSTOMIZE = """
import sys
if "_engine" in sys.orig_argv:
    from tests.faults import drafter_faults
    drafter_faults.install()
"""
# Drafts before the fault, so that the reply has text that must be kept.
_N_GOOD_DRAFTS = 2


def arrange(directory: Path, fault: str, marker: Path | None = None) -> dict[str, str]:
    """Return environment variables for engines whose drafter has a fault.

    A fault is `draft` or `open`, and what happens then: `MemoryError`, the number of a signal that kills the engine, or
    `forever`, which computes the draft over and over until it is aborted. That happens once: at its start, the engine
    creates the file `marker`, and if the file exists, there is no fault.
    """
    (directory / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return {
        "PYTHONPATH": f"{directory}{os.pathsep}{_ROOT}", "DRAFTER_FAULT": fault,
        "DRAFTER_FAULT_MARKER": str(marker or ""),
    }  # fmt: skip


def install() -> None:
    """Let the drafter of this process draft in every step, but not in idle time, with the fault in the environment."""
    from edgechat.draft_request import TokenChain
    from edgechat.runtime.activity import Activity
    from edgechat.runtime.drafter_context import DrafterContext
    from edgechat.runtime.drafter_source import DrafterSource
    from edgechat.speculation.model_source import ModelSource
    from tests.engine.drafted_models import make_models_eager

    when, _, what = os.environ["DRAFTER_FAULT"].partition(" ")
    marker = Path(os.environ["DRAFTER_FAULT_MARKER"])

    make_models_eager()
    ModelSource.measure = ModelSource.read = lambda _source, _text: None  # type: ignore[assignment,method-assign]
    if when == "open":
        DrafterSource.load = lambda _source: _fail(what, Activity.OPENING_DRAFTER)  # type: ignore[assignment,method-assign]
        return
    draft, n_calls = DrafterContext.draft, 0

    def draft_with_fault(context: DrafterContext, layout: Any, drafts: Sequence[Any]) -> list[TokenChain]:
        nonlocal n_calls
        n_calls += 1
        if n_calls <= _N_GOOD_DRAFTS:
            return draft(context, layout, drafts)
        if what != "forever":
            _fail(what, context._activity)
        if marker.exists():
            return draft(context, layout, drafts)
        marker.touch()
        while True:
            draft(context, layout, drafts)
            for pending in drafts:
                if not context._shape.shares_cells:
                    context.remove(pending.seq, pending.position)

    DrafterContext.draft = draft_with_fault  # type: ignore[assignment,method-assign]


def _fail(what: str, activity_before_end: Any) -> NoReturn:
    from edgechat.runtime import activity

    if what == "MemoryError":
        raise MemoryError
    with activity.during(activity_before_end):
        os.kill(os.getpid(), int(what))
    raise AssertionError("the signal did not end the process")
