"""Random and mutated texts of up to 1 MB through the tokenisers of all vocabularies at hand, and through `ask`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from edgechat.runtime.bindings import Bindings
from edgechat.runtime.tokenizer import Tokenizer
from tests.conftest import Cli
from tests.fuzzing import SHARE, scale
from tests.models import write_tiny_llama
from tests.vocabularies import (
    PRE_TOKENIZERS,
    find_vocabularies,
    make_text,
    open_vocabulary,
    write_bpe_vocabulary,
    write_spm_vocabulary,
)

pytestmark = pytest.mark.long

N_TEXTS = 5000
# Lengths of the texts of one vocabulary, in characters: most are short, and one has about 1 MB.
LENGTHS = [100] * scale(50) + [1000] * scale(30) + [5000] * scale(15) + [20_000] * scale(4) + [300_000]
N_VOCABULARIES = len(PRE_TOKENIZERS) + 19
N_ASKED_TEXTS = scale(80)
# Pre-tokenizers for vocabularies that have characters in place of bytes.
RAW_PRE_TOKENIZERS = ("gemma4", "sarvam-moe")
# Maximum time of a step, in seconds of CPU time; llama.cpp alone takes minutes for some of these texts.
MAX_STEP_S = 60.0


def mutate(rng: random.Random, text: str) -> str:
    """Return a text with some parts removed, repeated or moved."""
    for _ in range(rng.randrange(4)):
        start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        part = text[start:end]
        text = rng.choice([text[:start] + text[end:], text[:end] + part + text[end:], part + text[:start] + text[end:]])
    return text[:1_000_000]


def make_texts(rng: random.Random, special_tokens: list[str]) -> list[str]:
    """Return the texts for one vocabulary; the longest is cut at 1 MB."""
    texts = [mutate(rng, make_text(rng, length, special_tokens)) for length in LENGTHS]
    texts[-1] = (texts[-1] * 4).encode("utf-8", "replace")[:1_000_000].decode("utf-8", "ignore")
    return texts


def check(tokenizer: Tokenizer, texts: list[str], *, is_lossless: bool) -> None:
    """Check the steps, and the text of the tokens if the vocabulary has every byte."""
    for text in texts:
        data = text.encode("utf-8", "replace")
        tokens, last = [], time.process_time()
        for part in tokenizer.iterate_tokens(text, add_special=False, parse_special=True):
            now = time.process_time()
            assert now - last <= MAX_STEP_S, f"a step of {len(data)} bytes took {now - last:.2f} s: {text[:100]!r}"
            tokens += part
            last = now
        if is_lossless:
            assert b"".join(tokenizer.token_to_piece(token, special=True) for token in tokens) == data


def test_enough_texts_are_tried() -> None:
    assert len(LENGTHS) * N_VOCABULARIES >= SHARE * N_TEXTS


@pytest.mark.parametrize("name", [*PRE_TOKENIZERS, "SentencePiece", *(path.name for path in find_vocabularies())])
def test_tokenizer_survives_every_text_in_short_steps(native: Bindings, tmp_path: Path, name: str) -> None:
    path = next((path for path in find_vocabularies() if path.name == name), tmp_path / "v.gguf")
    if name in PRE_TOKENIZERS:
        write_bpe_vocabulary(path, name)
    elif name == "SentencePiece":
        write_spm_vocabulary(path, has_byte_tokens=True)
    tokenizer = open_vocabulary(native, path)
    rng = random.Random(name)
    texts = make_texts(rng, list(tokenizer.control_tokens)[:50])
    check(tokenizer, texts, is_lossless=name in PRE_TOKENIZERS and name not in RAW_PRE_TOKENIZERS)


@pytest.mark.parametrize("pre_tokenizer", ["", "gpt-4o", "tekken", "deepseek-v3"])
def test_ask_ends_with_a_reply_or_one_sentence(cli: Cli, tmp_path: Path, pre_tokenizer: str) -> None:
    model = "starter"
    if pre_tokenizer:
        model = str(write_tiny_llama(tmp_path / "tiny.gguf", pre_tokenizer=pre_tokenizer))
    rng = random.Random(pre_tokenizer)
    for i in range(N_ASKED_TEXTS // 4):
        length = [200, 2000, 20_000, 200_000, 800_000][i % 5]
        text = mutate(rng, make_text(rng, length, ["<|im_start|>", "<|im_end|>"]))
        result = cli(
            "ask", "-m", model, "--ctx", "2048", "--max-tokens", "2", "--ephemeral",
            input=text.encode("utf-8", "replace").decode(), timeout=300,
        )  # fmt: skip
        assert result.returncode in {0, 2, 5}, (text[:100], result.stderr)
        assert "Traceback" not in result.stderr
