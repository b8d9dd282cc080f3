"""Speeds of replies in the engine."""

from __future__ import annotations

from edgechat.engine.reply_speeds import ReplySpeeds, SpeedRecorder
from edgechat.hardware.contention import Timing
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime.backends import observed_speeds
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.observed_speeds import ObservedSpeeds

BACKEND = find_bundle().modules[0].name


def make_reply(step_s: float = 0.1, n_steps: int = 20, depth: int = 100, n_disturbed: int = 0) -> ReplySpeeds:
    reply = ReplySpeeds()
    for position in range(n_steps):
        reply.record_step(depth + position, Timing(step_s))
    for position in range(n_disturbed):
        reply.record_step(depth + position, Timing(100 * step_s, "other programs took 1.0 of the cores"))
    return reply


def test_undisturbed_steps_of_a_reply_give_its_speed() -> None:
    assert make_reply().decode_tps == 10.0
    assert make_reply(n_disturbed=100).decode_tps == 10.0
    assert make_reply(n_steps=15, n_disturbed=100).decode_tps is None  # too few
    assert make_reply(depth=1020).decode_tps is None  # too deep in the context
    assert make_reply(step_s=0.0).decode_tps is None


def test_prefill_batches_of_some_hundred_tokens_give_the_prefill_speed() -> None:
    reply = ReplySpeeds()
    reply.record_prefill(0, 100, Timing(9.0))  # too short
    reply.record_prefill(0, 512, Timing(100.0, "the process was paused"))
    reply.record_prefill(1800, 2312, Timing(100.0))  # too deep in the context
    assert reply.prefill_tps is None
    reply.record_prefill(0, 512, Timing(5.0))
    reply.record_prefill(512, 1000, Timing(5.0))
    assert reply.prefill_tps == 100.0


def test_speeds_are_saved_for_models_on_the_cpu() -> None:
    plan = make_manual_plan("model.gguf", n_ctx=512, n_threads=2, n_threads_batch=4)
    recorder = SpeedRecorder(plan, BACKEND)
    recorder.add(make_reply())
    recorder.add(ReplySpeeds())
    assert ObservedSpeeds(find_bundle(), BACKEND).find("model.gguf", 2, 4).decode_tps == ()
    for _ in range(2):
        recorder.save()
    assert ObservedSpeeds(find_bundle(), BACKEND).find("model.gguf", 2, 4).decode_tps == (10.0,)
    on_gpu = SpeedRecorder(make_manual_plan("large.gguf", n_ctx=512, n_threads=2, n_gpu_layers=5), BACKEND)
    on_gpu.add(make_reply())
    on_gpu.save()
    assert ObservedSpeeds(find_bundle(), BACKEND).find("large.gguf", 2, 2).decode_tps == ()


def test_backend_that_is_not_in_the_bundle_saves_nothing() -> None:
    assert observed_speeds.make_backend_key(find_bundle(), "cpu-unknown") == ""
    recorder = SpeedRecorder(make_manual_plan("model.gguf", n_ctx=512, n_threads=2), "cpu-unknown")
    recorder.add(make_reply())
    recorder.save()
    assert ObservedSpeeds(find_bundle(), "cpu-unknown").find("model.gguf", 2, 2).decode_tps == ()
