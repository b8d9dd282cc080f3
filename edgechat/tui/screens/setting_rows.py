"""Rows of the settings screen: settings in groups, each with its label, its name and its value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from rich.text import Text
from textual.widgets.option_list import Option

from edgechat.config import Settings
from edgechat.terminal import escape_controls

# Width of the columns of labels and names, with the space after them.
_LABEL_COLUMNS: Final = 26
_NAME_COLUMNS: Final = 19
# Minimum width of the list, in columns, to show the names.
_MIN_WIDTH_WITH_NAMES: Final = 60


class SettingGroup(NamedTuple):
    """Group of settings with a heading."""

    title: str
    labels: Mapping[str, str]
    """Labels of the settings by name, in the order in which they are shown."""


GROUPS: Final = (
    SettingGroup(
        "Model",
        {
            "model": "Model", "min_speed": "Minimum speed", "n_ctx": "Context length", "budget": "Memory budget",
            "n_threads": "Compute threads",
            "keep_alive": "Keep model loaded (s)", "gpu": "Use a GPU", "prefix_cache": "Prompt cache on disk",
            "speculation": "Speculative decoding", "draft_model": "Draft model", "strict": "Reproducible replies",
            "remotes": "Remotes", "route": "Route",
        },
    ),
    SettingGroup(
        "Replies",
        {
            "system_prompt": "System prompt", "docs": "Documents",
            "reasoning": "Reasoning", "thinking": "Limit of reasoning",
            "thinking_end": "Sentence at its end", "max_tokens": "Maximum length",
            "stop_repetition": "Stop repetition", "offer_earlier": "Offer earlier replies",
            "temperature": "Temperature", "top_k": "Top-k", "top_p": "Top-p",
            "min_p": "Min-p", "repeat_penalty": "Repeat penalty", "presence_penalty": "Presence penalty",
            "frequency_penalty": "Frequency penalty", "seed": "Random seed",
        },
    ),
    SettingGroup(
        "Other samplers",
        {
            "typical_p": "Typical probability", "top_n_sigma": "Top-n-sigma", "xtc_probability": "XTC probability",
            "xtc_threshold": "XTC threshold", "dynatemp_range": "Dynamic temp. range",
            "dynatemp_exponent": "Dynamic temp. exponent", "mirostat": "Mirostat", "mirostat_tau": "Mirostat target",
            "mirostat_eta": "Mirostat rate", "dry_multiplier": "DRY strength", "dry_base": "DRY base",
            "dry_allowed_length": "DRY allowed length", "dry_penalty_last_n": "DRY searched tokens",
        },
    ),
    SettingGroup(
        "Screen",
        {
            "theme": "Colour theme", "ascii": "Draw with ASCII only", "centered": "Centre conversations",
            "figures": "Show the speed of replies", "footer": "Show keys in the footer",
            "titles": "Write titles", "copy_on_select": "Copy selected text",
        },
    ),
    SettingGroup("Keys", {"vim_keys": "Vim keys", "keys": "Key bindings"}),
)  # fmt: skip
"""Groups of all settings, in the order in which the screen shows them."""
LABELS: Final = {name: label for group in GROUPS for name, label in group.labels.items()}
"""Labels of all settings by name."""


def list_rows(names: Iterable[str], settings: Settings, width: int, *, with_headings: bool) -> Iterator[Option]:
    """Yield the rows of the settings `names` for a list of `width` columns.

    With `with_headings`, the settings are grouped; otherwise they keep the order of `names`.
    """
    if not with_headings:
        yield from (_format_row(name, settings, width) for name in names)
        return
    shown_names = set(names)
    for group in GROUPS:
        group_names = [name for name in group.labels if name in shown_names]
        if group_names:
            yield Option(Text(group.title, "bold"), disabled=True)
            yield from (_format_row(name, settings, width) for name in group_names)


def _format_row(name: str, settings: Settings, width: int) -> Option:
    value = getattr(settings, name)
    row = Text(f"{LABELS[name]:<{_LABEL_COLUMNS}}", no_wrap=True, overflow="ellipsis")
    if width >= _MIN_WIDTH_WITH_NAMES:
        row.append(f"{name:<{_NAME_COLUMNS}}", style="dim")
    row.append(escape_controls(format_value(value)), style="dim" if value == getattr(Settings(), name) else "bold")
    return Option(row, id=name)


def format_value(value: object) -> str:
    """Format the value of a setting for the list."""
    if value is None:
        return "(not set)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {getattr(v, 'url', v)}" for k, v in value.items()) or "(none)"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(none)"
    return str(value) if value != "" else "(empty)"
