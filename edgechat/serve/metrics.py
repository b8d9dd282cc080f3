"""What was served, in numbers, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edgechat.engine.protocol import GenerationStats

if TYPE_CHECKING:
    from edgechat.serve.model_queue import ModelQueue

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_RATES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """Counts of one server."""

    def __init__(self, models: Mapping[str, ModelQueue]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "edgechat_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self._tokens = {
            name: Counter(f"edgechat_{name}_tokens", words, registry=registry)
            for name, words in (
                ("prompt", "Tokens of prompts"), ("cached", "Tokens of prompts that did not have to be computed"),
                ("completion", "Tokens of answers"), ("drafted", "Tokens that were tried ahead"),
                ("accepted", "Tokens that were tried ahead and were right"),
            )
        }  # fmt: skip
        self._ttft = Histogram("edgechat_ttft_seconds", "Time to the first token", buckets=_SECONDS, registry=registry)
        self._decode = Histogram("edgechat_decode_tokens_per_second", "Of answers", buckets=_RATES, registry=registry)
        for name, words, count in (
            ("running", "Requests that are being answered", lambda m: m.n_running),
            ("waiting", "Requests that wait", lambda m: m.n_requests - m.n_running),
        ):
            gauge = Gauge(f"edgechat_requests_{name}", words, ["model"], registry=registry)
            for model in models.values():
                gauge.labels(model.name).set_function(lambda m=model, count=count: count(m))  # type: ignore[misc]

    def count_request(self, path: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(path, str(status)).inc()

    def record_stats(self, found: Sequence[GenerationStats]) -> None:
        """Answers ended."""
        for stats in found:
            for name, count in (
                ("prompt", stats.prompt_tokens), ("cached", stats.cached_tokens), ("completion", stats.completion_tokens),
                ("drafted", stats.n_drafted), ("accepted", stats.n_accepted),
            ):  # fmt: skip
                self._tokens[name].inc(count)
            self._ttft.observe(stats.ttft_s)
            if stats.decode_tps:
                self._decode.observe(stats.decode_tps)

    def render(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
