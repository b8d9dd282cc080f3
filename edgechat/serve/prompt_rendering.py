"""Rendering of the prompt of a chat request, without generating a reply."""

from __future__ import annotations

from collections.abc import Sequence

from edgechat.prompt.builder import BuiltPrompt
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.schemas import ChatRequest


class RenderingBuilder(ChatResponseBuilder):
    """Builds the engine request of a chat completion, and keeps its prompt instead."""

    ALLOWS_PREFILL = True

    def __init__(self, queue: ModelQueue, body: ChatRequest) -> None:
        super().__init__(queue, body)
        self._has_generation_prompt = body.add_generation_prompt is None or bool(body.add_generation_prompt)
        self._prompts: list[BuiltPrompt] = []

    async def build_prompt(self, messages: Sequence[PromptMessage], options: PromptOptions) -> BuiltPrompt:
        self._prompts.append(await super().build_prompt(messages, options))
        return self._prompts[-1]

    async def render(self) -> BuiltPrompt:
        """Return the prompt of the request. Raises ApiError and EdgechatError as for a chat completion."""
        await self.build_requests()
        prompt = self._prompts[-1]
        if self._has_generation_prompt:
            return prompt
        end = prompt.reply_format.generation_prompt if prompt.generation_prompt is None else prompt.generation_prompt
        if not end or not prompt.text.endswith(end):
            message = "add_generation_prompt: this model's chat template does not allow false. Leave it out."
            raise ApiError(400, message, param="add_generation_prompt")
        text = prompt.text.removesuffix(end)
        end_tokens = await self.queue.tokenize_text(end, add_special=False, parse_special=True)
        n_tokens = len(prompt.tokens) - len(end_tokens)
        if prompt.tokens[n_tokens:] == end_tokens:
            return prompt._replace(text=text, tokens=prompt.tokens[:n_tokens])
        # A token contains the end of a message and the beginning of the reply. Without the renderer's marks, the texts
        # of control tokens in messages become control tokens, too.
        return prompt._replace(text=text, tokens=await self.queue.tokenize(text))
