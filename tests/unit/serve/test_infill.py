"""Prompts for infilling, composed of the tokens of their parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.engine.protocol import FimTokens
from edgechat.errors import ContextOverflowError
from edgechat.serve.dialects.llama_server import select_fields
from edgechat.serve.errors import ApiError
from edgechat.serve.infill import InfillFile, InfillParts, make_infill_prompt

PRE, SUF, MID, REP, SEP, BOS = range(1000, 1006)
PLAIN = FimTokens(prefix=PRE, suffix=SUF, middle=MID)
FULL = FimTokens(prefix=PRE, suffix=SUF, middle=MID, repository=REP, separator=SEP, bos_tokens=[BOS])


def make_queue(fim_tokens: FimTokens | None, n_ctx: int = 100_000) -> Any:
    """Return a queue that tokenises each character to its code."""

    async def tokenize_text(text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        assert (add_special, parse_special) == (False, False)
        if len(text) > 4 * n_ctx:
            raise ContextOverflowError("The text is too long.")
        return list(map(ord, text))

    properties = SimpleNamespace(fim_tokens=fim_tokens, n_ctx=n_ctx)
    return SimpleNamespace(name="coder", model_properties=properties, tokenize_text=tokenize_text)


def codes(text: str) -> list[int]:
    return list(map(ord, text))


async def test_parts_are_between_the_tokens_for_infilling() -> None:
    parts = InfillParts("ab", "cd", "m")
    assert await make_infill_prompt(make_queue(PLAIN), parts, 8, "suffix") == [
        PRE,
        *codes("abm"),
        SUF,
        *codes("cd"),
        MID,
    ]
    parts = InfillParts([7, 8], "")
    assert await make_infill_prompt(make_queue(FULL), parts, 8, "suffix") == [BOS, PRE, 7, 8, SUF, MID]


async def test_other_files_come_first_with_their_names() -> None:
    parts = InfillParts("a", "b", files=[InfillFile("x", "x.py"), InfillFile("y")])
    assert await make_infill_prompt(make_queue(FULL), parts, 8, "suffix") == [
        BOS, REP, *codes("myproject\n"), SEP, *codes("x.py\nx"), SEP, *codes("tmp\ny"), SEP, *codes("filename\n"),
        PRE, *codes("a"), SUF, *codes("b"), MID,
    ]  # fmt: skip
    prompt = await make_infill_prompt(make_queue(PLAIN), parts, 8, "suffix")
    separator = codes("\n\n--- snip ---\n\n")
    assert prompt == [*separator, *codes("x"), *separator, *codes("y"), PRE, *codes("a"), SUF, *codes("b"), MID]


async def test_first_files_are_left_out_if_the_context_is_too_small() -> None:
    files = [InfillFile("x" * 50, "x.py"), InfillFile("y" * 50, "y.py"), InfillFile("z" * 50, "z.py")]
    parts = InfillParts("a", "b", files=files)
    for n_ctx, n_files in ((500, 3), (180, 2), (120, 1), (60, 0)):
        prompt = await make_infill_prompt(make_queue(FULL, n_ctx), parts, 10, "suffix")
        assert prompt.count(SEP) == (n_files + 1 if n_files else 0)
        assert (ord("z") in prompt) == (n_files > 0)
        assert len(prompt) + 10 <= n_ctx
    without_limit = await make_infill_prompt(make_queue(FULL, 500), parts, None, "suffix")
    assert len(without_limit) + 256 <= 500


async def test_file_of_many_contexts_is_left_out() -> None:
    for long_file in (InfillFile("x" * 1000, "x.py"), InfillFile("x", "x" * 1000)):
        parts = InfillParts("a", "b", files=[InfillFile("x"), long_file, InfillFile("z", "z.py")])
        prompt = await make_infill_prompt(make_queue(FULL, 200), parts, 10, "suffix")
        assert (prompt.count(SEP), ord("x") in prompt, ord("z") in prompt) == (2, False, True)


async def test_vocabulary_without_the_tokens_is_reported() -> None:
    with pytest.raises(ApiError, match="suffix: coder has no tokens for infilling") as caught:
        await make_infill_prompt(make_queue(None), InfillParts("a", "b"), 8, "suffix")
    assert (caught.value.status, caught.value.param) == (400, "suffix")


def test_response_fields_are_selected_by_path() -> None:
    values = {"content": "x", "timings": {"prompt_n": 3}, "empty": ""}
    paths = ["timings/prompt_n", "content", "empty", "timings/none", "content/x", "none"]
    assert select_fields(values, paths) == {"timings/prompt_n": 3, "content": "x", "empty": ""}
