"""POST /v1/completions: texts that go on, without a chat template."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Final

from edgechat.engine import protocol
from edgechat.serve.choices import Choice, ChoiceDelta, finite_logprob
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.responses import ResponseBuilder
from edgechat.serve.schemas import CompletionRequest, TextInput

MAX_INPUTS: Final = 64


class CompletionResponseBuilder(ResponseBuilder):
    """Texts that go on, in the shape of the API."""

    ID_PREFIX, OBJECT, CHUNK_OBJECT = "cmpl", "text_completion", "text_completion"

    def __init__(self, served: ModelQueue, wanted: CompletionRequest) -> None:
        super().__init__(served, wanted)
        self._wanted = wanted
        self._echoes: list[str] = []
        self._lengths: dict[int, int] = {}
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        """What the engine is asked. Raises ApiError, EdgechatError."""
        wanted = self._wanted
        if wanted.suffix:
            raise ApiError(400, "suffix: text in the middle cannot be filled in", param="suffix")
        requests, n = [], wanted.n or 1
        for text in split_inputs(wanted.prompt, "prompt"):
            if wanted.echo and not isinstance(text, str):
                raise ApiError(400, "echo: only of a text, not of tokens", param="echo")
            tokens = await self.served.tokenize(text) if isinstance(text, str) else text
            requests.append(self.served.generate_request(tokens, wanted, n_logprobs=wanted.logprobs))
            self._echoes += [text if wanted.echo and isinstance(text, str) else ""] * n
        return requests, [Choice(i) for i in range(len(requests) * n)]

    def choice_objects(self, choices: list[Choice]) -> list[dict[str, Any]]:
        """The answers, whole, in the shape of the API."""
        return [
            self._choice(i, self._echoes[i] + c.content, c.logprobs, c.finish_reason) for i, c in enumerate(choices)
        ]

    def _choice(
        self, index: int, text: str, logprobs: Sequence[protocol.TokenLogprobs], finish_reason: str | None
    ) -> dict[str, Any]:
        found = self._logprobs(index, logprobs) if self._wanted.logprobs is not None else None
        return {"index": index, "text": text, "logprobs": found, "finish_reason": finish_reason}

    def _logprobs(self, index: int, found: Sequence[protocol.TokenLogprobs]) -> dict[str, Any]:
        offsets, decoder = [], self._decoders.setdefault(index, codecs.getincrementaldecoder("utf-8")("replace"))
        self._lengths.setdefault(index, len(self._echoes[index]))
        for each in found:
            offsets.append(self._lengths[index])
            self._lengths[index] += len(decoder.decode(each.text))
        return {
            "tokens": [_token_text(each.text) for each in found],
            "token_logprobs": [finite_logprob(each.logprob) for each in found], "text_offset": offsets,
            "top_logprobs": [{_token_text(t): finite_logprob(v) for t, v in each.top} for each in found],
        }  # fmt: skip

    def chunk_choices(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """What is new, in the shape that it has in a stream."""
        text = delta.content
        if delta.choice_index not in self._lengths:
            text = self._echoes[delta.choice_index] + text
            self._lengths[delta.choice_index] = len(self._echoes[delta.choice_index])
        if not text and not delta.logprobs and delta.finish_reason is None:
            return []
        return [self._choice(delta.choice_index, text, delta.logprobs, delta.finish_reason)]


def _token_text(token: bytes) -> str:
    """A token as text; parts of characters by their bytes, as OpenAI writes them."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def split_inputs(texts: TextInput, param: str) -> list[str | list[int]]:
    """Texts, or the tokens of texts. Raises ApiError if there are none, too many, or a mixture."""
    if isinstance(texts, str):
        return [texts]
    if texts and all(isinstance(each, int) for each in texts):
        return [[each for each in texts if isinstance(each, int)]]
    found: list[str | list[int]] = [each for each in texts if not isinstance(each, int)]
    if not found or len(found) < len(texts) or len({type(each) for each in found}) > 1:
        raise ApiError(400, f"{param}: a text, several, or their tokens", param=param)
    if len(found) > MAX_INPUTS:
        raise ApiError(400, f"{param}: {len(found)} texts are more than {MAX_INPUTS}", param=param)
    return found
