"""State of the model drafter of a running engine, for the output of commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgechat.engine.generation import DrafterState
    from edgechat.engine.protocol import EngineStatus
    from edgechat.models.loaded_model import LoadedModel

_NAMES: Final = {
    "draft-model": "a draft model", "mtp": "the MTP heads of the model", "eagle3": "an EAGLE-3 head",
    "assistant": "a Gemma 4 assistant",
}  # fmt: skip


def make_drafter_object(status: EngineStatus | None, model_path: str) -> dict[str, Any]:
    """Return the state of the drafter, and the drafters that crashed with the model, as JSON-compatible values."""
    from edgechat.runtime.drafter_crashes import list_crashes

    loaded = status.loaded if status is not None else None
    state = status.drafter if status is not None else None
    load = status.load if status is not None else None
    has_failed = state is not None and not state.is_open
    return {
        "drafter": loaded.drafter if loaded is not None and not has_failed else None,
        "drafter_file": _find_file(status, model_path) if loaded is not None and not has_failed else None,
        "drafter_refusal": load.plan.reasons.get("draft_model", "") if load is not None else "",
        "drafter_error": (state.error if state is not None else "") or (loaded.drafter_error if loaded else ""),
        "drafter_is_asleep": state.is_asleep if state is not None else False,
        "draft_costs": {str(n): round(cost, 3) for n, cost in state.draft_costs.items()} if state is not None else {},
        "crashed_drafters": list_crashes(model_path),
    }


def describe_used_drafter(model: LoadedModel, state: DrafterState | None) -> tuple[str | None, str]:
    """Return the kind of the drafter in use (None without one), and why the named one is not used ("" if it is).

    `state` is that of the drafter after the reply, in which it can have failed.
    """
    loaded = model.model_properties
    if state is not None and not state.is_open:
        return None, model.drafter_refusal or state.error.rstrip(".")
    return loaded.drafter if loaded is not None else None, model.drafter_refusal


def _find_file(status: EngineStatus | None, model_path: str) -> str | None:
    """Return the path of the draft model or heads, which is that of the model for its own heads; None if unknown."""
    load = status.load if status is not None else None
    if load is None or load.plan.drafter is None:
        return None
    return load.plan.drafter.model_path or model_path


def format_drafter(drafter_object: dict[str, Any]) -> list[str]:
    """Return lines for users: the drafter and its file, its sleep, the cost of a draft, and what cannot be used."""
    lines = []
    if drafter_object["drafter"]:
        line = f"drafts with {_NAMES.get(drafter_object['drafter'], drafter_object['drafter'])}"
        if drafter_object["drafter"] != "mtp" and drafter_object["drafter_file"]:
            line += f" ({drafter_object['drafter_file']})"
        if cost := drafter_object["draft_costs"].get("1"):
            line += f"; a draft token takes {cost:.2f} of the time of a token without drafts"
        if drafter_object["drafter_is_asleep"]:
            line += "; asleep until its next trial: no gain, or no free memory"
        lines.append(line)
    elif drafter_object["drafter_error"]:
        lines.append(f"decodes without the drafter: {drafter_object['drafter_error']}")
    if drafter_object["drafter_refusal"]:
        lines.append(f"does not draft with the named drafter: {drafter_object['drafter_refusal']}")
    lines += [
        f"does not draft with {name}: the engine died with {cause} in it"
        for name, cause in drafter_object["crashed_drafters"].items()
    ]
    return lines
