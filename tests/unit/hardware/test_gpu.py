"""Explanations of NVIDIA driver problems."""

from __future__ import annotations

import pytest

from edgechat.hardware.gpu import describe_nvidia_problem


@pytest.mark.parametrize(
    ("exit_code", "output", "errors", "problem"),
    [
        (0, "NVIDIA RTX, 550.1\n", "", "no CUDA backend of this build"),
        (18, "Failed to initialize NVML: Driver/library version mismatch\n", "", "restart the machine"),
        (9, "", "NVIDIA-SMI has failed because it couldn't communicate\n", "couldn't communicate"),
        (1, "", "", "exited with code 1"),
    ],
)
def test_result_of_nvidia_smi_is_explained(exit_code: int, output: str, errors: str, problem: str) -> None:
    assert problem in describe_nvidia_problem(exit_code, output, errors)
