"""Samplers: each changes the choice of tokens as its paper says, and the seed decides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgechat.config import Sampling
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context
from edgechat.runtime.model import Model
from edgechat.runtime.sampler import Sampler, count_penalty_tokens
from tests.models import open_context, write_tiny_llama

ALL_TOKENS: dict[str, float] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture
def context(native: Bindings, tmp_path: Path) -> Context:
    return open_context(Model(native, write_tiny_llama(tmp_path / "tiny.gguf")), n_ctx=256, n_threads=2)


def set_logits(context: Context, logits: dict[int, float]) -> None:
    """Decode a token, and replace its logits: those that are not in `logits` become -20."""
    context.decode([5])
    array = context.logits()
    array[:] = -20.0
    for token, logit in logits.items():
        array[token] = logit


def count_choices(
    context: Context, params: Mapping[str, float], logits: dict[int, float], n: int = 300
) -> Counter[int]:
    set_logits(context, logits)
    return Counter(Sampler(context.model, Sampling(**ALL_TOKENS, seed=s, **params)).sample(context) for s in range(n))  # type: ignore[arg-type]


def test_top_n_sigma_removes_tokens_far_from_the_best(context: Context) -> None:
    logits = {300: 9.0, 301: 8.9, 302: 4.0}
    assert count_choices(context, {"temperature": 5.0}, logits)[302]
    assert count_choices(context, {"temperature": 5.0, "top_n_sigma": 1.0}, logits).keys() == {300, 301}


def test_typical_p_removes_the_tokens_of_unusual_probability(context: Context) -> None:
    logits = {300: 3.0, 301: 1.0, 302: 1.0, 303: 1.0, 304: 1.0}
    choices = count_choices(context, {"temperature": 1.0, "typical_p": 0.3}, logits)
    assert len(choices) < len(count_choices(context, {"temperature": 1.0}, logits))


def test_xtc_removes_all_likely_tokens_but_the_last(context: Context) -> None:
    logits = {300: 5.0, 301: 4.9, 302: 4.8, 303: 1.0}
    choices = count_choices(context, {"temperature": 1.0, "xtc_probability": 1.0}, logits)
    assert not choices[300]
    assert not choices[301]
    assert choices[302] > 200
    halves = count_choices(context, {"temperature": 1.0, "xtc_probability": 0.5}, logits)
    assert 0 < halves[300] < count_choices(context, {"temperature": 1.0}, logits)[300]


def test_dynamic_temperature_is_low_if_the_model_is_certain(context: Context) -> None:
    certain, uncertain = {300: 6.0, 301: 1.0}, {300: 1.2, 301: 1.0, 302: 1.0, 303: 1.0}
    fixed, dynamic = {"temperature": 2.0}, {"temperature": 2.0, "dynatemp_range": 1.9}
    assert count_choices(context, dynamic, certain)[301] < count_choices(context, fixed, certain)[301]
    assert len(count_choices(context, dynamic, uncertain)) == 4


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_lowers_the_surprise_to_its_target(context: Context, version: int) -> None:
    set_logits(context, {3 + n: -1.2 * math.log(n + 1) for n in range(context.model.n_vocab - 3)})  # as Zipf's law

    def count_tokens(tau: float) -> int:
        params = Sampling(temperature=1.0, mirostat=version, mirostat_tau=tau, mirostat_eta=0.5, seed=4)
        sampler = Sampler(context.model, params)
        choices = [sampler.sample(context) for _ in range(200)]
        return len(set(choices[50:]))

    assert count_tokens(0.5) < count_tokens(5.0)


def test_dry_prevents_the_continuation_of_a_repetition(context: Context) -> None:
    text = [300, 301, 302, 303, 304, 300, 301, 302, 303]
    params = {"temperature": 0.0, "dry_multiplier": 5.0}

    def choose(values: Mapping[str, float], tokens: list[int]) -> int:
        sampler = Sampler(context.model, Sampling(**values))  # type: ignore[arg-type]
        for token in tokens:
            sampler.accept(token)
        set_logits(context, {304: 5.0, 305: 4.0})
        return sampler.sample(context)

    assert choose({"temperature": 0.0}, text) == 304
    assert choose(params, text) == 305
    assert choose(params, text[5:]) == 304, "without a repetition"
    assert choose(params | {"dry_allowed_length": 10}, text) == 304
    assert choose(params | {"dry_penalty_last_n": 4}, text) == 304
    assert choose(params | {"dry_penalty_last_n": -1}, text + [310] * 100 + text[:4]) == 305
    assert choose(params | {"dry_penalty_last_n": 0}, text) == 304


def test_penalties_consider_as_much_of_the_prompt_as_dry_searches() -> None:
    assert count_penalty_tokens(Sampling()) == 64
    assert count_penalty_tokens(Sampling(dry_penalty_last_n=500)) == 64, "DRY is off"
    assert count_penalty_tokens(Sampling(dry_multiplier=0.8, dry_penalty_last_n=500)) == 500
    assert count_penalty_tokens(Sampling(dry_multiplier=0.8, dry_penalty_last_n=-1)) == 65536


def test_seed_decides_the_choice_of_every_sampler(context: Context) -> None:
    logits = {300 + n: 1.0 for n in range(40)}
    for params in ({"xtc_probability": 0.5}, {"mirostat": 1}, {"mirostat": 2}, {"dynatemp_range": 0.5}):
        first = count_choices(context, params, logits, 40)
        assert first == count_choices(context, params, logits, 40)
        assert len(first) > 10


def test_default_samplers_are_unchanged_by_the_new_settings(context: Context) -> None:
    """Steps that are off are not part of the chain, so that replies with a seed stay the same."""
    llama = context.model.bindings.llama
    sampler = Sampler(context.model, Sampling(seed=1))
    steps = [
        llama.llama_sampler_chain_get(sampler.pointer, i) for i in range(llama.llama_sampler_chain_n(sampler.pointer))
    ]
    names = [llama.llama_sampler_name(step).decode() for step in steps]
    assert names == ["top-k", "top-p", "min-p", "temp-ext", "dist"]
