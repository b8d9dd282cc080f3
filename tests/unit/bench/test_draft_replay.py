"""Replays of recorded replies, and the bundled workloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.bench import draft_replay, workloads
from edgechat.errors import UsageError
from edgechat.speculation.step_costs import STEP_SIZES, RunningMean, StepCosts
from tests.suffix_reference import PlainIndex


def costs_of(ratio: float) -> StepCosts:
    """Step costs that are equal for all steps of several tokens."""
    costs = StepCosts()
    for ratios in costs.ratios:
        ratios.update({n: RunningMean(ratio, 3) for n in STEP_SIZES})
    return costs


FREE = costs_of(1.0)
FRESH = list(range(100, 140))


def speed(policy: draft_replay.Policy, prompt: list[int], reply: list[int], costs: StepCosts = FREE) -> float:
    return draft_replay.replay(policy, prompt, reply, costs)


def test_copied_text_reaches_the_speed_of_its_steps() -> None:
    # 40 tokens, the first of which comes out of the prefill; the next are found after one match, 31 at a time.
    lookups: list[draft_replay.Policy] = [draft_replay.NgramSimple(1, 31), draft_replay.PromptLookup(1, 31)]
    for policy in lookups:
        assert speed(policy, [1, *FRESH], FRESH) == pytest.approx(39 / 2)
    assert speed(draft_replay.PromptLookup(), [1, *FRESH], FRESH) == pytest.approx(39 / 4)
    assert speed(draft_replay.make_edgechat_policy(PlainIndex, FREE), [1, *FRESH], FRESH) > 8
    assert speed(draft_replay.PlainSuffix(PlainIndex()), [1, *FRESH], FRESH) > 5
    assert speed(draft_replay.NgramSimple(), [1, *FRESH], FRESH[:12]) == 1.0  # twelve tokens are not there yet


def test_text_without_repetition_has_no_cost() -> None:
    for policy in (
        draft_replay.make_edgechat_policy(PlainIndex, FREE),
        *(make(PlainIndex) for make in draft_replay.STATIC_POLICIES.values()),
    ):
        assert speed(policy, FRESH, list(range(200, 260))) == 1.0


def test_wrong_drafts_cost_time() -> None:
    prompt, reply = [1, 2, 1, 3, 1, 4], [1, 5, 1, 6, 1, 7, 1, 8]
    assert speed(draft_replay.NgramSimple(1, 3), prompt, reply, costs_of(3.0)) < 0.6
    assert speed(draft_replay.make_edgechat_policy(PlainIndex, costs_of(3.0)), prompt, reply, costs_of(3.0)) == 1.0


def test_static_policies_use_oldest_and_newest_matches() -> None:
    text = [7, 8, 1, 7, 8, 2, 7, 8]
    assert draft_replay._find_earlier_match(text, 2, use_newest=False) == 2
    assert draft_replay._find_earlier_match(text, 2, use_newest=True) == 5
    assert draft_replay._find_earlier_match([7], 1, use_newest=True) is None


def test_bundled_workloads_are_complete() -> None:
    found = workloads.read_workloads()
    kinds = {case.kind for case in found.cases}
    assert kinds == {
        "edit",
        "reprint",
        "refactor",
        "summarise",
        "answer from a text",
        "extract",
        "translate",
        "follow-up",
        "open chat",
    }
    for case in found.cases:
        assert not any("{" + name + "}" in said for name in found.texts for said in found.messages(case))
        assert len(found.reply(case)) > 300
        assert not case.reply_of or all(old in found.texts[case.reply_of] for old, _ in case.changes)
    edit = next(case for case in found.cases if case.changes)
    assert "price_cents" in found.messages(edit)[0]
    assert "price_cents" not in found.reply(edit).replace("`price_cents` renamed", "")


@pytest.mark.parametrize(
    ("words", "reason"),
    [("[[cases", "not a workload file"), ("a = 1", "not a workload file"), ("cases = []", "no cases"),
     ("\udcff", "not a workload file"),
     ('[[cases]]\nkind = "a"\nmessages = ["b", "c"]\nreply = "d"', "odd number"),
     ('[[cases]]\nkind = "a"\nmessages = []\nreply = "d"', "odd number"),
     ('[[cases]]\nkind = "a"\nmessages = ["b"]', "no reply"),
     ('[[cases]]\nkind = "a"\nmessages = ["b"]\nreply_of = "c"', "needs the text 'c', which is missing"),
     ('[[cases]]\nkind = 1\nmessages = ["b"]\nreply = "c"', "kind")],
)  # fmt: skip
def test_invalid_workload_file_is_refused(tmp_path: Path, words: str, reason: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(words.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=reason):
        workloads.read_workloads(path)
