"""Moving average of a throughput."""

from __future__ import annotations

from edgechat.prefix.throughput import Throughput


def test_average_ignores_short_measurements_and_follows_later_ones() -> None:
    throughput = Throughput(10.0)
    throughput.record(100, 0.0)
    assert throughput.duration_s(100) == 10.0
    throughput.record(200, 1.0)
    assert throughput.per_s == 200.0
    for _ in range(30):
        throughput.record(100, 1.0)
    assert 99 < throughput.per_s < 101


def test_disturbed_measurements_count_only_until_an_undisturbed_one() -> None:
    throughput = Throughput(10.0)
    for amount in (3, 5, 4):
        throughput.record(amount, 1.0, is_disturbed=True)
    assert throughput.per_s == 5.0
    throughput.record(200, 1.0)
    assert throughput.per_s == 200.0
    throughput.record(200, 300.0, is_disturbed=True)
    assert throughput.per_s == 200.0
