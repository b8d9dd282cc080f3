"""Base class for builders of engine requests and response objects."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

from edgechat import __version__
from edgechat.engine import protocol
from edgechat.serve.choices import Choice, ChoiceDelta, Delta, PromptProgress, UsageTotals
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.pick_options import PickOptions, find_pick_options
from edgechat.serve.schemas import GenerationParams

PING_INTERVAL_S: Final = 3.0
"""Seconds between keep-alive comments in a silent stream. Common proxies have time-outs of 10 seconds or more."""
_MIN_PING_INTERVAL_S: Final = 0.1


class ResponseBuilder(ABC):
    """Builds the engine requests and the response objects of one API request."""

    ID_PREFIX: ClassVar[str]
    OBJECT: ClassVar[str]
    """Value of the `object` field in a complete response."""
    CHUNK_OBJECT: ClassVar[str]
    """Value of the `object` field in a chunk of a stream."""

    def __init__(self, queue: ModelQueue, params: GenerationParams) -> None:
        self.queue = queue
        self.id = f"{self.ID_PREFIX}{secrets.token_hex(12)}"
        self.model_name = queue.choose_response_name(params.model)
        self._common_fields = {
            "id": self.id, "created": int(time.time()), "model": self.model_name,
            "system_fingerprint": f"edgechat-{__version__}",
        }  # fmt: skip
        self.is_stream = bool(params.stream)
        self.include_usage = bool(params.stream_options and params.stream_options.include_usage)
        self.ping_s = _choose_ping_interval(params)
        """Seconds between keep-alive comments in a silent stream; None for no comments."""
        self._return_progress = bool(params.return_progress)
        self.pick_options: PickOptions | None = find_pick_options(params)
        """How to pick the choices from more replies; None to return all replies."""
        self.question = ""
        """Text to which the replies of a conversation are compared; "" for other prompts."""

    @abstractmethod
    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        """Build the engine requests, and an empty choice for each reply. Raises ApiError and EdgechatError."""

    @property
    @abstractmethod
    def grammar_param(self) -> str | None:
        """Name of the request field that the grammar belongs to, for the `param` field of error responses."""

    @abstractmethod
    def discard_prompt(self) -> None:
        """Discard the texts of the request body, which may be large, after the engine requests are built."""

    @abstractmethod
    def make_choice_objects(self, choices: list[Choice]) -> list[dict[str, Any]]:
        """Convert finished choices to the `choices` array of a complete response."""

    @abstractmethod
    def make_chunk_choices(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """Convert new output to entries for the `choices` array. The server sends each entry in a separate chunk."""

    @abstractmethod
    def make_progress_choice(self, choice_index: int) -> dict[str, Any]:
        """Build the `choices` entry of a chunk that reports prefill progress and contains no output."""

    def count_replies(self, params: GenerationParams) -> int:
        """Return the number of replies to each prompt, which is larger than `n` if the choices are picked."""
        return self.pick_options.n_replies if self.pick_options is not None else params.n or 1

    def body(self, choices: list[Choice], totals: UsageTotals) -> dict[str, Any]:
        """Build the JSON object of a complete response."""
        choice_objects = [
            choice_object if choice.pick is None else choice_object | {"pick": choice.pick}
            for choice, choice_object in zip(choices, self.make_choice_objects(choices), strict=True)
        ]
        return self._make_object(self.OBJECT, choice_objects, totals)

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """Build the stream chunks for new output, or for prefill progress if the client asked for it."""
        if isinstance(delta, PromptProgress) and self._return_progress:
            chunk = self._make_object(self.CHUNK_OBJECT, [self.make_progress_choice(delta.choice_index)])
            return [chunk | {"prompt_progress": delta.as_object()}]
        if not isinstance(delta, ChoiceDelta):
            return []
        return [self._make_object(self.CHUNK_OBJECT, [choice]) for choice in self.make_chunk_choices(delta)]

    def make_usage_chunk(self, totals: UsageTotals) -> dict[str, Any]:
        """Build the final usage chunk of a stream (`stream_options.include_usage`)."""
        return self._make_object(self.CHUNK_OBJECT, [], totals)

    def _make_object(
        self, kind: str, choices: list[dict[str, Any]], totals: UsageTotals | None = None
    ) -> dict[str, Any]:  # fmt: skip
        fields = self._common_fields | {"object": kind, "choices": choices}
        return fields if totals is None else fields | {"usage": totals.usage(), "timings": totals.timings()}


def _choose_ping_interval(params: GenerationParams) -> float | None:
    interval_s = params.sse_ping_interval
    if interval_s is None:
        return PING_INTERVAL_S if params.stream else None
    return max(interval_s, _MIN_PING_INTERVAL_S) if params.stream and interval_s > 0 else None
