"""An engine's events cut off where a text says that the answer ends, for models whose template knows no such token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from edgechat.chat.reasoning import overlap
from edgechat.engine import protocol


def until(events: Iterator[protocol.AnyEvent], stop: str, cancel: Callable[[], None]) -> Iterator[protocol.AnyEvent]:
    """The events, with the text cut off where `stop` begins; "" cuts nothing."""
    if not stop:
        yield from events
        return
    held, stopped = "", False
    for event in events:
        if isinstance(event, protocol.TokensGenerated):
            if stopped:
                continue
            held += event.text
            found = held.find(stop)
            if found >= 0:
                stopped = True
                cancel()
                keep = found
            else:
                keep = len(held) - overlap(held, stop)
            text, held = held[:keep], held[keep:]
            if text:
                yield msgspec.structs.replace(event, text=text)
        elif isinstance(event, protocol.TurnFinished):
            if held and not stopped:
                yield protocol.TokensGenerated(id=event.id, text=held, tokens=[])
            yield msgspec.structs.replace(event, finish_reason="stop") if stopped else event
        else:
            yield event
