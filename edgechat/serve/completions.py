"""Text completions (POST /v1/completions): engine requests and response objects, without a chat template."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Final

from edgechat.engine import protocol
from edgechat.serve.choices import Choice, ChoiceDelta, clamp_logprob
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.output_format import check_supported, make_output_format
from edgechat.serve.response_builder import ResponseBuilder
from edgechat.serve.schemas import CompletionRequest, TextInput

MAX_INPUTS: Final = 64


class CompletionResponseBuilder(ResponseBuilder):
    """Builds the engine requests and the response objects of one text completion."""

    ID_PREFIX, OBJECT, CHUNK_OBJECT = "cmpl", "text_completion", "text_completion"

    def __init__(self, queue: ModelQueue, body: CompletionRequest) -> None:
        super().__init__(queue, body)
        self._body = body
        self._echoes: list[str] = []
        """Text before the content of each choice: the prompt if the request sets `echo`, otherwise ""."""
        self._n_chars: dict[int, int] = {}
        """Number of characters that each choice has so far, including its echo, by choice index."""
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        body = self._body
        check_supported(body)
        if body.suffix:
            raise ApiError(400, "suffix: not supported.", param="suffix")
        if body.best_of is not None and body.best_of > (body.n or 1):
            raise ApiError(400, "best_of: values above n are not supported.", param="best_of")
        rule = make_output_format(body).rule
        grammar = f"start: {rule}\n" if rule else ""
        requests, n_sequences = [], body.n or 1
        for prompt in split_inputs(body.prompt, "prompt"):
            if body.echo and not isinstance(prompt, str):
                raise ApiError(400, "echo: not supported for a prompt of token IDs.", param="echo")
            tokens = await self.queue.tokenize(prompt) if isinstance(prompt, str) else prompt
            requests.append(self.queue.build_generate_request(tokens, body, n_logprobs=body.logprobs, grammar=grammar))
            self._echoes += [prompt if body.echo and isinstance(prompt, str) else ""] * n_sequences
        return requests, [Choice(i) for i in range(len(requests) * n_sequences)]

    @property
    def grammar_param(self) -> str | None:
        return None

    def forget_prompt(self) -> None:
        self._body = CompletionRequest(prompt="", logprobs=self._body.logprobs)

    def make_progress_choice(self, choice_index: int) -> dict[str, Any]:
        return self._make_choice_object(choice_index, "", (), None) | {"logprobs": None}

    def make_choice_objects(self, choices: list[Choice]) -> list[dict[str, Any]]:
        return [
            self._make_choice_object(i, self._echoes[i] + c.content, c.logprobs, c.finish_reason)
            for i, c in enumerate(choices)
        ]

    def _make_choice_object(
        self, index: int, text: str, logprobs: Sequence[protocol.TokenLogprobs], finish_reason: str | None
    ) -> dict[str, Any]:
        logprobs_object = self._make_logprobs_object(index, logprobs) if self._body.logprobs is not None else None
        return {"index": index, "text": text, "logprobs": logprobs_object, "finish_reason": finish_reason}

    def _make_logprobs_object(self, index: int, logprobs: Sequence[protocol.TokenLogprobs]) -> dict[str, Any]:
        offsets, decoder = [], self._decoders.setdefault(index, codecs.getincrementaldecoder("utf-8")("replace"))
        self._n_chars.setdefault(index, len(self._echoes[index]))
        for token in logprobs:
            offsets.append(self._n_chars[index])
            self._n_chars[index] += len(decoder.decode(token.token_bytes))
        return {
            "tokens": [_format_token(token.token_bytes) for token in logprobs],
            "token_logprobs": [clamp_logprob(token.logprob) for token in logprobs], "text_offset": offsets,
            "top_logprobs": [{_format_token(t): clamp_logprob(v) for t, v in token.top_logprobs} for token in logprobs],
        }  # fmt: skip

    def make_chunk_choices(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        index, text = delta.choice_index, delta.content
        if index not in self._n_chars:
            text = self._echoes[index] + text
            self._n_chars[index] = len(self._echoes[index])
        if not text and not delta.logprobs and delta.finish_reason is None:
            return []
        return [self._make_choice_object(index, text, delta.logprobs, delta.finish_reason)]


def _format_token(token: bytes) -> str:
    """Return the text of a token; format invalid UTF-8 as hexadecimal bytes, as the OpenAI API does."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def split_inputs(inputs: TextInput, param: str) -> list[str | list[int]]:
    """Return the inputs of a request as a list of texts or a list of token ID lists.

    Raises ApiError if there are no inputs or more than `MAX_INPUTS`, or if texts and token IDs are mixed.
    """
    if isinstance(inputs, str):
        return [inputs]
    if inputs and all(isinstance(item, int) for item in inputs):
        return [[item for item in inputs if isinstance(item, int)]]
    items: list[str | list[int]] = [item for item in inputs if not isinstance(item, int)]
    if not items or len(items) < len(inputs) or len({type(item) for item in items}) > 1:
        message = f"{param}: must be a text, a list of texts, a list of token IDs, or a list of such lists."
        raise ApiError(400, message, param=param)
    if len(items) > MAX_INPUTS:
        raise ApiError(400, f"{param}: {len(items)} inputs; at most {MAX_INPUTS} are allowed.", param=param)
    return items
