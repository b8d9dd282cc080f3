"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edgechat.engine.generation import GenerationStats

if TYPE_CHECKING:
    from edgechat.serve.model_queue import ModelQueue

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_TTFT_BUCKETS_S: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_DECODE_TPS_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """Counters, gauges and histograms of one server, in a separate Prometheus registry."""

    def __init__(self, queues: Sequence[ModelQueue]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "edgechat_requests", "HTTP requests by path and status", ["path", "status"], registry=registry
        )
        self._tokens = {
            name: Counter(f"edgechat_{name}_tokens", description, registry=registry)
            for name, description in (
                ("prompt", "Prompt tokens"), ("cached", "Prompt tokens from the prefix cache"),
                ("completion", "Generated tokens"), ("drafted", "Draft tokens of speculative decoding"),
                ("accepted", "Accepted draft tokens of speculative decoding"),
            )
        }  # fmt: skip
        self._ttft = Histogram(
            "edgechat_ttft_seconds", "Time to first token", buckets=_TTFT_BUCKETS_S, registry=registry
        )
        self._decode_tps = Histogram(
            "edgechat_decode_tokens_per_second", "Decode speed of each request", buckets=_DECODE_TPS_BUCKETS,
            registry=registry,
        )  # fmt: skip
        for name, description, count in (
            ("running", "Running requests (with at least one engine event)", lambda m: m.n_running),
            ("waiting", "Waiting requests (without an engine event so far)", lambda m: m.n_requests - m.n_running),
        ):
            gauge = Gauge(f"edgechat_requests_{name}", description, ["model"], registry=registry)
            for model in queues:
                gauge.labels(model.name).set_function(lambda m=model, count=count: count(m))  # type: ignore[misc]

    def count_request(self, path: str, status: int) -> None:
        """Count an HTTP request by its path and response status."""
        self._requests.labels(path, str(status)).inc()

    def record_stats(self, all_stats: Sequence[GenerationStats]) -> None:
        """Add the statistics of finished engine requests to the counters and histograms."""
        for stats in all_stats:
            for name, count in (
                ("prompt", stats.prompt_tokens), ("cached", stats.cached_tokens),
                ("completion", stats.completion_tokens), ("drafted", stats.n_drafted), ("accepted", stats.n_accepted),
            ):  # fmt: skip
                self._tokens[name].inc(count)
            self._ttft.observe(stats.ttft_s)
            if stats.decode_tps:
                self._decode_tps.observe(stats.decode_tps)

    def render(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
