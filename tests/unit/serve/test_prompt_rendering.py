"""Rendered prompts with and without the beginning of the reply."""

from __future__ import annotations

from typing import Any, cast

import pytest

from edgechat.prompt.builder import BuiltPrompt
from edgechat.prompt.reply_format import ReplyFormat
from edgechat.serve.choices import Choice
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.prompt_rendering import RenderingBuilder
from edgechat.serve.schemas import ChatRequest
from tests.unit.serve.examples import FakeQueue

MERGED = 1000
"""Token for the end of a message and the beginning of the reply."""


class Queue(FakeQueue):
    async def tokenize(self, text: str) -> list[int]:
        return [1, *map(ord, text)]

    async def tokenize_text(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        assert (add_special, parse_special) == (False, True)
        return list(map(ord, text))


class Builder(RenderingBuilder):
    """Builder of the prompt `Hi|bot`, in which `|bot` is the beginning of the reply."""

    def __init__(self, tokens: list[int], *, generation_prompt: str = "|bot", flag: bool | None = False) -> None:
        super().__init__(cast("ModelQueue", Queue()), ChatRequest(messages=[], add_generation_prompt=flag))
        self._prompt = BuiltPrompt(tokens, "content", cast("ReplyFormat", None), generation_prompt, [], "Hi|bot")

    async def build_requests(self) -> tuple[list[Any], list[Choice]]:
        self._prompts.append(self._prompt)
        return [], []


TOKENS = [1, *map(ord, "Hi|bot")]


@pytest.mark.parametrize("tokens", [TOKENS, [1, ord("H"), MERGED, *map(ord, "bot")]])
async def test_text_and_tokens_end_before_the_reply(tokens: list[int]) -> None:
    prompt = await Builder(tokens).render()
    assert (prompt.text, prompt.tokens) == ("Hi", [1, *map(ord, "Hi")])


async def test_prompt_has_the_beginning_of_the_reply_by_default() -> None:
    for flag in (True, None):
        prompt = await Builder(TOKENS, flag=flag).render()
        assert (prompt.text, prompt.tokens) == ("Hi|bot", TOKENS)


async def test_template_without_a_beginning_of_the_reply_is_reported() -> None:
    for end in ("", "|user"):
        with pytest.raises(ApiError, match="does not allow false"):
            await Builder(TOKENS, generation_prompt=end).render()
