"""Use of a GPU by measured speeds: for all layers of a model, for some of them, only for prefill, or not at all."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from edgechat.hardware.gpu import PREFILL_COLUMNS, GpuSpeeds
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.planner.memory import LoadOptions
from edgechat.planner.throughput import OUTPUT_TENSORS, PredictedSpeed, split_tensors, used_fraction
from edgechat.planner.turn import PROMPT_TOKENS, predict_turn

# Share of a model's weights whose type must have been measured. The others count with the same speed per weight.
_MIN_MEASURED_SHARE: Final = 0.5


def put_prefill_on_gpu(options: LoadOptions) -> LoadOptions:
    """Return `options` for the CPU, changed so that the GPU computes prefill."""
    return msgspec.structs.replace(options, prefill_on_gpu=True, use_extra_bufts=False)


def predict_measured_speed(profile: ModelProfile, options: LoadOptions, speeds: GpuSpeeds) -> PredictedSpeed | None:
    """Predict the speed of a model on a GPU and a CPU with the measured `speeds`; None if they are not sufficient.

    If the GPU computes anything, it also computes the prefill of layers in CPU memory, with a copy of their weights for
    each batch (`op_offload` in llama.cpp). Only products with weights are counted.
    """
    rates = {TENSOR_TYPES[r.type_id].name: r for r in speeds.rates if r.type_id in TENSOR_TYPES and r.is_complete}
    cpu_tensors, gpu_tensors = split_tensors(profile, options)
    matrices = [t for t in (*cpu_tensors, *gpu_tensors) if len(t.shape) > 1 and min(t.shape[:2]) > 1]
    measured = [t for t in matrices if t.type in rates]
    n_weights, n_measured = (sum(math.prod(t.shape) for t in tensors) for tensors in (matrices, measured))
    if not measured or n_measured < _MIN_MEASURED_SHARE * n_weights:
        return None
    gpu_names = {t.name for t in gpu_tensors}
    decode_s = prefill_s = copied_bytes = 0.0
    for tensor in measured:
        rate, n_used = rates[tensor.type], math.prod(tensor.shape) * used_fraction(profile, tensor)
        if tensor.name in gpu_names:
            decode_s += n_used / rate.decode
        elif options.uses_gpu:
            decode_s += n_used / (rate.cpu_plain_decode or rate.cpu_decode)
        else:
            decode_s += n_used / rate.cpu_decode
        if tensor.name in OUTPUT_TENSORS:  # only the last token of a prompt needs logits
            continue
        prefill_s += n_used / PREFILL_COLUMNS / (rate.prefill if options.uses_gpu else rate.cpu_prefill)
        if options.uses_gpu and tensor.name not in gpu_names:
            copied_bytes += tensor.size_bytes
    if copied_bytes:
        if not speeds.copied_bytes_per_s:
            return None
        n_batches = math.ceil(PROMPT_TOKENS / options.n_ubatch)
        prefill_s += n_batches * copied_bytes / speeds.copied_bytes_per_s / PROMPT_TOKENS
    if not prefill_s:
        return None
    scale = n_weights / n_measured
    return PredictedSpeed(decode_tps=1 / (scale * decode_s), prefill_tps=1 / (scale * prefill_s))


def predict_turn_s(profile: ModelProfile, options: LoadOptions, speeds: GpuSpeeds) -> float:
    """Return the time of a typical turn without reasoning, in seconds; infinity if the speeds were not measured."""
    speed = predict_measured_speed(profile, options, speeds)
    return predict_turn(speed, thinks=False).total_s if speed is not None else math.inf


def explain_measured_speeds(profile: ModelProfile, options: LoadOptions, speeds: GpuSpeeds) -> str:
    """Return the measured speeds of the GPU and the CPU, and the time of a typical turn for each use of the GPU.

    `options` are those of a load plan, which determine the other uses with which it is compared. If they do not use the
    GPU, the text begins with the reason. Returns "" if the speeds were not measured.
    """
    cpu = msgspec.structs.replace(
        options, n_gpu_layers=0, experts_on_cpu=False, prefill_on_gpu=False, use_extra_bufts=True
    )
    gpu = msgspec.structs.replace(cpu, n_gpu_layers=profile.n_layers + 1)
    gpu_speed, cpu_speed = (predict_measured_speed(profile, o, speeds) for o in (gpu, cpu))
    if gpu_speed is None or cpu_speed is None:
        return ""
    uses = {"on the GPU": gpu, "on the CPU": cpu, "with only prefill on the GPU": put_prefill_on_gpu(cpu)}
    if 0 < options.n_gpu_layers <= profile.n_layers or options.experts_on_cpu:
        uses["as planned"] = options
    turns = {use: predict_turn_s(profile, o, speeds) for use, o in uses.items()}
    times = ", ".join(f"{turn_s:.1f} s {use}" for use, turn_s in turns.items() if math.isfinite(turn_s))
    if not options.uses_gpu:
        is_slower = gpu_speed.prefill_tps <= cpu_speed.prefill_tps and gpu_speed.decode_tps <= cpu_speed.decode_tps
        if is_slower:
            return (
                f"slower than the CPU in prefill ({gpu_speed.prefill_tps:.3g} against {cpu_speed.prefill_tps:.3g} "
                f"tokens/s) and decoding ({gpu_speed.decode_tps:.3g} against {cpu_speed.decode_tps:.3g} tokens/s); a "
                f"typical turn takes {times}"
            )
        is_faster = min(turns.values()) < turns["on the CPU"]
        cause = "its faster uses need more memory than is free" if is_faster else "no use of it shortens a typical turn"
        prefix = f"{cause}; measured: "
    else:
        prefix = "measured: "
    return (
        f"{prefix}prefill {gpu_speed.prefill_tps:.3g} and decoding {gpu_speed.decode_tps:.3g} tokens/s on the GPU, "
        f"{cpu_speed.prefill_tps:.3g} and {cpu_speed.decode_tps:.3g} on the CPU; a typical turn takes {times}"
    )
