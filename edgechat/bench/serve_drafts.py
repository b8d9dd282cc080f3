"""Benchmark of drafts for several clients of the server: total speed with drafts, relative to that without."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench.edgechat_server import EdgechatServer
from edgechat.bench.model_drafters import find_drafter_file, select_kinds
from edgechat.bench.prefix import PAUSE_S
from edgechat.bench.serve import N_CLIENTS, StreamingClient
from edgechat.bench.workloads import Workloads

DEFAULT_KINDS: Final = ("reprint", "edit", "open chat")
"""Kinds of conversations that are measured unless the user chooses others: from repeating text to text that is not."""
# Part of the scripted reply that each prompt contains, so that a small model also continues the reply.
_STARTED_FRACTION: Final = 3
_WITH, _WITHOUT = "with drafts", "without drafts"


class ServeDraftsRow(msgspec.Struct, frozen=True, kw_only=True):
    """Total speed of all clients in tokens per second, by round, for one kind of conversation."""

    kind: str
    with_drafts: list[float]
    without_drafts: list[float]
    ratio: float
    """Median of the speeds with drafts over those without."""


class ServeDraftsReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the benchmark of drafts for several clients."""

    model: str
    draft_model: str
    n_threads: int
    n_clients: int
    n_reply: int
    """Number of tokens in each reply."""
    rounds: int
    rows: list[ServeDraftsRow]


class ServeDraftsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Model, drafter, threads and rounds of the measurement."""

    model: str
    n_threads: int
    draft_model: str = "auto"
    rounds: int = 5
    n_reply: int = 96
    n_ctx: int = 8192


def run(
    options: ServeDraftsOptions, workloads: Workloads, kinds: Sequence[str] = DEFAULT_KINDS,
    on_progress: Callable[[str], None] = lambda text: None,
) -> ServeDraftsReport:  # fmt: skip
    """Measure four clients of a server with drafts and of one without, in turn. Raises EdgechatError."""
    # The servers have a home of their own, in which no other model is installed.
    draft_file = find_drafter_file(options.model, options.draft_model)
    prompts = {kind: make_prompts(select_kinds(workloads, [kind])) for kind in kinds}
    speeds: dict[tuple[str, str], list[float]] = {}
    flags = {_WITH: ("--draft-model", draft_file), _WITHOUT: ("--no-speculation",)}
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as scratch_dir, contextlib.ExitStack() as stack:
        clients = {}
        for name, variant_flags in flags.items():
            server = EdgechatServer(
                "-m", options.model, "--threads", str(options.n_threads), "--ctx", str(options.n_ctx), *variant_flags,
                environment=os.environ | {"EDGECHAT_HOME": str(Path(scratch_dir) / name.partition(" ")[0])},
            )  # fmt: skip
            stack.callback(server.close)
            clients[name] = StreamingClient(server.port)
        for round_index in range(options.rounds + 1):  # the first round fills the prompt cache and is not counted
            on_progress(f"round {round_index} of {options.rounds}" if round_index else "warming up")
            for kind, kind_prompts in prompts.items():
                for name in (_WITH, _WITHOUT) if round_index % 2 else (_WITHOUT, _WITH):
                    tps = clients[name].complete_concurrently(kind_prompts, options.n_reply)
                    if round_index:
                        speeds.setdefault((kind, name), []).append(tps)
                    time.sleep(PAUSE_S)
    return ServeDraftsReport(
        model=options.model, draft_model=draft_file, n_threads=options.n_threads, n_clients=N_CLIENTS,
        n_reply=options.n_reply, rounds=options.rounds,
        rows=[make_row(kind, speeds[kind, _WITH], speeds[kind, _WITHOUT]) for kind in prompts],
    )  # fmt: skip


def make_prompts(workloads: Workloads) -> list[str]:
    """Return a prompt for each client: the messages of a case, and the first third of its scripted reply."""
    prompts = []
    for client in range(N_CLIENTS):
        case = workloads.cases[client % len(workloads.cases)]
        reply = workloads.reply(case)
        messages = "\n\n".join(workloads.messages(case))
        prompts.append(f"Client {client + 1}.\n\n{messages}\n\n{reply[: len(reply) // _STARTED_FRACTION]}")
    return prompts


def make_row(kind: str, with_drafts: list[float], without_drafts: list[float]) -> ServeDraftsRow:
    """Return the results of one kind of conversation."""
    ratios = [a / b for a, b in zip(with_drafts, without_drafts, strict=True) if b]
    return ServeDraftsRow(
        kind=kind, with_drafts=with_drafts, without_drafts=without_drafts, ratio=statistics.median(ratios or [1.0])
    )


def format_table(report: ServeDraftsReport) -> str:
    """Format the report as a table."""
    lines = [
        (
            f"{Path(report.model).name}, drafter {report.draft_model}, {report.n_clients} clients, "
            f"{report.n_threads} threads, {report.rounds} rounds (medians)"
        ),
        f"{'tokens/s':<18}{'with drafts':>14}{'without':>10}{'ratio':>8}",
    ]
    for row in report.rows:
        with_tps, without_tps = statistics.median(row.with_drafts), statistics.median(row.without_drafts)
        lines.append(f"{row.kind:<18}{with_tps:>14.1f}{without_tps:>10.1f}{row.ratio:>8.3f}")
    return "\n".join(lines)
