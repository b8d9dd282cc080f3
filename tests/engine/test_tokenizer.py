"""The tokeniser with llama.cpp: the tokens of one call for the whole text, with little stack and linear work."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgechat.engine.tokenization import iterate_prompt
from edgechat.errors import EngineError, ModelFileError
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.long_text import MAX_WINDOW_CHARS, WINDOW_CHARS
from edgechat.runtime.model import Model
from edgechat.runtime.tokenizer import STACK_BYTES, Tokenizer
from tests.models import write_tiny_llama
from tests.vocabularies import (
    CONTROL_TOKENS,
    PRE_TOKENIZERS,
    QUADRATIC_PRE_TOKENIZERS,
    RUNS,
    USER_DEFINED_TOKENS,
    find_vocabularies,
    make_text,
    open_vocabulary,
    tokenize_whole,
    vocabulary_parameters,
    write_bpe_vocabulary,
    write_spm_vocabulary,
)

SPECIAL_TOKENS = [*CONTROL_TOKENS, *USER_DEFINED_TOKENS]


def run_with_stack(function: Callable[[], None], n_bytes: int) -> None:
    """Run a function on a thread with a stack of `n_bytes`."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001  (raised below)
            errors.append(error)

    previous = threading.stack_size(n_bytes)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(previous)
    thread.join()
    if errors:
        raise errors[0]


def check_equality(native: Bindings, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Check that texts have the tokens that one call of llama.cpp returns."""

    def check() -> None:
        for text in texts:
            for parse_special in (False, True):
                tokens = tokenizer.tokenize(text, add_special=True, parse_special=parse_special)
                assert tokens == tokenize_whole(native, tokenizer, text, parse_special=parse_special), text[:200]

    run_with_stack(check, 1 << 30)


@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS)
def test_tokens_equal_those_of_the_whole_text(native: Bindings, tmp_path: Path, pre_tokenizer: str) -> None:
    tokenizer = open_vocabulary(native, write_bpe_vocabulary(tmp_path / "v.gguf", pre_tokenizer))
    length = 3000 if pre_tokenizer in QUADRATIC_PRE_TOKENIZERS else 20_000
    rng = random.Random(pre_tokenizer)
    texts = [make_text(rng, n, SPECIAL_TOKENS) for n in (50, 700, length)]
    texts += [(run * length)[:length] for run in rng.sample(RUNS, 2)]
    check_equality(native, tokenizer, [*texts, "", " ", "<", "1" * length])


@pytest.mark.parametrize("path", vocabulary_parameters())
def test_tokens_of_known_vocabularies_equal_those_of_the_whole_text(native: Bindings, path: Path) -> None:
    tokenizer = open_vocabulary(native, path)
    special_tokens = list(tokenizer.control_tokens)[:50]
    rng = random.Random(path.name)
    length = 3000 if "deepseek-llm" in path.name else 20_000
    check_equality(native, tokenizer, [make_text(rng, n, special_tokens) for n in (50, 700, length)])


@pytest.mark.parametrize("name", ["bert-bge", "nomic-bert-moe"])
def test_texts_of_embedding_models_are_cut_between_words(native: Bindings, name: str) -> None:
    path = next((path for path in find_vocabularies() if path.stem == f"ggml-vocab-{name}"), None)
    if path is None:
        pytest.skip("llama.cpp's sources are not in the build folder")
    tokenizer = open_vocabulary(native, path)
    rng = random.Random(0)
    words = [
        "the",
        "Zürich",
        "天気",
        "x",
        "don't",
        "e\u0301t\u00e9",
        "ﬁne",
        "\u0301",
        "ǅ",
        "😀",
        "12",
        "½",
        "가나",
        "▁",
        "한",
        "Ⅷ",
    ]
    for separators in ([" "], [" ", "  ", "\n", "\t", " ,", "\u3000", "\u200b", " \u0301", "\x01", "▁"]):
        texts = ["".join(rng.choice(words) + rng.choice(separators) for _ in range(10_000)) for _ in range(5)]
        check_equality(native, tokenizer, texts)
    parts = list(tokenizer.iterate_tokens("the quick fox " * 20_000, add_special=True, parse_special=False))
    assert max(map(len, parts)) < WINDOW_CHARS


def test_sentencepiece_tokens_equal_those_of_the_whole_text(native: Bindings, tmp_path: Path) -> None:
    tokenizer = open_vocabulary(native, write_spm_vocabulary(tmp_path / "v.gguf", has_byte_tokens=True))
    rng = random.Random(0)
    texts = [make_text(rng, rng.choice([50, 700, 20_000]), ["<s>", "</s>"]) for _ in range(20)]
    check_equality(native, tokenizer, [*texts, "ab " * 9000, "▁a" * 9000, "a" * 20_000, "<s>" + "b" * 20_000])


def test_vocabulary_that_drops_white_space_is_cut_between_words(native: Bindings, tmp_path: Path) -> None:
    path = write_bpe_vocabulary(tmp_path / "v.gguf", "whitespace", model="whitespace")
    check_equality(native, open_vocabulary(native, path), ["ac the of  1234\tAa " * 2000, "the " * 9000 + "\n"])


@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS)
def test_windows_need_half_of_the_stack(native: Bindings, tmp_path: Path, pre_tokenizer: str) -> None:
    tokenizer = open_vocabulary(native, write_bpe_vocabulary(tmp_path / "v.gguf", pre_tokenizer))
    n_chars = min(tokenizer.window_chars, WINDOW_CHARS)

    def tokenize() -> None:
        for run in ("Z", "\n", "9", "!", "é", "a\u0301", " "):
            tokenizer._tokenize_directly((run * n_chars)[:n_chars])

    # The process would end here if a character took more than 512 bytes of stack.
    run_with_stack(tokenize, 512 * n_chars)
    assert STACK_BYTES >= 2 * 512 * MAX_WINDOW_CHARS


@pytest.mark.parametrize("pre_tokenizer", ["gpt-4o", "tekken", "deepseek-v3", "minicpm5", "llama-bpe"])
def test_long_runs_need_little_stack_and_time(native: Bindings, tmp_path: Path, pre_tokenizer: str) -> None:
    tokenizer = open_vocabulary(native, write_bpe_vocabulary(tmp_path / "v.gguf", pre_tokenizer))

    def tokenize() -> None:
        for text in ("ACGT" * 10_000, "Z" * 200_000, "\n" * 60_000, "é" * 50_000):
            tokens = tokenizer.tokenize(text, add_special=False, parse_special=True)
            assert b"".join(map(tokenizer.token_to_piece, tokens)).decode() == text

    run_with_stack(tokenize, 256 << 10)


@pytest.mark.parametrize("unit", ["<|im_start|>", "<b>", "<s>x", "õ", "[", "<|im_start|"])
def test_work_grows_linearly_with_special_tokens(
    native: Bindings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    """llama.cpp gets each part of the text a few times, in short texts: its time grows with the square of a text."""
    tokenizer = open_vocabulary(native, write_bpe_vocabulary(tmp_path / "v.gguf", "llama-bpe"))
    lengths: list[int] = []
    tokenize_directly = Tokenizer._tokenize_directly

    def record(self: Tokenizer, text: str) -> list[int]:
        lengths.append(len(text))
        return tokenize_directly(self, text)

    monkeypatch.setattr(tokenizer, "_tokenize_directly", record.__get__(tokenizer))
    n_tokens = len(tokenizer.tokenize(unit * 100_000, add_special=False, parse_special=True))
    assert n_tokens >= 100_000 // 8
    assert max(lengths, default=0) <= MAX_WINDOW_CHARS
    assert sum(lengths) <= 3 * len(unit) * 100_000


def test_guarded_control_tokens_are_plain_text(native: Bindings, tmp_path: Path) -> None:
    tokenizer = open_vocabulary(native, write_bpe_vocabulary(tmp_path / "v.gguf", "qwen2"))
    guarded = "<|im_start|>user <\ufdd0|im_end|> <\ufdd0b>" + "a" * 20_000 + "<\ufdd0|end|><|im_end|>"
    parts = tokenizer.iterate_tokens(guarded, add_special=False, parse_special=True, guard="\ufdd0")
    start, end = (tokenizer.control_tokens[text] for text in ("<|im_start|>", "<|im_end|>"))
    plain = guarded.replace("\ufdd0", "").removeprefix("<|im_start|>").removesuffix("<|im_end|>")
    expected = [start, *tokenizer.tokenize(plain, add_special=False, parse_special=False), end]
    assert [token for part in parts for token in part] == expected


def test_threads_share_a_tokenizer(native: Bindings, tmp_path: Path) -> None:
    tokenizer = open_vocabulary(native, write_bpe_vocabulary(tmp_path / "v.gguf", "gpt-4o"))
    text = "ACGT the Z" * 4000
    tokens = tokenizer.tokenize(text, add_special=False, parse_special=True)
    pieces = [tokenizer.token_to_piece(token, special=True) for token in range(tokenizer.n_vocab)]

    def check(letter: str) -> None:
        for _ in range(3):
            assert tokenizer.tokenize(text, add_special=False, parse_special=True) == tokens
            assert [tokenizer.token_to_piece(t, special=True) for t in range(tokenizer.n_vocab)] == pieces
            assert tokenizer.tokenize(letter * 9000, add_special=False, parse_special=True)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(check, "abcd"))


def test_character_without_a_token_is_an_error(native: Bindings, tmp_path: Path) -> None:
    tokenizer = open_vocabulary(native, write_spm_vocabulary(tmp_path / "v.gguf", has_byte_tokens=False))
    assert tokenizer.tokenize("ab ab", add_special=False, parse_special=False)
    with pytest.raises(EngineError, match="no token for the character 'c'"):
        tokenizer.tokenize("ab c", add_special=False, parse_special=False)


def test_vocabulary_that_crashes_at_spaces_is_refused(native: Bindings, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="'whitespace' does not belong to its tokenizer 'gpt2'"):
        open_vocabulary(native, write_bpe_vocabulary(tmp_path / "v.gguf", "whitespace"))


def test_prompt_has_no_end_token_that_the_template_did_not_write(native: Bindings, tmp_path: Path) -> None:
    with contextlib.closing(Model(native, write_tiny_llama(tmp_path / "tiny.gguf", adds_eos=True))) as model:
        document = model.tokenize("Hello", add_special=True, parse_special=True)
        assert model.is_eog(document[-1])
        for text, guard in (("Hello", ""), ("\ufdd0Hello", "\ufdd0"), ("", "")):
            prompt = [token for part in iterate_prompt(model, text, guard) for token in part]
            assert not any(map(model.is_eog, prompt))
        assert prompt == document[:1]
