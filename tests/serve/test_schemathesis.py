"""Requests that nobody thought of, made from the served OpenAPI document: none of them is answered with a 5xx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import write_tiny_bert
from tests.serve.conftest import Start


def run(url: str, directory: Path, *arguments: str) -> None:
    tool = Path(sys.executable).parent / "schemathesis"
    done = subprocess.run(
        [tool, "run", f"{url.removesuffix('/v1')}/openapi.json", "--checks", "not_a_server_error", "--phases",
         "coverage,fuzzing", "--request-timeout", "100", *arguments],
        cwd=directory, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert "Tested: 7" in done.stdout


def test_no_request_is_our_error(start: Start, tmp_path: Path) -> None:
    server = start("-m", "starter", "--ctx", "128", "--max-tokens", "2")
    run(server.url, tmp_path, "--max-examples", "5", "--generation-deterministic")
    assert "an error of its own" not in "".join(server.errors)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["starter", "vectors"])
def test_none_of_very_many_requests_is_our_error(start: Start, tmp_path: Path, kind: str) -> None:
    model = "starter" if kind == "starter" else str(write_tiny_bert(tmp_path / "tiny-bert.gguf"))
    server = start("-m", model, "--ctx", "128", "--max-tokens", "4")
    run(server.url, tmp_path, "--max-examples", "150")
    assert "an error of its own" not in "".join(server.errors)
