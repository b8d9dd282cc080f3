"""Explanations of cache misses for scripted requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.engine import protocol
from edgechat.engine.cache_miss import CacheMissFinder
from edgechat.engine.generation import CacheMiss, GenerationStats

PROMPT = list(range(1000))
CHANGED = [*PROMPT[:50], 5000, *PROMPT[51:]]


class Model:
    """Model whose tokens are written as their numbers."""

    def token_to_piece(self, token: int, *, special: bool) -> bytes:
        assert special
        return f"{token} ".encode()


@pytest.fixture
def finder() -> CacheMissFinder:
    return CacheMissFinder(Model())  # type: ignore[arg-type]


def make_request(request_id: int, prompt: list[int], **params: Any) -> Any:
    fields = {"id": request_id, "bypass_cache": False, "ephemeral": False, "prompt_logprobs": False} | params
    return SimpleNamespace(params=SimpleNamespace(**fields), prompt=prompt, sequences=[object()])


def finish(finder: CacheMissFinder, request: Any, n_cached: int) -> CacheMiss | None:
    stats = GenerationStats(
        prompt_tokens=len(request.prompt), cached_tokens=n_cached, completion_tokens=1, ttft_s=0.0, prefill_tps=0.0,
        decode_tps=0.0,
    )  # fmt: skip
    event = protocol.RequestFinished(id=request.params.id, finish_reason="stop", stats=stats, context_tokens=0)
    return finder.find(request, event)


def run(finder: CacheMissFinder, prompt: list[int], n_cached: int, **params: Any) -> CacheMiss | None:
    request = make_request(1, prompt, **params)
    finder.add(request)
    return finish(finder, request, n_cached)


def test_changed_token_is_shown(finder: CacheMissFinder) -> None:
    assert run(finder, PROMPT, 0) is None
    miss = run(finder, CHANGED, 50)
    assert miss is not None
    assert (miss.common_tokens, miss.uncached_tokens) == (50, 0)
    assert miss.repeated_tokens > 900
    assert miss.text_before.endswith("48 49 ")
    assert miss.text.startswith("5000 51 ")


def test_common_tokens_that_were_not_cached_are_counted(finder: CacheMissFinder) -> None:
    run(finder, PROMPT, 0)
    miss = run(finder, [*PROMPT, 1], 100)
    assert miss is not None
    assert (miss.common_tokens, miss.uncached_tokens, miss.repeated_tokens) == (1000, 900, 0)


def test_prefix_of_another_prompt_is_no_miss(finder: CacheMissFinder) -> None:
    run(finder, PROMPT, 0)
    assert run(finder, CHANGED, 900) is None  # a saved prompt that is not among the recent ones


def test_parallel_request_is_not_compared(finder: CacheMissFinder) -> None:
    first, second = make_request(1, PROMPT), make_request(2, PROMPT)
    finder.add(first)
    finder.add(second)
    assert finish(finder, first, 0) is None
    assert finish(finder, second, 0) is None  # nothing was cached when it arrived


@pytest.mark.parametrize("name", ["bypass_cache", "ephemeral", "prompt_logprobs"])
def test_request_without_the_cache_is_left_out(finder: CacheMissFinder, name: str) -> None:
    run(finder, PROMPT, 0)
    assert run(finder, CHANGED, 0, **{name: True}) is None


def test_failed_request_leaves_nothing_behind(finder: CacheMissFinder) -> None:
    request = make_request(1, PROMPT)
    finder.add(request)
    assert finder.find(request, protocol.RequestFailed(id=1, error_type="EngineError", message="x")) is None
    assert finish(finder, request, 0) is None
