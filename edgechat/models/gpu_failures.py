"""Failures of a GPU in use: which errors are such failures, and records of them, so that later loads use the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgechat.errors import ComputeError, EdgechatError, EngineDiedError, ModelCrashError
from edgechat.hardware.gpu import Gpu
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.drafter_choice import DrafterChoice
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.machine import Machine
from edgechat.process import EXIT_STALLED
from edgechat.runtime import drafter_crashes
from edgechat.runtime.backends import gpu_probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.probe import CRASH_CODES, describe_exit


def is_gpu_failure(error: EdgechatError) -> bool:
    """Return whether an error of a request means that the GPU failed, if the model has layers on one.

    A lost device, exhausted memory or wrong numbers end the computation with an error, or the driver ends the process
    or never returns. Other crashes of the process, such as one while a grammar is compiled, are no failures of the GPU.
    """
    return isinstance(error, ComputeError) or (isinstance(error, EngineDiedError) and error.is_gpu_failure)


def can_continue_on_cpu(error: EdgechatError) -> bool:
    """Return whether the replies of a request with this error can continue on the CPU, if the model used a GPU.

    This includes crashes that are not held against the GPU, because the process did something else at the same time.
    """
    return is_gpu_failure(error) or (isinstance(error, EngineDiedError) and error.died_on_gpu)


def may_be_gpu_failure(error: EdgechatError) -> bool:
    """Return whether an error of a load on the GPU is one of the GPU if the model can then be loaded with the CPU."""
    is_crash = isinstance(error, EngineDiedError) and error.code in {*CRASH_CODES, EXIT_STALLED}
    return is_crash or isinstance(error, (ComputeError, ModelCrashError))


def record_gpu_failure(error: EdgechatError, failed_plan: LoadPlan) -> None:
    """Record a failure of the GPU with a plan, unless it is a crash that was recorded for the model drafter."""
    drafter, cause = failed_plan.drafter, "a failed computation"
    if isinstance(error, ModelCrashError):
        cause = "a crash while it loaded the model"
    if isinstance(error, EngineDiedError) and error.code is not None:
        cause = describe_exit(error.code)
        if drafter is not None and not error.is_gpu_failure and drafter_crashes.find_crash(
            failed_plan.model_path, drafter.kind, drafter.model_path
        ):  # fmt: skip
            return
    with contextlib.suppress(EdgechatError):  # the bundle may have been removed
        gpu_probe.record_failure(find_bundle(), cause, failed_plan.model_path, failed_plan.gpu_module)


def is_gpu_refused(plan: LoadPlan) -> bool:
    """Return whether a GPU of a plan failed since it was made, in use or in a test, so that the CPU must be used.

    Tests of further weight types run in idle time.
    """
    try:
        bundle = find_bundle()
        if gpu_probe.find_distrust(bundle, plan.model_path, plan.gpu_module):
            return True
        types = list_matrix_types(ModelProfile.from_header(read_header(Path(plan.model_path))))
        return gpu_probe.is_refused(bundle, plan.gpu_module, [gpu.device for gpu in plan.gpus], types)
    except EdgechatError:  # the bundle or the file may have been removed; loading the model reports the error
        return False


def leave_out_failed_gpu(machine: Machine, model_path: str) -> tuple[Machine, str]:
    """Return the machine without its GPUs and the reason, if they failed with a model; otherwise the machine and ""."""
    if not machine.gpus:
        return machine, ""
    try:
        reason = gpu_probe.find_distrust(find_bundle(), model_path, machine.gpu_module)
    except EdgechatError:  # the bundle may have been removed
        return machine, ""
    return (machine.without_gpus(), f"{machine.gpu_name} is {reason}") if reason else (machine, "")


def check_drafter(drafter: DrafterChoice, gpus: Sequence[Gpu]) -> DrafterChoice:
    """Return a drafter with the reason why plans must not place it on `gpus`, if they failed with its weight types.

    Heads in the file of the model itself were tested with the model.
    """
    if drafter.profile is None or drafter.kind == "mtp" or not gpus:
        return drafter
    devices = [(gpu.module, gpu.device) for gpu in gpus]
    try:
        problem = gpu_probe.find_type_problem(find_bundle(), devices, list_matrix_types(drafter.profile))
    except EdgechatError:  # the bundle may have been removed; loading the model reports the error
        return drafter
    return msgspec.structs.replace(drafter, gpu_problem=problem)


def list_matrix_types(profile: ModelProfile) -> tuple[int, ...]:
    """Return the weight types of the matrices of a model, as ggml's numbers, in increasing order."""
    return tuple(sorted({tensor.type_id for tensor in profile.tensors if len(tensor.shape) > 1}))
