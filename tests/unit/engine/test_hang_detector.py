"""When an engine process counts as hung."""

from __future__ import annotations

from edgechat.engine.hang_detector import CANCELLED_TICKS, SILENT_TICKS, START_TICKS, STOPPED_TICKS, HangDetector


def count_ticks(detector: HangDetector, *, is_stopped: bool = False, all_cancelled: bool = False) -> tuple[int, str]:
    """Return the number of ticks until the detector reports a hang, and its reason."""
    for n_ticks in range(1, 1000):
        reason = detector.tick(is_stopped=is_stopped, all_cancelled=all_cancelled)
        if reason:
            return n_ticks, reason
    return 0, ""


def started() -> HangDetector:
    detector = HangDetector()
    detector.record_frame()
    detector.tick(is_stopped=False, all_cancelled=False)
    return detector


def test_engine_with_heartbeats_never_hangs_however_long_a_step_takes() -> None:
    detector = HangDetector()
    for _ in range(10_000):
        detector.record_frame()
        assert detector.tick(is_stopped=False, all_cancelled=False) == ""


def test_silent_engine_hangs_later_than_a_stopped_one() -> None:
    assert count_ticks(started()) == (SILENT_TICKS, "it did not respond for 60 s")
    assert count_ticks(started(), is_stopped=True) == (STOPPED_TICKS, "it was suspended for 10 s")
    assert STOPPED_TICKS < SILENT_TICKS


def test_start_of_the_process_may_take_longer() -> None:
    assert count_ticks(HangDetector())[0] == START_TICKS > SILENT_TICKS


def test_cancelled_requests_must_end_although_heartbeats_arrive() -> None:
    detector = HangDetector()
    reasons: list[str] = []
    while not any(reasons):
        detector.record_frame()
        reasons.append(detector.tick(is_stopped=False, all_cancelled=True))
    assert len(reasons) == CANCELLED_TICKS
    assert reasons[-1] == "it did not end a cancelled request within 10 s"


def test_cancelled_requests_may_wait_for_a_resize() -> None:
    detector = HangDetector()
    for _ in range(5 * CANCELLED_TICKS):
        detector.record_frame()
        assert detector.tick(is_stopped=False, all_cancelled=True, is_resizing=True) == ""
    assert count_ticks(detector, all_cancelled=True)[0] == CANCELLED_TICKS


def test_short_silence_and_idle_time_do_not_add_up() -> None:
    detector = started()
    for _ in range(100):
        for _ in range(SILENT_TICKS - 1):
            assert detector.tick(is_stopped=False, all_cancelled=False) == ""
        detector.record_frame()
        assert detector.tick(is_stopped=False, all_cancelled=False) == ""
    for _ in range(100):
        for _ in range(CANCELLED_TICKS - 1):
            detector.record_frame()
            assert detector.tick(is_stopped=False, all_cancelled=True) == ""
        detector.reset()
