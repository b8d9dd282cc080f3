"""Speculator: draft limits and statistics of one reply."""

from __future__ import annotations

import pytest

from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.controller import DraftController
from edgechat.speculation.drafter import LiveDrafter
from edgechat.speculation.speculator import Speculator
from tests.suffix_reference import PlainIndex
from tests.unit.speculation.costs import STAIRCASE, costs_of


def test_drafts_stop_before_an_end_token_and_at_the_token_limit() -> None:
    controller = DraftController(Acceptance(), costs_of(STAIRCASE))
    speculator = Speculator([LiveDrafter(PlainIndex())], controller, is_end_token=lambda token: token == 0)
    text = [*range(1, 40), 0, *range(1, 36)]
    speculator.start(text[:-1])
    assert speculator.propose(100, 100) == []  # the first step of a reply measures a single token
    speculator.record_step(0, 0, 35, 100, 0.01)
    speculator.append([35])
    assert speculator.propose(100, 100) == [36, 37, 38]
    speculator.record_step(3, 3, 39, 100, 0.0142)
    assert speculator.propose(1, 100) == [36]
    speculator.record_step(1, 1, 37, 100, 0.0107)
    assert speculator.propose(0, 100) == []
    speculator.record_step(0, 0, 37, 100, 0.01)
    stats = speculator.stats
    assert (stats.n_drafts, stats.n_drafted, stats.n_accepted, stats.n_tokens) == (2, 4, 4, 8)
    assert stats.mean_acceptance_length == 3.0
    assert stats.gain == pytest.approx(8 * 0.01 / (0.0142 + 0.0107 + 0.02), rel=0.01)
