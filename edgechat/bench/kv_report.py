"""Workload and results of the KV benchmark, and the messages of its child process."""

from __future__ import annotations

from typing import Final

import msgspec

from edgechat.planner.kv_types import KvType

N_NEEDLES: Final = 10
"""Number of sentences with a number that are hidden in the text."""


class KvWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Model, cases and depths of a KV measurement."""

    model: str
    n_threads: int
    depths: list[int]
    """Numbers of tokens in the context, smallest first."""
    cases: list[tuple[KvType, float]]
    """Type of keys and values, and YaRN factor, of each case; the first one is the reference."""


class KvDepthResult(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one case with one number of tokens in the context."""

    depth: int
    divergence: float
    """Mean Kullback-Leibler divergence of the next-token distribution from the reference, in nats."""
    agreement: float
    """Fraction of positions at which the most likely token is that of the reference."""
    n_found_needles: int
    prefill_tps: float
    """Prefill speed over the whole text, in tokens per second."""


class KvCase(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one type of keys and values, by depth."""

    kv_type: KvType
    yarn_factor: float
    depths: list[KvDepthResult]


class KvProgress(msgspec.Struct, frozen=True, tag="progress"):
    """Progress of the child process."""

    text: str


class KvFailure(msgspec.Struct, frozen=True, tag="failure"):
    """Error of the child process."""

    reason: str


class KvReport(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """Results of all cases, in the order of the workload."""

    workload: KvWorkload
    backend: str
    cases: list[KvCase]
