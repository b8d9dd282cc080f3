"""Text completions (POST /v1/completions): engine requests and response objects, without a chat template."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Sequence
from typing import Any, Final

from edgechat.engine import protocol
from edgechat.engine.generation import TokenLogprobs
from edgechat.serve.choices import Choice, ChoiceDelta, clamp_logprob, make_stop_fields
from edgechat.serve.errors import ApiError
from edgechat.serve.infill import InfillParts, make_infill_prompt
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.output_format import check_supported, make_output_format
from edgechat.serve.response_builder import ResponseBuilder
from edgechat.serve.schemas import CompletionRequest, TextInput

MAX_INPUTS: Final = 64


class CompletionResponseBuilder(ResponseBuilder):
    """Builds the engine requests and the response objects of one text completion."""

    ID_PREFIX, OBJECT, CHUNK_OBJECT = "cmpl-", "text_completion", "text_completion"

    def __init__(self, queue: ModelQueue, body: CompletionRequest) -> None:
        super().__init__(queue, body)
        self._body = body
        self._texts: list[_ChoiceText] = []
        self._started_choices: set[int] = set()
        """Indexes of the choices whose first chunk was sent."""

    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        body = self._body
        check_supported(body)
        if body.suffix and body.echo:
            raise ApiError(400, "echo: not supported together with suffix.", param="echo")
        if self.pick_options is not None and self.pick_options.method == "judge":
            raise ApiError(400, "pick: judge needs a conversation. Use /v1/chat/completions.", param="pick")
        rule = (await asyncio.to_thread(make_output_format, body)).rule
        grammar = f"start: {rule}\n" if rule else ""
        requests, n_sequences = [], body.n or 1
        for prompt in split_inputs(body.prompt, "prompt"):
            tokens = await self.make_prompt(prompt)
            # The engine returns the text of prompt tokens only together with their logprobs.
            needs_prompt = bool(body.echo) and (body.logprobs is not None or not isinstance(prompt, str))
            requests.append(self.queue.build_generate_request(
                tokens, body, n_logprobs=body.logprobs, grammars=[grammar] if grammar else [],
                prompt_logprobs=needs_prompt,
            ))  # fmt: skip
            echo = (prompt if isinstance(prompt, str) else None) if body.echo else ""
            self._texts += [_ChoiceText(echo) for _ in range(n_sequences)]
        return requests, [Choice(i) for i in range(len(requests) * self.count_replies(body))]

    async def make_prompt(self, prompt: str | list[int]) -> list[int]:
        """Return the tokens of a prompt; with `suffix`, those for infilling. Raises ApiError and EdgechatError."""
        if self._body.suffix:
            parts = InfillParts(prompt, self._body.suffix)
            return await make_infill_prompt(self.queue, parts, self.max_tokens, "suffix")
        return await self.queue.tokenize(prompt) if isinstance(prompt, str) else prompt

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of generated tokens; None for the whole context."""
        return self.queue.choose_max_tokens(self._body.max_tokens)

    @property
    def has_several_prompts(self) -> bool:
        """Whether the request has more than one prompt."""
        return len(split_inputs(self._body.prompt, "prompt")) > 1

    @property
    def grammar_param(self) -> str | None:
        return None

    def discard_prompt(self) -> None:
        self._body = CompletionRequest(prompt="", logprobs=self._body.logprobs)

    def make_progress_choice(self, choice_index: int) -> dict[str, Any]:
        return {"index": choice_index, "text": "", "logprobs": None, "finish_reason": None}

    def make_choice_objects(self, choices: list[Choice]) -> list[dict[str, Any]]:
        choice_objects = []
        for i, choice in enumerate(choices):
            self._texts[i].prompt += choice.prompt_logprobs
            choice_objects.append(
                self._make_choice_object(i, choice.content, choice.logprobs, choice.finish_reason, is_first=True)
                | make_stop_fields(choice.stop_reason)
            )
        return choice_objects

    def _make_choice_object(
        self, index: int, text: str, logprobs: Sequence[TokenLogprobs], finish_reason: str | None, *,
        is_first: bool,
    ) -> dict[str, Any]:  # fmt: skip
        """Build a choice object; only the first object of a choice contains the echo of the prompt."""
        choice_text = self._texts[index]
        logprobs_object = None
        if self._body.logprobs is not None:
            logprobs_object = choice_text.make_logprobs_object(logprobs, with_prompt=is_first)
        text = choice_text.echo + text if is_first else text
        return {"index": index, "text": text, "logprobs": logprobs_object, "finish_reason": finish_reason}

    def make_chunk_choices(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        index = delta.choice_index
        self._texts[index].prompt += delta.prompt_logprobs
        if not delta.content and not delta.logprobs and delta.finish_reason is None:
            return []
        is_first = index not in self._started_choices
        self._started_choices.add(index)
        choice = self._make_choice_object(index, delta.content, delta.logprobs, delta.finish_reason, is_first=is_first)
        return [choice | make_stop_fields(delta.stop_reason)]


class _ChoiceText:
    """Text of one choice: the echo of the prompt, and the text offsets of the tokens."""

    def __init__(self, echo: str | None) -> None:
        """Create the text of a choice.

        `echo` is the text before the generated text; if None, it is decoded from the prompt tokens.
        """
        self.prompt: list[TokenLogprobs] = []
        """Tokens of the prompt; empty unless the request has `echo`."""
        self._echo = echo
        self._n_chars: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def echo(self) -> str:
        """Text before the generated text; incomplete until all prompt tokens have been received."""
        return self._decode_prompt() if self._echo is None else self._echo

    def _decode_prompt(self) -> str:
        return b"".join(token.token_bytes for token in self.prompt).decode("utf-8", "replace")

    def make_logprobs_object(self, new_tokens: Sequence[TokenLogprobs], *, with_prompt: bool) -> dict[str, Any]:
        """Build the `logprobs` object of newly generated tokens; `with_prompt` puts the tokens of the prompt first."""
        prompt = self.prompt if with_prompt else []
        if self._n_chars is None:
            # The tokens of the prompt may begin with text that the prompt does not have: a start token or a space.
            self._n_chars = len(self.echo) - len(self._decode_prompt())
        tokens, offsets = [*prompt, *new_tokens], []
        for token in tokens:
            offsets.append(max(0, self._n_chars))
            self._n_chars += len(self._decoder.decode(token.token_bytes))
        logprobs: list[float | None] = [clamp_logprob(token.logprob) for token in tokens]
        top_logprobs: list[dict[str, float] | None] = [
            {_format_token(t): clamp_logprob(v) for t, v in token.top_logprobs} for token in tokens
        ]
        if prompt:  # the first token has no logprob, because nothing precedes it
            logprobs[0] = top_logprobs[0] = None
        return {
            "tokens": [_format_token(token.token_bytes) for token in tokens], "token_logprobs": logprobs,
            "text_offset": offsets, "top_logprobs": top_logprobs,
        }  # fmt: skip


def _format_token(token: bytes) -> str:
    """Return the text of a token; format invalid UTF-8 as hexadecimal bytes, as the OpenAI API does."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def split_inputs(inputs: TextInput, param: str) -> list[str | list[int]]:
    """Convert the input field of a request to a list of strings or a list of token ID lists.

    Raises ApiError if there are no inputs or more than `MAX_INPUTS`, or if strings and token IDs are mixed.
    """
    if isinstance(inputs, str):
        return [inputs]
    if inputs and all(isinstance(item, int) for item in inputs):
        return [[item for item in inputs if isinstance(item, int)]]
    items: list[str | list[int]] = [item for item in inputs if not isinstance(item, int)]
    if not items or len(items) < len(inputs) or len({type(item) for item in items}) > 1:
        message = f"{param}: must be a string, a list of strings, a list of token IDs, or a list of such lists."
        raise ApiError(400, message, param=param)
    if len(items) > MAX_INPUTS:
        raise ApiError(400, f"{param}: {len(items)} inputs; at most {MAX_INPUTS} are allowed.", param=param)
    return items
