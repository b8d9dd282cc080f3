"""Saved speeds of replies: ages, limits, and unusable files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.planner.observed_speed import ObservedSpeed
from edgechat.runtime.backends import observed_speeds
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from edgechat.runtime.backends.observed_speeds import ObservedSpeeds

DAY_S = 86400.0
BUNDLE = Bundle(
    directory="/b", build_id="1", llama_cpp_python="1", llama_cpp_commit="1", compiler="cc",
    modules=(BackendModule(name="cpu-x64", path="/none"), BackendModule(name="cpu-zen4", path="/none")),
)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"12345")
    return path


def record(model: Path, *tps: float, backend: str = "cpu-x64", n_threads: int = 2, age_s: float = 0.0) -> None:
    key = observed_speeds.make_backend_key(BUNDLE, backend)
    now = time.time()
    observed_speeds.record(str(model), key, {("decode", n_threads): list(tps)}, clock=lambda: now - age_s)


def find(model: Path, backend: str = "cpu-x64", n_threads: int = 2) -> tuple[float, ...]:
    return ObservedSpeeds(BUNDLE, backend).find(str(model), n_threads, n_threads).decode_tps


def test_replies_count_for_their_model_backend_and_number_of_threads(model: Path, tmp_path: Path) -> None:
    assert ObservedSpeeds(BUNDLE, "cpu-x64").find(str(model), 2, 2) == ObservedSpeed()
    record(model, 10.0)
    record(model, 11.0, 12.0)
    assert find(model) == (10.0, 11.0, 12.0)
    assert find(model, "cpu-zen4") == find(model, "unknown") == find(model, n_threads=1) == ()
    assert find(model.rename(tmp_path / "other.gguf")) == ()
    (tmp_path / "folder").mkdir()
    assert find((tmp_path / "other.gguf").rename(tmp_path / "folder" / "model.gguf")) == (10.0, 11.0, 12.0)
    (tmp_path / "folder" / "model.gguf").write_bytes(b"1234567")  # another model of this name
    assert find(tmp_path / "folder" / "model.gguf") == ()


def test_prefill_has_a_number_of_threads_of_its_own(model: Path) -> None:
    key = observed_speeds.make_backend_key(BUNDLE, "cpu-x64")
    observed_speeds.record(str(model), key, {("decode", 4): [10.0], ("prefill", 8): [90.0]})
    speeds = ObservedSpeeds(BUNDLE, "cpu-x64")
    assert speeds.find(str(model), 4, 8) == ObservedSpeed(decode_tps=(10.0,), prefill_tps=(90.0,))
    assert speeds.find(str(model), 8, 4) == ObservedSpeed()


def test_replies_of_the_last_thirty_days_count(model: Path) -> None:
    record(model, 10.0, age_s=31 * DAY_S)
    record(model, 11.0, age_s=29 * DAY_S)
    record(model, 12.0, age_s=-DAY_S)  # of a wrong clock
    assert find(model) == (11.0,)


def test_file_has_a_limited_number_of_replies_and_models(model: Path) -> None:
    for number in range(40):
        record(model, float(number + 1))
    assert find(model) == tuple(float(number) for number in range(26, 41))
    for number in range(300):
        record(model, 1.0, n_threads=number)
    assert len(json.loads(paths.observed_speeds_file().read_bytes())["replies"]) == 200
    assert find(model, n_threads=299) == (1.0,)
    assert find(model, n_threads=5) == ()


def test_benchmark_is_repeated_once_a_day(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    assert observed_speeds.may_remeasure()
    record(model, 10.0)
    observed_speeds.record_remeasurement()
    assert not observed_speeds.may_remeasure()
    assert find(model) == (10.0,)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + DAY_S + 1)
    assert observed_speeds.may_remeasure()
    monkeypatch.setattr(time, "time", lambda: now - DAY_S)  # the clock was set back
    assert observed_speeds.may_remeasure()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content | {"version": 2},
        lambda content: {"replies": content["replies"]},
        lambda content: content | {"replies": {key: [[0.0, 1.0]] for key in content["replies"]}},
        lambda content: content | {"replies": {key: [[-1.0, 1e9]] for key in content["replies"]}},
        lambda content: content | {"replies": {key: [[1e300, 1e9]] for key in content["replies"]}},
        lambda content: content | {"replies": {key: [[5.0, -1.0]] for key in content["replies"]}},
        lambda content: content | {"replies": {key: [["fast", 1e9]] for key in content["replies"]}},
        lambda content: content | {"replies": [1]},
        lambda content: content | {"remeasured_at": "never"},
        lambda content: [content],
        lambda content: content | {"padding": " " * (2 << 20)},
    ],
)
def test_unusable_file_counts_as_absent_and_is_replaced(model: Path, change: object) -> None:
    record(model, 10.0)
    path = paths.observed_speeds_file()
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(change(content)))  # type: ignore[operator]
    assert find(model) == ()
    assert observed_speeds.may_remeasure()
    record(model, 11.0)
    assert find(model) == (11.0,)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"version": 1, "replies": {"k": [[1e999, 1]]}}']
)
def test_damaged_file_counts_as_absent(model: Path, data: bytes) -> None:
    record(model, 10.0)
    paths.observed_speeds_file().write_bytes(data)
    assert find(model) == ()


def test_new_fields_of_later_versions_are_ignored(model: Path) -> None:
    record(model, 10.0)
    path = paths.observed_speeds_file()
    content = json.loads(path.read_bytes())
    replies = {key: [[*reply, "new"] for reply in entry] for key, entry in content["replies"].items()}
    path.write_text(json.dumps(content | {"replies": replies, "new": 1}))
    assert find(model) == (10.0,)


def test_folder_in_place_of_the_file_changes_nothing(model: Path) -> None:
    paths.observed_speeds_file().mkdir(parents=True)
    record(model, 10.0)
    observed_speeds.record_remeasurement()
    assert find(model) == ()
