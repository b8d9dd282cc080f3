"""The reference for chat templates: transformers, for which they are written."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from transformers.utils import chat_template_utils

from edgechat.prompt import sandbox

if TYPE_CHECKING:
    import pytest


def set_clocks(monkeypatch: pytest.MonkeyPatch, now: dt.datetime) -> None:
    """Set the clock of transformers and of the sandbox, in this process."""

    class FixedClock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return now.replace(tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", FixedClock)
    monkeypatch.setattr(sandbox, "dt", SimpleNamespace(datetime=FixedClock))


def render_reference(template: str, messages: list[dict[str, Any]], **arguments: Any) -> str | None:
    """Render a template with transformers. Return None if it raises an error."""
    try:
        texts, _ = chat_template_utils.render_jinja_template([messages], chat_template=template, **arguments)
    except Exception:  # noqa: BLE001  (a template can raise any Python exception)
        return None
    text: str = texts[0]
    return text
