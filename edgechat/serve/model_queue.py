"""Served model with a queue of requests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from edgechat.config import Sampling, Settings
from edgechat.engine import protocol
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.engine_process import EXIT_TIMEOUT_S
from edgechat.errors import ComputeError, EdgechatError, EngineDiedError, EngineError
from edgechat.humanize import format_count
from edgechat.models.loaded_model import LoadedModel
from edgechat.planner.load_plan import LoadPlan
from edgechat.prompt.builder import BuiltPrompt, PromptBuilder
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.serve.addresses import LOOPBACK
from edgechat.serve.errors import ApiError, check_accepts_requests, make_shutdown_error
from edgechat.serve.event_stream import EventStream, OnOutcome
from edgechat.serve.model_lease import ModelLease
from edgechat.serve.prompt_rules import apply_prompt_rules
from edgechat.serve.schemas import GenerationParams
from edgechat.serve.shared_load import SharedLoad

CACHE_OWNER: Final = "served"
"""Conversation ID in the prefix cache for all requests of the server, so that clients share cached prefixes."""
_log: Final = logging.getLogger("edgechat.serve")
_N_SEEDS: Final = 1 << 32
T = TypeVar("T")
ModelKind = Literal["text", "embedding", "reranker"]
# Number of tokens that the engine converts to text at once, in about 10 ms, in which it generates nothing.
_DETOKENIZED_TOKENS: Final = 4096
_TOKEN_ID: Final = re.compile("[0-9]{1,9}")


class ModelQueue:
    """Served model with a queue of at most `max_requests` running or waiting requests."""

    def __init__(
        self, name: str, path: Path, settings: Settings, max_requests: int, lease: ModelLease,
        prompt_rules: Collection[str] = (),
    ) -> None:  # fmt: skip
        """Create a queue; `open` loads the model. All served models share the same `lease`.

        `prompt_rules` are names of `PROMPT_RULES`, which change system prompts.
        """
        self._prompt_rules = prompt_rules
        self.name = name
        self.aliases: list[str] = []
        """Additional names of the model in the API."""
        self.path = path
        self.settings = settings
        self.max_requests = max_requests
        self.n_requests = 0
        """Number of running and waiting requests."""
        self._n_requests_by_client: Counter[str] = Counter()
        self.is_draining = False
        """True when the server is shutting down and the queue accepts no new requests."""
        self._is_stopped = False
        self._model = LoadedModel("serve")
        self._lease = lease
        self._streams: set[EventStream] = set()
        self._load = SharedLoad()
        # With one thread for each request, a long prompt does not delay the other requests.
        self._threads = ThreadPoolExecutor(max_requests, "prompt")

    def open(self, on_progress: Callable[[str], None]) -> protocol.Loaded:
        """Load the model; `on_progress` receives status messages. Raises EdgechatError."""
        return self._model.open(
            self.path, self.settings, lambda event: on_progress(event.message), allow_embedding=True
        )

    @property
    def kind(self) -> ModelKind:
        """Kind of model: text, embedding or reranker."""
        if not self.model_properties.is_embedding:
            return "text"
        return "reranker" if self.model_properties.n_labels else "embedding"

    def choose_response_name(self, requested_name: str | None) -> str:
        """Return the name of the model in a response: an alias only if the request has this alias, in any case."""
        requested = (requested_name or "").casefold()
        return next((alias for alias in self.aliases if alias.casefold() == requested), self.name)

    def check_generates_text(self, embedding_path: str) -> None:
        """Raise ApiError for another model; `embedding_path` is the endpoint that computes embeddings."""
        if self.kind != "text":
            name, hint = "an embedding model", f"Use {embedding_path}."
            if self.kind == "reranker":
                name, hint = "a reranker", "/v1/rerank sorts documents with it."
            raise ApiError(400, f"{self.name} is {name} and generates no text. {hint}", param="model")

    def close(self, timeout_s: float = EXIT_TIMEOUT_S) -> None:
        """End the engine and render processes. The engine is killed after `timeout_s`. Further calls have no effect."""
        self._model.close(timeout_s)
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def warnings(self) -> list[str]:
        """Warnings from loading the model."""
        return self._model.warnings

    @property
    def model_properties(self) -> protocol.Loaded:
        """Properties of the loaded model, as the engine reports them. Raises EngineError if no model is loaded."""
        if self._model.model_properties is None:
            raise EngineError("No model is loaded.")
        return self._model.model_properties

    @property
    def prompt_builder(self) -> PromptBuilder:
        """Prompt builder of the model."""
        return self._model.builder

    @property
    def max_parallel_replies(self) -> int:
        """Number of replies that the engine can generate in parallel."""
        return self.plan.options.n_seqs if self.plan is not None else 1

    @property
    def plan(self) -> LoadPlan | None:
        """Load plan of the model; None if no model is loaded."""
        return self._model.plan

    @property
    def n_running(self) -> int:
        """Number of requests for which the engine has sent at least one event."""
        return sum(stream.has_started for stream in self._streams)

    def find_obstacle(self, client: str = LOOPBACK) -> ApiError | None:
        """Return the error for a new request of a client address, or None if the queue can accept the request.

        A full queue accepts no requests, and neither does a server that is shutting down. One address may have up to
        three quarters of the requests; the loopback address may have all.
        """
        n_requests, n_of_client = self.n_requests, self._n_requests_by_client[client]
        if self.is_draining:
            return make_shutdown_error()
        if n_requests >= self.max_requests:
            return ApiError(
                503, f"The queue is full ({format_count(n_requests, 'request')}). Try again later.", code="queue_full"
            )
        if client != LOOPBACK and n_of_client >= max(1, self.max_requests * 3 // 4):
            message = (
                f"The queue has {format_count(n_of_client, 'request')} from this address and accepts no more. "
                "Try again later."
            )
            return ApiError(503, message, code="queue_full")
        return None

    @contextlib.contextmanager
    def admit(self, client: str = LOOPBACK) -> Iterator[None]:
        """Add a request of a client address to the queue during the `with` block. Raises ApiError if it is refused."""
        error = self.find_obstacle(client)
        if error is not None:
            raise error
        self.n_requests += 1
        self._n_requests_by_client[client] += 1
        try:
            yield
        finally:
            self.n_requests -= 1
            self._n_requests_by_client[client] -= 1
            if not self._n_requests_by_client[client]:
                del self._n_requests_by_client[client]

    async def get_prompt_builder(self) -> PromptBuilder:
        """Return the prompt builder; restart the engine first if it has died. Raises EdgechatError."""
        await self._ensure_engine()
        return self.prompt_builder

    async def build_prompt(self, messages: Sequence[PromptMessage], options: PromptOptions) -> BuiltPrompt:
        """Render and tokenise the messages of a conversation. Raises EdgechatError."""

        def build(cancellation: Cancellation) -> BuiltPrompt:
            return self.prompt_builder.build(apply_prompt_rules(messages, self._prompt_rules), options, cancellation)

        return await self._run(build)

    async def tokenize(self, text: str) -> list[int]:
        """Tokenise `text`, parsing the control tokens in it. Raises EdgechatError."""
        return await self._run(lambda cancellation: self.prompt_builder.tokenize_text(text, "", cancellation))

    async def tokenize_text(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokenise `text` as llama.cpp does; `protocol.Tokenize` describes the arguments. Raises EdgechatError."""
        return await self._run(
            lambda cancellation: self.prompt_builder.tokenize_text(
                text, "", cancellation, add_special=add_special, parse_special=parse_special
            )
        )

    async def detokenize(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the UTF-8 bytes of each token, which can be a part of a character. Raises EdgechatError."""
        pieces: list[bytes] = []
        for start in range(0, len(tokens), _DETOKENIZED_TOKENS):
            part = list(tokens[start : start + _DETOKENIZED_TOKENS])
            pieces += await self._run(lambda _, part=part: self._model.engine.detokenize(part))  # type: ignore[misc]
        return pieces

    async def _run(self, function: Callable[[Cancellation], T]) -> T:
        """Restart a dead engine, then run a function on a thread of this queue; cancel it if the task is cancelled.

        If the engine dies meanwhile, for example with a reply of another request, the function runs once more.
        """
        await self._ensure_engine()
        try:
            return await self._run_once(function)
        except EngineDiedError:
            await self._ensure_engine()
            return await self._run_once(function)

    async def _run_once(self, function: Callable[[Cancellation], T]) -> T:
        cancellation = Cancellation()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, cancellation)
        except asyncio.CancelledError:
            cancellation.cancel()
            raise

    def build_generate_request(
        self, tokens: list[int], params: GenerationParams, stops: Sequence[str] = (), **overrides: Any
    ) -> protocol.Generate:
        """Build the engine request for a prompt. The server's settings are the defaults for missing `params`.

        `stops` are additional stop strings; `overrides` replace computed fields of the engine request. Raises ApiError
        if a parameter has a value that is invalid for this model.
        """
        n_sequences = params.n or 1
        if n_sequences > self.max_parallel_replies:
            message = f"n: must be at most {self.max_parallel_replies} with this model, got {n_sequences}."
            raise ApiError(400, message, param="n")
        client_stops = [params.stop] if isinstance(params.stop, str) else list(params.stop or ())
        fields: dict[str, Any] = {
            "tokens": self.validate_tokens(tokens, "prompt"), "sampling": self._make_sampling(params),
            "n_sequences": n_sequences, "max_tokens": self.choose_max_tokens(params.max_tokens),
            "stop": [*client_stops, *stops], "logit_bias": self._parse_logit_bias(params),
            "ignore_eog": bool(params.ignore_eos), "stop_repetition": bool(params.stop_repetition),
            "conversation": CACHE_OWNER, "speculate": not self.settings.strict, "bypass_cache": self.settings.strict,
        } | overrides  # fmt: skip
        return protocol.Generate(id=self._model.engine.next_id(), **fields)

    def copy_request(self, request: protocol.Generate, **changes: Any) -> protocol.Generate:
        """Return a copy of a request with a new ID and other `changes`."""
        return msgspec.structs.replace(request, id=self._model.engine.next_id(), **changes)

    def end_replies(self, request: protocol.Generate, sequences: Sequence[int]) -> None:
        """End single replies of a submitted request; its other replies continue."""
        self._model.engine.cancel_sequences(request.id, sequences)

    def choose_max_tokens(self, max_tokens: int | None) -> int | None:
        """Return the length limit of a reply: the client's value or the server's setting; None for the whole context.

        A negative value from the client means no limit.
        """
        if max_tokens is None:
            return self.settings.max_tokens
        return None if max_tokens < 0 else max_tokens

    def build_embed_request(self, inputs: list[list[int]]) -> protocol.Embed:
        """Build the engine request for the embeddings of tokenised inputs."""
        return protocol.Embed(id=self._model.engine.next_id(), inputs=inputs)

    def build_rerank_request(self, query: str, documents: list[str]) -> protocol.Rerank:
        """Build the engine request for the relevance of documents to a query."""
        return protocol.Rerank(id=self._model.engine.next_id(), query=query, documents=documents)

    def validate_tokens(self, tokens: Sequence[int], param: str) -> list[int]:
        """Check the token IDs of a request and return them as a list.

        Raises ApiError if `tokens` is empty, or if a token ID is not in the vocabulary.
        """
        if not tokens:
            raise ApiError(400, f"{param}: must not be empty.", param=param)
        n_vocab, max_token_id = self.model_properties.n_vocab, max(tokens)
        if max_token_id >= n_vocab:
            message = f"{param}: token {max_token_id} is not in the vocabulary of {n_vocab} tokens."
            raise ApiError(400, message, param=param)
        return list(tokens)

    def _make_sampling(self, params: GenerationParams) -> Sampling:
        fields = {name: getattr(params, name) for name in Sampling.__struct_fields__}
        fields = {name: value for name, value in fields.items() if value is not None}
        if params.top_k is not None:
            # Clients of other servers send -1 to disable top_k.
            fields["top_k"] = min(max(0, params.top_k), self.model_properties.n_vocab)
        if params.seed is not None:
            fields["seed"] = params.seed % _N_SEEDS if params.seed >= 0 else None
        return msgspec.structs.replace(self.settings.sampling, **fields)

    def _parse_logit_bias(self, params: GenerationParams) -> dict[int, float]:
        biases = params.logit_bias or {}
        invalid_id = next((name for name in biases if not _TOKEN_ID.fullmatch(name)), None)
        if invalid_id is not None:
            raise ApiError(400, f"logit_bias: {invalid_id[:40]!r} is not a token ID.", param="logit_bias")
        bias_by_token = {int(name): value for name, value in biases.items()}
        if bias_by_token:
            self.validate_tokens(list(bias_by_token), "logit_bias")
        return bias_by_token

    async def _ensure_engine(self) -> None:
        await self._load.wait()
        if self._model.needs_restart:
            await self._load.run(self._model.restart_if_dead)
        # A thread that tokenises a prompt can have restarted the engine, too.
        if notice := self._model.take_cpu_notice():
            _log.warning("%s", notice)

    async def submit(
        self, requests: Sequence[protocol.Generate | protocol.Embed | protocol.Rerank],
        heartbeat_s: float | None = None, response_id: str = "",
    ) -> EventStream:  # fmt: skip
        """Wait for the lease, submit requests to the engine, and return the stream of their events.

        With `heartbeat_s`, the stream also has a heartbeat event at this interval. `response_id` is the id of the
        response, by which `end_thinking` finds the requests. Raises ApiError and EdgechatError.
        """
        await self._lease.acquire(self.name)
        stream = EventStream(self, requests, heartbeat_s, response_id)
        self._streams.add(stream)
        try:
            await self._ensure_engine()
            stream.plan = self.plan  # a restart can have replaced it
            check_accepts_requests(is_accepting=not self._is_stopped)
            for index, request in enumerate(requests):
                self._model.engine.submit(request, stream.make_event_handler(index))
        except BaseException:
            stream.close()
            raise
        return stream

    async def recover_from(self, error: EdgechatError, plan: LoadPlan | None) -> bool:
        """Load the model with the CPU if `error` is a GPU failure; return whether the failed request can be sent again.

        `plan` is the load plan at the time of the failed request. If several requests fail with the same plan, only the
        first failure loads the model, which ends the others.
        """
        if plan is None or not plan.options.uses_gpu or not isinstance(error, (ComputeError, EngineDiedError)):
            return False
        await self._load.wait()
        if not self._is_stopped and plan is self.plan:
            await self._load.run(functools.partial(self._fall_back_to_cpu, error))
        has_cpu_plan = self.plan is not None and not self.plan.options.uses_gpu
        return has_cpu_plan and not self._is_stopped and not self._model.needs_restart

    def _fall_back_to_cpu(self, error: EngineError) -> None:
        if self._model.fall_back_to_cpu(error):
            _log.warning("The GPU failed; replies continue on the CPU: %s", error)

    def resubmit(self, request: protocol.Request, on_outcome: OnOutcome) -> None:
        """Submit a request that failed again. Raises EngineDiedError."""
        self._model.engine.submit(request, on_outcome)

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

    def end_thinking(self, response_id: str) -> bool:
        """End the reasoning in the response with this id; return False if no such response is being generated."""
        streams = [stream for stream in self._streams if stream.response_id == response_id]
        for stream in streams:
            stream.end_thinking()
            for request_id in stream.unfinished_ids:
                self._model.engine.end_thinking(request_id)
        return bool(streams)

    def cancel_all(self) -> None:
        """Cancel all requests and refuse new requests. Responses in progress end after the text generated so far."""
        self._is_stopped = True
        for stream in self._streams:
            self._cancel(stream)
        self._model.engine.expect_end()
