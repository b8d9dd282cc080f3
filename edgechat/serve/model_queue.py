"""Served model with a request queue, and the event streams of its requests in the engine."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from edgechat.config import Sampling, Settings
from edgechat.engine import protocol
from edgechat.errors import EdgechatError, EngineError
from edgechat.models.loaded_model import LoadedModel
from edgechat.planner.load_plan import LoadPlan
from edgechat.prompt.builder import BuiltPrompt, PromptBuilder, PromptOptions, check_prompt_bytes
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.tool_formats import ToolFormat, detect_tool_format
from edgechat.serve.errors import ApiError, check_accepting
from edgechat.serve.model_lease import ModelLease
from edgechat.serve.schemas import GenerationParams

CACHE_OWNER: Final = "served"
"""Conversation ID of all requests of the server in the prefix cache, so that clients share cached prefixes."""
_N_SEEDS: Final = 1 << 32
_TOKEN_ID: Final = re.compile("[0-9]{1,9}")


class RequestEvent(NamedTuple):
    """Engine event, with the index of its request in the event stream."""

    request_index: int
    event: protocol.AnyEvent


class ModelQueue:
    """Served model with a queue of at most `max_requests` requests, running and waiting."""

    def __init__(self, name: str, path: Path, settings: Settings, max_requests: int, lease: ModelLease) -> None:
        """All served models share the same `lease`. Call `open` to load the model."""
        self.name = name
        self.path = path
        self.settings = settings
        self.max_requests = max_requests
        self.n_requests = 0
        """Number of admitted requests, running and waiting."""
        self.is_draining = False
        self._is_stopped = False
        self._model = LoadedModel()
        self._lease = lease
        self._streams: set[EventStream] = set()
        self._engine_lock = asyncio.Lock()

    def open(self, on_progress: Callable[[str], None]) -> protocol.Loaded:
        """Load the model; `on_progress` receives status messages. Raises EdgechatError."""
        return self._model.open(self.path, self.settings, lambda event: on_progress(event.message), may_embed=True)

    def close(self) -> None:
        """End the engine and render processes."""
        self._model.close()

    @property
    def warnings(self) -> list[str]:
        """Warnings from loading the model."""
        return self._model.warnings

    @property
    def loaded(self) -> protocol.Loaded:
        """Properties of the loaded model, as the engine reports them. Raises EngineError if no model is loaded."""
        if self._model.loaded is None:
            raise EngineError("No model is loaded.")
        return self._model.loaded

    @property
    def builder(self) -> PromptBuilder:
        """The prompt builder of the model."""
        return self._model.builder

    @property
    def tool_format(self) -> ToolFormat:
        """The format of the model's tool calls."""
        return detect_tool_format(self.loaded.chat_template or "")

    @property
    def max_parallel(self) -> int:
        """Number of replies that the engine can generate in parallel."""
        return self.plan.options.n_seqs if self.plan is not None else 1

    @property
    def plan(self) -> LoadPlan | None:
        """The load plan of the model."""
        return self._model.plan

    @property
    def n_running(self) -> int:
        """Number of requests with at least one engine event."""
        return sum(stream.has_started for stream in self._streams)

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Add a request to the queue while the context is open. Raises ApiError if the queue is full or draining."""
        check_accepting(is_open=not self.is_draining)
        if self.n_requests >= self.max_requests:
            message = f"The queue is full ({self.n_requests} requests). Try again later."
            raise ApiError(503, message, code="queue_full")
        self.n_requests += 1
        try:
            yield
        finally:
            self.n_requests -= 1

    async def build_prompt(self, messages: list[PromptMessage], options: PromptOptions) -> BuiltPrompt:
        """Render and tokenise the messages of a conversation. Raises EdgechatError."""
        await self._ensure_engine()
        return await asyncio.to_thread(self.builder.build, messages, options)

    async def tokenize(self, text: str) -> list[int]:
        """Tokenise a text; control tokens in the text are recognised. Raises EdgechatError."""
        check_prompt_bytes(text, self.loaded.n_ctx)
        await self._ensure_engine()
        return await asyncio.to_thread(self._model.engine.tokenize, text)

    def generate_request(
        self, tokens: list[int], params: GenerationParams, stops: Sequence[str] = (), **overrides: Any
    ) -> protocol.Generate:
        """Build the engine request for a prompt. The server's settings are defaults for missing `params`.

        `stops` are additional stop strings; `overrides` are fields of the engine request that replace computed ones.
        Raises ApiError for parameters that this model cannot satisfy.
        """
        n = params.n or 1
        if n > self.max_parallel:
            raise ApiError(400, f"n: must be at most {self.max_parallel} with this model, got {n}.", param="n")
        client_stops = [params.stop] if isinstance(params.stop, str) else list(params.stop or ())
        fields: dict[str, Any] = {
            "tokens": self.validate_tokens(tokens, "prompt"), "sampling": self._sampling(params), "n_sequences": n,
            "max_tokens": params.max_tokens or self.settings.max_tokens, "stop": [*client_stops, *stops],
            "logit_bias": self._logit_bias(params), "ignore_eog": bool(params.ignore_eos),
            "conversation": CACHE_OWNER, "speculate": not self.settings.strict, "bypass_cache": self.settings.strict,
        } | overrides  # fmt: skip
        return protocol.Generate(id=self._model.engine.next_id(), **fields)

    def embed_request(self, inputs: list[list[int]]) -> protocol.Embed:
        """Build the engine request for embeddings of tokenised inputs."""
        return protocol.Embed(id=self._model.engine.next_id(), inputs=inputs)

    def validate_tokens(self, tokens: Sequence[int], param: str) -> list[int]:
        """Check the token IDs of a request and return them as a list.

        Raises ApiError if `tokens` is empty, or if a token ID is not in the vocabulary.
        """
        if not tokens:
            raise ApiError(400, f"{param}: must not be empty.", param=param)
        n_vocab, largest = self.loaded.n_vocab, max(tokens)
        if largest >= n_vocab:
            message = f"{param}: token {largest} is not in the vocabulary of {n_vocab} tokens."
            raise ApiError(400, message, param=param)
        return list(tokens)

    def _sampling(self, params: GenerationParams) -> Sampling:
        fields = {name: getattr(params, name) for name in Sampling.__struct_fields__}
        fields = {name: value for name, value in fields.items() if value is not None}
        if params.top_k is not None:
            fields["top_k"] = max(0, params.top_k)  # clients of other servers send -1 to disable top_k
        if params.seed is not None:
            fields["seed"] = params.seed % _N_SEEDS if params.seed >= 0 else None
        return msgspec.structs.replace(self.settings.sampling, **fields)

    def _logit_bias(self, params: GenerationParams) -> dict[int, float]:
        biases = params.logit_bias or {}
        invalid = next((name for name in biases if not _TOKEN_ID.fullmatch(name)), None)
        if invalid is not None:
            raise ApiError(400, f"logit_bias: {invalid[:40]!r} is not a token ID.", param="logit_bias")
        by_token = {int(name): value for name, value in biases.items()}
        if by_token:
            self.validate_tokens(list(by_token), "logit_bias")
        return by_token

    async def _ensure_engine(self) -> None:
        async with self._engine_lock:
            if self._model.engine.needs_restart:
                await asyncio.to_thread(self._model.revive)

    async def submit(self, requests: Sequence[protocol.Generate | protocol.Embed]) -> EventStream:
        """Wait for the lease, submit requests to the engine, and return the stream of their events.

        Raises ApiError and EdgechatError.
        """
        await self._lease.acquire(self.name)
        stream = EventStream(self, requests)
        self._streams.add(stream)
        try:
            await self._ensure_engine()
            check_accepting(is_open=not self._is_stopped)
            for index, request in enumerate(requests):
                self._model.engine.submit(request, stream.event_handler(index))
        except BaseException:
            stream.close()
            raise
        return stream

    async def recover_from(self, error: EdgechatError, plan: LoadPlan | None) -> None:
        """Fall back to the CPU after a failure of the engine.

        `plan` is the load plan at the time of the request. If several requests fail, only the first failure of a plan
        has an effect.
        """
        async with self._engine_lock:
            if isinstance(error, EngineError) and plan is self._model.plan:
                await asyncio.to_thread(self._model.fall_back_to_cpu, error, self.settings)

    def release(self, stream: EventStream) -> None:
        """Cancel the unfinished requests of a stream and release the lease. Further calls have no effect."""
        if stream not in self._streams:
            return
        self._streams.discard(stream)
        self._lease.release()
        self._cancel(stream)

    def _cancel(self, stream: EventStream) -> None:
        for request_id in stream.unfinished_ids:
            self._model.engine.cancel(request_id)

    def cancel_all(self) -> None:
        """Cancel all requests, whose responses end with the text generated so far, and refuse new requests."""
        self._is_stopped = True
        for stream in self._streams:
            self._cancel(stream)


class EventStream:
    """Stream of engine events for one or several requests. Call `close` at the end."""

    def __init__(self, queue: ModelQueue, requests: Sequence[protocol.Request]) -> None:
        self.has_started = False
        self._queue = queue
        self._plan = queue.plan
        self._unfinished = {index: request.id for index, request in enumerate(requests)}
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, protocol.AnyEvent | EdgechatError]] = asyncio.Queue()

    @property
    def unfinished_ids(self) -> list[int]:
        """IDs of the requests without a final event."""
        return list(self._unfinished.values())

    def event_handler(self, request_index: int) -> Callable[[protocol.AnyEvent | EdgechatError], None]:
        """Return a thread-safe callback for the engine events of one request."""

        def on_event(event: protocol.AnyEvent | EdgechatError) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._events.put_nowait, (request_index, event))

        return on_event

    async def next(self) -> RequestEvent | None:
        """Return the next event; None after the final events of all requests. Raises EdgechatError of the engine."""
        if not self._unfinished:
            return None
        index, event = await self._events.get()
        self.has_started = True
        if isinstance(event, EdgechatError):
            self._unfinished.pop(index, None)
            await self._queue.recover_from(event, self._plan)
            raise event
        if isinstance(event, protocol.FINAL_EVENTS):
            self._unfinished.pop(index, None)
        return RequestEvent(index, event)

    def close(self) -> None:
        """Cancel the unfinished requests. Further calls have no effect."""
        self._queue.release(self)
        self._unfinished.clear()
