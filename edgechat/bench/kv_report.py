"""Workload and results of the KV benchmark, and the messages of its child process."""

from __future__ import annotations

from typing import Final

import msgspec

from edgechat.planner.kv_types import KvType

N_NEEDLES: Final = 10
"""Number of sentences with a number that are hidden in the text."""


class KvCaseOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one case: KV cache type, YaRN factor and batch size."""

    kv_type: KvType = "f16"
    yarn_factor: float = 1.0
    n_ubatch: int = 512
    """Number of tokens that are computed at once. Smaller numbers use other kernels, which round differently."""

    @property
    def title(self) -> str:
        """Short description, such as `f16, YaRN 4`."""
        return (
            self.kv_type
            + (f", YaRN {self.yarn_factor:g}" if self.yarn_factor != 1.0 else "")
            + (f", batches of {self.n_ubatch}" if self.n_ubatch != KvCaseOptions().n_ubatch else "")
        )


class KvWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Model, cases and depths of a KV measurement."""

    model: str
    n_threads: int
    depths: list[int]
    """Numbers of tokens in the context, smallest first."""
    cases: list[KvCaseOptions]
    """Options of each case; the first one is the reference."""


class KvDepthResult(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one case at one depth, the number of tokens in the context."""

    depth: int
    divergence: float
    """Mean Kullback-Leibler divergence of the next-token distribution from the reference, in nats."""
    agreement: float
    """Fraction of positions at which the most likely token is the same as in the reference."""
    n_found_needles: int
    prefill_cpu_s: float
    """CPU time of the prefill of the text before the compared positions, in seconds, of all threads together."""


class KvCase(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one case, by depth."""

    options: KvCaseOptions
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
