"""Convert the input bytes of a terminal to Textual's events, and drop reports that Textual does not use.

It uses private API of Textual, checked against Textual 8.2.8 (see also `textual_private.py`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from textual import constants, events
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual._keyboard_protocol import FUNCTIONAL_KEYS
from textual._xterm_parser import XTermParser

from edgechat.tui.control_sequences import Background, KeyTables
from edgechat.tui.input_filter import InputFilter, Token
from edgechat.tui.paste_reader import Paste
from edgechat.tui.terminal_traits import BackgroundReported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from textual.message import Message

POLL_S: Final = 0.1
"""Interval at which an input thread checks whether it must end."""


class TerminalParser:
    """Converts the bytes of a terminal to Textual's events. Bytes that are neither a key nor a report are dropped."""

    def __init__(self) -> None:
        tables = KeyTables(ANSI_SEQUENCES_KEYS.__contains__, FUNCTIONAL_KEYS.__contains__)
        self._filter = InputFilter(tables, constants.ESCAPE_DELAY)
        self._parser = XTermParser()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the events that are complete after `data`."""
        return self._parse(self._filter.feed(data, time.monotonic()))

    def tick(self) -> Iterator[Message]:
        """Yield the events of keys whose sequence did not continue. Call this only if there is no more data to read."""
        return self._parse(self._filter.expire(time.monotonic()))

    @property
    def remaining_s(self) -> float:
        """Time until the next call of `tick` is due, or `POLL_S` if that is sooner."""
        deadline = self._filter.deadline
        return POLL_S if deadline is None else min(POLL_S, max(0.0, deadline - time.monotonic()))

    def _parse(self, tokens: Iterable[Token]) -> Iterator[Message]:
        parser = self._parser
        for token in tokens:
            if isinstance(token, Paste):
                yield events.Paste(token.text)
                continue
            if isinstance(token, Background):
                yield BackgroundReported(is_light=token.is_light)
                continue
            yield from parser.feed(token)
            # After ESC or Alt with a letter, Textual's parser waits for more input, but tokens are complete.
            if parser._timeout_time is not None:  # noqa: SLF001
                parser._timeout_time = 0.0  # noqa: SLF001
                yield from parser.tick()


class ConsoleParser(TerminalParser):
    """`TerminalParser` with the interface of Textual's parser, for the Windows console, whose input is text."""

    def __init__(self, *, debug: bool = False) -> None:  # noqa: ARG002
        super().__init__()

    def feed(self, data: str) -> Iterator[Message]:  # type: ignore[override]
        return super().feed(data.encode("utf-8", "replace"))
