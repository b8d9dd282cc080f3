"""Greedy output equals that of llama-server, built from the same source with the same backend module."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.runtime.backends.bundle import find_bundle
from tests.conftest import ROOT
from tests.waiting import until

pytestmark = pytest.mark.long
N_TOKENS = 64
# Kernels may round differently for other batch shapes. The zen4 module gave no difference at all between prefills in
# one batch and in steps of 1, 4 and 7; modules with matrix tiles were not measured.
NOISE = 0.05
PROMPTS = [
    "What is the capital of France?",
    "Write a Python function that reverses a list.",
    "Explain why the sky is blue.",
    "List five animals that live in the sea.",
    "Once upon a time there was",
]


@pytest.fixture(scope="module")
def server(engine: EngineClient, starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a llama-server that uses the engine's backend module."""
    build = subprocess.run(
        [sys.executable, str(ROOT / "native" / "build.py"), "peers"], check=True, capture_output=True, text=True
    )
    backend = engine.model_properties.backend if engine.model_properties else ""
    module = next(m.path for m in find_bundle().modules if m.name == backend)
    folder = tmp_path_factory.mktemp("llama-server")
    log = folder / "log.txt"
    with log.open("wb") as file:
        child = subprocess.Popen(
            [f"{build.stdout.strip()}/bin/llama-server", "-m", str(starter), "-t", "2", "-c", "2048", "-b", "512",
             "-ub", "512", "--host", "127.0.0.1", "--port", "0", "--parallel", "1", "--offline"],
            env=os.environ | {"GGML_BACKEND_PATH": module}, cwd=folder, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def find_address() -> str | None:
        assert child.poll() is None, log.read_text()
        match = re.search(r"listening on (http://127\.0\.0\.1:\d+)\n", log.read_text(errors="replace"))
        return match[1] if match else None

    try:
        until(find_address, 300, "llama-server is ready")  # it writes its address when the model is loaded
        yield find_address() or ""
    finally:
        child.kill()
        child.wait()


def complete(address: str, tokens: list[int], n_predict: int, **options: Any) -> dict[str, Any]:
    body = {
        "prompt": tokens, "n_predict": n_predict, "temperature": 0.0, "cache_prompt": False, "return_tokens": True,
        **options,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        completion: dict[str, Any] = json.load(answer)
    return completion


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_equal_those_of_llama_server(engine: EngineClient, server: str, prompt: str) -> None:
    tokens = engine.tokenize(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, max_tokens=N_TOKENS, sampling=GREEDY, bypass_cache=True, ephemeral=True
    )
    ours = [t for e in engine.generate(request) if isinstance(e, protocol.TokensGenerated) for t in e.tokens]
    theirs = complete(server, tokens, N_TOKENS)["tokens"]
    same = common_prefix_length(ours, theirs)
    if same < max(len(ours), len(theirs)) - 1:  # only one of the lists contains the end token
        # Where they diverge, the logprobs of the two most likely tokens must be closer than the noise.
        after = complete(server, tokens + theirs[:same], 1, n_probs=2)
        first, second = after["completion_probabilities"][0]["top_logprobs"][:2]
        assert first["logprob"] - second["logprob"] < NOISE, (same, ours[same:], theirs[same:])
