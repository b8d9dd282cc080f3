"""Reasoning of the development model, which thinks for ever, ends at random limits."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from msgspec import structs

from edgechat.config import Sampling
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.engine.generation import ThinkingLimit
from tests.development_model import require_model
from tests.engine.conftest import load_request
from tests.fuzzing import shorten

pytestmark = [pytest.mark.long, pytest.mark.slow]

N_RUNS = shorten(200, 8)
LIMIT = ThinkingLimit(
    start_tags=("<think>",), end_tags=("</think>",), text_before_end="\n", text_after_end="\n\n", is_open=True
)
QUESTIONS = (
    "How many weekdays has May 2026?",
    "Is 221 a prime number?",
    "Сколько будет 17 * 23?",
    "用三句话解释引力。",
)
GRAMMAR = 'start: thoughts /\\s{0,4}/ body\nthoughts[lazy]: /(.|\\n)*/ "</think>"\nbody: /[0-9]{1,8}/\n'


@pytest.fixture(scope="module")
def client() -> Iterator[EngineClient]:
    client = EngineClient()
    client.load(load_request(client, require_model()))
    yield client
    client.close()


def make_request(client: EngineClient, rng: random.Random, budget: int) -> protocol.Generate:
    prompt = f"<|im_start|>user\n{rng.choice(QUESTIONS)}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    return protocol.Generate(
        id=client.next_id(), tokens=client.tokenize(prompt), max_tokens=budget + 12, ignore_eog=True,
        sampling=Sampling(temperature=rng.choice([0.0, 0.8]), seed=rng.randrange(1000)),
        n_sequences=rng.choice([1, 1, 2]), speculate=rng.random() < 0.7,
        grammars=[GRAMMAR] if rng.random() < 0.3 else [],
        thinking=structs.replace(LIMIT, max_tokens=budget), n_logprobs=0,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(N_RUNS))
def test_reply_begins_within_the_budget_and_eight_tokens(client: EngineClient, seed: int) -> None:
    rng = random.Random(seed)
    budget = rng.randrange(50)
    outputs: dict[int, list[bytes]] = {}
    for event in client.generate(make_request(client, rng, budget)):
        if isinstance(event, protocol.TokensGenerated):
            outputs.setdefault(event.sequence, []).extend(token.token_bytes for token in event.logprobs)
    for pieces in outputs.values():
        assert b"</think>" in b"".join(pieces[: budget + 8])
        assert b"\xef\xbf\xbd" not in b"".join(pieces).partition(b"</think>")[0].decode("utf-8", "replace").encode()


def test_answer_now_at_random_moments_keeps_the_text(client: EngineClient) -> None:
    """The second request generates the tokens of the first, so that no rounding difference changes its text."""
    for seed in range(N_RUNS // 4):
        rng = random.Random(1000 + seed)
        request = structs.replace(
            make_request(client, rng, 1), n_sequences=1, max_tokens=60, thinking=LIMIT, grammars=[], speculate=False,
            bypass_cache=True, sampling=Sampling(temperature=0.0),
        )  # fmt: skip
        events = [e for e in client.generate(request) if isinstance(e, protocol.TokensGenerated)]
        thought, tokens = "".join(e.text for e in events), [token for e in events for token in e.tokens]
        again = structs.replace(request, id=client.next_id(), forced_tokens=tokens)
        text, n_before, has_ended = "", rng.randrange(60), False
        for event in client.generate(again):
            text += event.text if isinstance(event, protocol.TokensGenerated) else ""
            if not has_ended and len(text) >= n_before:
                has_ended = True
                client.end_thinking(again.id)
        before, end_tag, _ = text.partition("</think>")
        assert end_tag
        whole_thought, _, _ = thought.partition("</think>")  # the model may end its reasoning by itself before
        assert len(before) >= min(n_before, len(whole_thought))
        assert thought.startswith(before.rstrip())
