"""Report of the speculative decoding benchmark, and its table."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgechat.bench.repetition import RepetitionCheck


class SpeculationRow(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one kind of conversation. Speeds are relative to the same engine without drafts."""

    kind: str
    scripted_speed: float | None = msgspec.field(name="forced")
    """Measured speed of the scripted replies, median over the rounds."""
    noise: float | None
    """Speed of a second run of the scripted replies without drafts, relative to the first run without drafts."""
    own_reply_speed: float | None = msgspec.field(name="free")
    """Measured speed of the model's own replies, median over the rounds."""
    mean_acceptance_length: float
    replay_speed: float = msgspec.field(name="replayed")
    """Speed of the scripted replies in a simulation, computed from measured step costs.

    The drafter learns from each reply for the next replies.
    """
    fresh_replay_speed: float = msgspec.field(name="replayed_fresh")
    """Speed of the scripted replies in the simulation, with a drafter that has not learned from other replies."""
    static_policy_speeds: dict[str, float] = msgspec.field(name="fixed")
    """Speed of the scripted replies in the simulation with each static drafting policy, by policy name."""
    peer_speeds: dict[str, float] = msgspec.field(default_factory=dict, name="peers")
    """Speed of llama-server with drafts relative to llama-server without drafts, by name in `PEERS`."""
    plain_speed_vs_peer: float | None = msgspec.field(default=None, name="peer_plain")
    """Speed of edgechat without drafts divided by that of llama-server without drafts; None if it was not measured."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of the model's own greedy replies with and without drafts, token by token."""

    n_replies: int = msgspec.field(name="n_answers")
    n_different_replies: int = msgspec.field(name="n_different")
    """Number of replies that differ, because the rounding of a larger batch decided a near tie differently."""
    n_tokens: int
    """Number of compared tokens. Each pair of replies is compared up to the first different token."""


class SpeculationReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the speculation benchmark."""

    model: str
    backend: str
    n_threads: int
    rounds: int
    step_costs: dict[int, float]
    """Cost of a decode step by its number of tokens, relative to a step of one token."""
    ceiling: float
    """Largest possible speed relative to plain decoding: 16 divided by the cost of a step of 16 tokens."""
    rows: list[SpeculationRow]
    min_reply_speed: float = msgspec.field(name="worst_reply")
    """Lowest replay speed of a reply of 100 tokens or more, including the model's own replies."""
    fifth_percentile_speed: float = msgspec.field(name="fifth_percentile")
    """5th percentile of the replay speeds of all replies, including the model's own replies."""
    agreement: Agreement
    repetition: RepetitionCheck | None = None
    """Alarms of the loop detector in the scripted replies, and its cost; None in reports of earlier versions."""


def format_table(report: SpeculationReport) -> str:
    """Format the report as a table."""
    policies, peers = list(report.rows[0].static_policy_speeds), list(report.rows[0].peer_speeds)
    columns = ["forced", "noise", "free", "length", "replayed", "fresh", *policies, *peers]
    costs = ", ".join(f"{n}: {ratio:.2f}" for n, ratio in report.step_costs.items())
    lines = [
        (
            f"{Path(report.model).name}, {report.backend}, {report.n_threads} threads, {report.rounds} rounds "
            "(medians); speeds relative to plain decoding"
        ),
        f"cost of a step of n tokens: {costs}; maximum speed {report.ceiling:.1f}",
        f"{'':<18}" + "".join(f"{column:>{max(9, len(column) + 2)}}" for column in columns),
    ]
    for row in report.rows:
        values = [
            row.scripted_speed, row.noise, row.own_reply_speed, row.mean_acceptance_length, row.replay_speed,
            row.fresh_replay_speed, *row.static_policy_speeds.values(), *(row.peer_speeds.get(name) for name in peers),
        ]  # fmt: skip
        lines.append(
            f"{row.kind:<18}"
            + "".join(
                f"{'' if value is None else format(value, '.3f'):>{max(9, len(column) + 2)}}"
                for column, value in zip(columns, values, strict=True)
            )
        )
    lines.append(
        f"replayed replies, including the model's own: 5th percentile {report.fifth_percentile_speed:.3f}, "
        f"slowest of 100 tokens or more {report.min_reply_speed:.3f}"
    )
    agreement = report.agreement
    lines.append(
        f"the model's own replies with and without drafts: {agreement.n_different_replies} of {agreement.n_replies} "
        f"differ, in {agreement.n_tokens} tokens"
    )
    check = report.repetition
    if check is not None:
        lines.append(
            f"loop detector: {check.n_alarms} alarms in {check.n_replies} scripted replies, "
            f"{check.reply_cost_us:.1f} us per token in replies, {check.loop_cost_us:.1f} us in loops"
        )
    return "\n".join(lines)
