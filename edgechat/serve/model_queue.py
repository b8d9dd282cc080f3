"""Models that are served, and the requests that are in work on each of them."""

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
"""Whose all that is computed for clients is: a prefix that one of them sent is there for the others."""
_SEEDS: Final = 1 << 32
_TOKEN: Final = re.compile("[0-9]{1,9}")


class RequestEvent(NamedTuple):
    """An event of one of several requests."""

    request_index: int
    event: protocol.AnyEvent


class ModelQueue:
    """One model. Requests beyond `max_requests` at a time are refused."""

    def __init__(self, name: str, path: Path, settings: Settings, max_requests: int, lease: ModelLease) -> None:
        """`turns` are shared by all that is served."""
        self.name = name
        self.path = path
        self.settings = settings
        self.max_requests = max_requests
        self.n_requests = 0
        """In work or waiting."""
        self.is_draining = False
        self._is_stopped = False
        self._model = LoadedModel()
        self._lease = lease
        self._streams: set[EventStream] = set()
        self._engine_lock = asyncio.Lock()

    def open(self, on_progress: Callable[[str], None]) -> protocol.Loaded:
        """Load it. Raises EdgechatError."""
        return self._model.open(self.path, self.settings, lambda event: on_progress(event.message), may_embed=True)

    def close(self) -> None:
        """End its processes."""
        self._model.close()

    @property
    def warnings(self) -> list[str]:
        """What is not as the user may think."""
        return self._model.warnings

    @property
    def loaded(self) -> protocol.Loaded:
        """What the engine said of it. Raises EngineError."""
        if self._model.loaded is None:
            raise EngineError("no model is loaded")
        return self._model.loaded

    @property
    def builder(self) -> PromptBuilder:
        """What makes prompts for it."""
        return self._model.builder

    @property
    def tool_format(self) -> ToolFormat:
        """How it writes calls of tools."""
        return detect_tool_format(self.loaded.chat_template or "")

    @property
    def max_parallel(self) -> int:
        """Answers that can be made at a time."""
        return self.plan.options.n_seqs if self.plan is not None else 1

    @property
    def plan(self) -> LoadPlan | None:
        """How it is loaded."""
        return self._model.plan

    @property
    def n_running(self) -> int:
        """Requests of which something is heard already."""
        return sum(answer.has_started for answer in self._streams)

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """A place in the queue. Raises ApiError if there is none."""
        check_accepting(is_open=not self.is_draining)
        if self.n_requests >= self.max_requests:
            words = f"{self.n_requests} requests are in work or wait already: try again later"
            raise ApiError(503, words, code="queue_full")
        self.n_requests += 1
        try:
            yield
        finally:
            self.n_requests -= 1

    async def build_prompt(self, messages: list[PromptMessage], options: PromptOptions) -> BuiltPrompt:
        """The tokens of a conversation. Raises EdgechatError."""
        await self._ensure_engine()
        return await asyncio.to_thread(self.builder.build, messages, options)

    async def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, in which control tokens are those. Raises EdgechatError."""
        check_prompt_bytes(text, self.loaded.n_ctx)
        await self._ensure_engine()
        return await asyncio.to_thread(self._model.engine.tokenize, text)

    def generate_request(
        self, tokens: list[int], drawing: GenerationParams, stops: Sequence[str] = (), **more: Any
    ) -> protocol.Generate:
        """What the engine is asked, with the settings of the server where the client says nothing. Raises ApiError.

        `stops` are texts that end an answer whatever the client says.
        """
        n = drawing.n or 1
        if n > self.max_parallel:
            raise ApiError(400, f"n: {n} answers at once are not possible: 1 to {self.max_parallel} are", param="n")
        stop = [drawing.stop] if isinstance(drawing.stop, str) else list(drawing.stop or ())
        asked: dict[str, Any] = {
            "tokens": self.validate_tokens(tokens, "prompt"), "max_tokens": drawing.max_tokens or self.settings.max_tokens,
            "sampling": self._sampling(drawing), "n_sequences": n, "stop": [*stop, *stops], "logit_bias": self._logit_bias(drawing),
            "conversation": CACHE_OWNER, "ignore_eog": bool(drawing.ignore_eos), "speculate": not self.settings.strict, "bypass_cache": self.settings.strict,
        } | more  # fmt: skip
        return protocol.Generate(id=self._model.engine.next_id(), **asked)

    def embed_request(self, texts: list[list[int]]) -> protocol.Embed:
        """What the engine is asked for vectors."""
        return protocol.Embed(id=self._model.engine.next_id(), inputs=texts)

    def validate_tokens(self, tokens: Sequence[int], param: str) -> list[int]:
        """Tokens that a client sent. Raises ApiError if the model does not know one."""
        if not tokens:
            raise ApiError(400, f"{param}: there is nothing to continue", param=param)
        n_vocab, largest = self.loaded.n_vocab, max(tokens)
        if largest >= n_vocab:
            words = f"{param}: token {largest} is not in this model's vocabulary of {n_vocab}"
            raise ApiError(400, words, param=param)
        return list(tokens)

    def _sampling(self, drawing: GenerationParams) -> Sampling:
        given = {name: getattr(drawing, name) for name in Sampling.__struct_fields__}
        given = {name: value for name, value in given.items() if value is not None}
        if drawing.top_k is not None:
            given["top_k"] = max(0, drawing.top_k)  # -1 means all elsewhere
        if drawing.seed is not None:
            given["seed"] = drawing.seed % _SEEDS if drawing.seed >= 0 else None
        return msgspec.structs.replace(self.settings.sampling, **given)

    def _logit_bias(self, drawing: GenerationParams) -> dict[int, float]:
        given = drawing.logit_bias or {}
        wrong = next((name for name in given if not _TOKEN.fullmatch(name)), None)
        if wrong is not None:
            raise ApiError(400, f"logit_bias: {wrong[:40]!r} is no number of a token", param="logit_bias")
        found = {int(name): value for name, value in given.items()}
        if found:
            self.validate_tokens(list(found), "logit_bias")
        return found

    async def _ensure_engine(self) -> None:
        async with self._engine_lock:
            if self._model.engine.needs_restart:
                await asyncio.to_thread(self._model.revive)

    async def submit(self, requests: Sequence[protocol.Generate | protocol.Embed]) -> EventStream:
        """Have requests answered, side by side. Raises ApiError and EdgechatError."""
        await self._lease.acquire(self.name)
        answer = EventStream(self, requests)
        self._streams.add(answer)
        try:
            await self._ensure_engine()
            check_accepting(is_open=not self._is_stopped)
            for number, request in enumerate(requests):
                self._model.engine.submit(request, answer.event_handler(number))
        except BaseException:
            answer.close()
            raise
        return answer

    async def recover_from(self, error: EdgechatError, plan: LoadPlan | None) -> None:
        """Do what can be done, for the next request, about an error that came with this plan."""
        async with self._engine_lock:
            if isinstance(error, EngineError) and plan is self._model.plan:  # once, if several answers failed
                await asyncio.to_thread(self._model.fall_back_to_cpu, error, self.settings)

    def release(self, answer: EventStream) -> None:
        """An answer is over, or nobody wants it. A second call does nothing."""
        if answer not in self._streams:
            return
        self._streams.discard(answer)
        self._lease.release()
        self._cancel(answer)

    def _cancel(self, answer: EventStream) -> None:
        for request_id in answer.unfinished_ids:
            self._model.engine.cancel(request_id)

    def cancel_all(self) -> None:
        """End all answers with what there is of them; there are no more."""
        self._is_stopped = True
        for answer in self._streams:
            self._cancel(answer)


class EventStream:
    """What the engine says to one or several requests, as it comes; `close` it."""

    def __init__(self, served: ModelQueue, requests: Sequence[protocol.Request]) -> None:
        self.has_started = False
        self._queue = served
        self._plan = served.plan
        self._unfinished = {number: request.id for number, request in enumerate(requests)}
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, protocol.AnyEvent | EdgechatError]] = asyncio.Queue()

    @property
    def unfinished_ids(self) -> list[int]:
        """Ids of requests that the engine still works on."""
        return list(self._unfinished.values())

    def event_handler(self, number: int) -> Callable[[protocol.AnyEvent | EdgechatError], None]:
        """What is given the events of one request, in whatever thread."""

        def hear(event: protocol.AnyEvent | EdgechatError) -> None:
            with contextlib.suppress(RuntimeError):  # the server is gone
                self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        return hear

    async def next(self) -> RequestEvent | None:
        """The next event; None when all is said. Raises what the engine reports."""
        if not self._unfinished:
            return None
        number, event = await self._events.get()
        self.has_started = True
        if isinstance(event, EdgechatError):
            self._unfinished.pop(number, None)
            await self._queue.recover_from(event, self._plan)
            raise event
        if isinstance(event, protocol.FINAL_EVENTS):
            self._unfinished.pop(number, None)
        return RequestEvent(number, event)

    def close(self) -> None:
        """Have nothing more computed for it. A second call does nothing."""
        self._queue.release(self)
        self._unfinished.clear()
