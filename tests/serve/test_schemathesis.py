"""Random requests generated from the OpenAPI document; none gets a 5xx response."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgechat.serve.openapi import build_openapi_document
from tests.fuzzing import IS_EXHAUSTIVE, shorten
from tests.models import write_tiny_bert
from tests.serve.conftest import Start


def run(url: str, directory: Path, *arguments: str, phases: str = "coverage,fuzzing") -> None:
    tool = Path(sys.executable).parent / "schemathesis"
    done = subprocess.run(
        [tool, "run", f"{url.removesuffix('/v1')}/openapi.json", "--checks", "not_a_server_error", "--phases",
         phases, "--request-timeout", "600", "--generation-deterministic", "--suppress-health-check", "all",
         *arguments],
        cwd=directory, capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    n_operations = sum(len(operations) for operations in build_openapi_document("")["paths"].values())
    assert f"Tested: {n_operations}" in done.stdout


def test_generated_requests_cause_no_server_error(start: Start, tmp_path: Path) -> None:
    server = start("-m", "starter", "--ctx", "128", "--max-tokens", "2")
    run(server.url, tmp_path, "--max-examples", "3", phases="fuzzing")
    assert "Internal error" not in "".join(server.errors)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["chat", "embedding"])
def test_many_generated_requests_cause_no_server_error(start: Start, tmp_path: Path, kind: str) -> None:
    model = "starter" if kind == "chat" else str(write_tiny_bert(tmp_path / "tiny-bert.gguf"))
    server = start("-m", model, "--ctx", "128", "--max-tokens", "4")
    # Most requests that the coverage phase generates have the same answer from both kinds of models.
    phases = "coverage,fuzzing" if kind == "chat" or IS_EXHAUSTIVE else "fuzzing"
    run(server.url, tmp_path, "--max-examples", str(shorten(40, 5)), phases=phases)
    assert "Internal error" not in "".join(server.errors)
