"""Events of an output sequence: the source of its drafts, while they are a noticeable share of the reply."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.engine.protocol import TokensGenerated
from edgechat.engine.sequence import OutputSequence
from edgechat.speculation.speculator import SpeculationStats


@pytest.mark.parametrize(("n_accepted", "source"), [(0, ""), (2, ""), (40, "model")])
def test_source_of_drafts_is_named_only_if_they_are_a_noticeable_share(n_accepted: int, source: str) -> None:
    stats = SpeculationStats(
        n_drafts=n_accepted, n_drafted=60, n_accepted=n_accepted, accepted_by_source=[0, 0, n_accepted], n_tokens=300
    )
    events: list[TokensGenerated] = []
    sequence: Any = SimpleNamespace(
        speculator=SimpleNamespace(stats=stats), _params=SimpleNamespace(id=1), index=0, _unsent_text="a",
        _unsent_tokens=[1], _logprobs=[], _score=None, _thoughts=None, _send=events.append,
    )  # fmt: skip
    OutputSequence._flush(sequence)
    assert events[0].draft_source == source
