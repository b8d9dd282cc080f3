"""Messages between a client and its engine process: the client sends requests, and the engine sends events.

A message is a msgpack object with the name of its class in `type` (frames.py encodes it). Each request has an `id`.
All events of a request carry its id, and the last event is one of `FINAL_EVENTS`.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from edgechat.config import Sampling
from edgechat.engine.generation import (
    CacheMiss,
    DrafterState,
    GenerationStats,
    PromptCacheUse,
    ThinkingLimit,
    TokenLogprobs,
)
from edgechat.hardware.gpu import Gpu
from edgechat.planner.drafter_plan import DrafterKind
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.mapped_file import FileRange
from edgechat.planner.memory import LoadOptions
from edgechat.planner.requantize import QuantModel
from edgechat.planner.throughput import KernelSpeeds
from edgechat.prefix.shared_prefix import SharedPrefix
from edgechat.runtime.tool_grammar import ToolGrammar


class Request(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base class of requests."""

    id: int


class Load(Request, frozen=True):
    """Unload the current model, load a new model and create its context.

    Progress events: BackendTesting, BackendChosen, LoadProgressed.
    """

    plan: LoadPlan
    prefix_dir: str = ""
    """Directory of the prefix cache on disk; "" disables the disk tier."""
    unused_ranges: tuple[FileRange, ...] = ()
    """Byte ranges of the mapped model files that are not needed in memory after the load."""


class ProbeMemory(Request, frozen=True):
    """Measure the sizes of llama.cpp's buffers without loading weights.

    Progress events: BackendTesting, BackendChosen.
    """

    model_path: str
    """Path of a model file. Only the header is read, so the download of the file may be incomplete."""
    options: LoadOptions
    devices: list[str] = []
    """GPUs on which the model may be placed, as llama.cpp names them; without names, those of the last such request."""


class ListDevices(Request, frozen=True):
    """List the usable GPUs and the measured kernel speeds of the backend.

    Progress events: BackendTesting, BackendChosen.
    """

    benchmark: bool = False
    """Whether to run the kernel benchmark (a few seconds) if no result is saved."""
    remeasure: bool = False
    """Whether to run the kernel benchmark even if a result is saved; requires `benchmark`."""
    model_path: str = ""
    """Model that is about to be loaded; a GPU on which the engine crashed repeatedly with it is not listed."""
    n_weights: dict[int, int] = {}
    """Number of weights of the model by type, as ggml's number. A GPU must compute these types correctly, and be faster
    than the CPU with them, to be listed."""
    n_bytes: int = 0
    """GPU memory that the model would take if all of it was on the GPU; a test allocates it."""
    drafter_types: list[int] = []
    """Weight types of the model drafter, as ggml's numbers, which are tested after those of the model. They decide only
    whether the drafter may be placed on a GPU (`gpu_probe.find_type_problem`)."""


class ListQuantTypes(Request, frozen=True):
    """List the ggml type that llama.cpp would give each tensor under a quantisation preset."""

    model: QuantModel
    preset: int


class Embed(Request, frozen=True):
    """Compute embeddings with an embedding model."""

    inputs: list[list[int]]
    """Texts to embed, each as a list of tokens."""


class Rerank(Request, frozen=True):
    """Compute how relevant documents are to a query, with a reranker."""

    query: str
    documents: list[str]


class Tokenize(Request, frozen=True):
    """Tokenise a text in the same way as a prompt."""

    text: str
    guard: str = ""
    """Guard character of the renderer; see `Generate.guard`."""
    max_tokens: int | None = None
    """Maximum number of tokens; the request fails with a ContextOverflowError as soon as the text has more."""
    add_special: bool | None = None
    """Whether to add the tokens that mark the start and the end of a text, if the model uses such tokens. None for the
    model's default: only the start of a prompt is marked, and both ends of a text that is embedded."""
    parse_special: bool | None = None
    """Whether the text of a control token becomes that token. None for the model's default: only in prompts."""


class Detokenize(Request, frozen=True):
    """Convert tokens to text."""

    tokens: list[int]


FinishReason = Literal["stop", "length", "repetition", "cancelled"]
"""Reason why a reply ended: the model or a stop string ended it, it reached a length limit, it repeated itself
(`Generate.stop_repetition`), or its request was cancelled."""


class ResumedReply(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process that failed had generated and sent of one reply."""

    tokens: list[int] = []
    n_chars: int = 0
    """Number of characters of text; the text of the tokens can be longer, because stop strings are held back."""
    finish_reason: FinishReason | None = None
    """Finish reason of a reply that had ended; None for a reply that another engine process continues."""
    logprob_sum: float = 0.0
    """Last `TokensGenerated.logprob_sum` of the reply."""
    thinking_s: float = 0.0
    """Last `TokensGenerated.thinking_s` of the reply."""
    completion_tokens: int = 0
    """Number of tokens of a reply that had ended, with the token that ended it, which is not in `tokens`."""


class Generate(Request, frozen=True):
    """Generate replies to a prompt, which is either rendered text (`text`) or tokens (`tokens`)."""

    text: str = ""
    guard: str = ""
    """Character that the renderer inserts where user text contains the text of a control token; "" if none was needed.
    The engine removes the character and tokenises the user text as plain text."""
    tokens: list[int] | None = None
    max_tokens: int | None = None
    forced_tokens: list[int] | None = None
    """Tokens to generate instead of the sampled tokens (for benchmarks)."""
    ignore_eog: bool = False
    """Whether to continue after an end-of-generation token (for benchmarks)."""
    sampling: Sampling = Sampling()
    visible_control_tokens: list[str] = []
    """Control tokens whose text is part of the output, such as the markers around reasoning."""
    n_sequences: int = 1
    """Number of replies to generate in parallel from the same prompt."""
    stop: list[str] = []
    """Stop strings; the output ends before the first stop string that appears."""
    grammars: list[str | ToolGrammar] = []
    """Grammars for the output. The first one that can be compiled applies; an empty list allows any text. A text has
    the syntax of `edgechat.runtime.grammar`."""
    logit_bias: dict[int, float] = {}
    """Value to add to the logit of each listed token."""
    n_logprobs: int | None = None
    """Number of most likely tokens to return with their logprobs at each position; None for no logprobs."""
    mean_logprob: bool = False
    """Whether to report the mean logprob of each reply in SequenceFinished, which a single reply then has, too."""
    prompt_logprobs: bool = False
    """Whether to report the logprobs of the prompt's tokens, too; requires `n_logprobs`. The whole prompt is then
    computed, and not added to the prefix cache."""
    conversation: str = ""
    """Id of the conversation to which saved prefixes and draft texts belong; "" if nothing may be saved on disk."""
    shared_prefix: SharedPrefix | None = None
    """The beginning of the prompt that other conversations have, too, and for which prefixes are saved separately."""
    turn_starts: list[int] = []
    """Token positions at which turns of the conversation start, and at which later prompts can diverge. If the context
    cannot be truncated, its state is saved at these positions."""
    bypass_cache: bool = False
    """Whether to compute the whole prompt without the prefix cache (for benchmarks and strict mode)."""
    speculate: bool = True
    """Whether to use speculative decoding, if the engine supports it for the loaded model."""
    attached_texts: list[str] = []
    """Texts of the attached files in the prompt, to be added to the draft corpus for later replies."""
    stop_repetition: bool = False
    """Whether to end reasoning that repeats the same passage over and over, or a reply if no grammar restricts it."""
    ephemeral: bool = False
    """Whether to leave the live sequences unchanged and save nothing, for example for a title request."""
    thinking: ThinkingLimit | None = None
    """Tags and limit of the reasoning; None if the model does not reason, or its format is unknown."""
    is_thinking_ended: bool = False
    """Whether to end the reasoning in all replies, now and later, as EndThinking does."""
    resumed: list[ResumedReply] = []
    """Beginnings of all replies of the request, which continue after them; empty for new replies. Their tokens count
    for `max_tokens`, grammars, penalties and stop strings, but they and their text are not sent again."""
    n_sent_prompt_logprobs: int = 0
    """Number of prompt tokens whose logprobs are not sent again."""


class Cancel(Request, frozen=True):
    """Cancel the request with the id `target_id`, which then ends with its usual final event.

    The Cancel request itself has no event.
    """

    target_id: int = msgspec.field(name="target")


class CancelSequences(Request, frozen=True):
    """End the replies with the indexes `sequences` of the Generate request `target_id`; its other replies continue.

    Replies that have ended or have no token yet are unchanged. The CancelSequences request itself has no event.
    """

    target_id: int
    sequences: list[int]


class EndThinking(Request, frozen=True):
    """End the reasoning in all replies of the request `target_id`, now and later; ignored if it has finished.

    The EndThinking request itself has no event.
    """

    target_id: int = msgspec.field(name="target")


class ClientInfo(msgspec.Struct, frozen=True):
    """A client of a resident engine."""

    name: str
    """Command of the client, such as "chat" or "ask"."""
    pid: int
    n_requests: int = 0
    """Number of its requests that have not ended."""


class Attach(Request, frozen=True):
    """Attach to a resident engine: it remains as long as the connection, and `keep_alive_s` longer."""

    client: ClientInfo
    keep_alive_s: float
    """Seconds for which the model stays in memory after the last client; negative: for ever."""


class GetStatus(Request, frozen=True):
    """Report the clients and the model of a resident engine, also while a reply is being generated."""


class Stats(Request, frozen=True):
    """Report the loaded model, its memory use and its step costs."""


class Shutdown(Request, frozen=True):
    """Free all resources and exit the engine process. Shutdown has no event."""

    if_unused: bool = False
    """Whether to do nothing while clients use the engine."""


class Event(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base class of events."""

    id: int


class Heartbeat(Event, frozen=True):
    """Sign of life of the engine process, sent every second while requests are in progress; the id is 0."""

    n_clients: int = 1


class BackendTesting(Event, frozen=True):
    """A backend self-test is running; it takes about a second, once per machine."""

    message: str


class BackendChosen(Event, frozen=True):
    """The engine chose a backend module; the client attributes later crashes to this module."""

    backend: str


class LoadProgressed(Event, frozen=True):
    """Progress of Load: fraction of the weights that has been loaded, from 0 to 1."""

    fraction: float


class FimTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a vocabulary that mark the parts of a prompt for infilling (fill-in-the-middle)."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None = None
    """Token before the name of the repository; None if the vocabulary has none."""
    separator: int | None = None
    """Token before the name of each file; None if the vocabulary has none."""
    bos_tokens: list[int] = []
    """Tokens that mark the start of a prompt."""


class Loaded(Event, frozen=True):
    """The model is loaded and ready."""

    backend: str
    n_ctx: int
    """Largest length that the context can have, in tokens."""
    n_ctx_train: int
    n_threads: int
    n_params: int
    n_vocab: int
    size_bytes: int
    chat_template: str | None
    bos: str
    eos: str
    control_tokens: list[str]
    """Texts of the control tokens, longest first; user text must never be tokenised to one of them."""
    can_truncate: bool
    """True if a sequence can be truncated at any position. Otherwise it can continue only at its end or at a saved
    state, and requests should set `Generate.turn_starts`."""
    load_s: float
    is_embedding: bool = False
    """True for an embedding model and for a reranker."""
    n_labels: int = 0
    """Number of outputs of a reranker's classifier; 0 for another model."""
    n_embd: int = 0
    """Number of dimensions of the model's embeddings; 0 for a text model and for a reranker."""
    fim_tokens: FimTokens | None = None
    """Tokens for infilling; None if the vocabulary has none."""
    max_draft: int = 0
    """Maximum number of drafted tokens per step; 0 disables speculative decoding."""
    drafter: DrafterKind | None = None
    """Kind of the open model drafter; None if only texts are searched for drafts."""
    drafter_error: str = ""
    """Why the planned model drafter could not be opened, one sentence; the model works without it."""


class MemoryProbed(Event, frozen=True):
    """Result of ProbeMemory: bytes by ggml buffer type, split into model, context and compute."""

    backend: str
    memory: dict[str, dict[str, int]]


class DevicesListed(Event, frozen=True):
    """Result of ListDevices: the backend, its usable GPUs and its kernel speeds."""

    backend: str
    gpus: list[Gpu]
    speeds: KernelSpeeds | None
    """Result of the kernel benchmark; None before its first run."""
    problems: list[str] = []
    """Error messages, one for each GPU that cannot be used."""
    slow_gpus: list[str] = []
    """Reasons, one for each GPU that works but is not used because the CPU is faster."""


class QuantTypesListed(Event, frozen=True):
    """Result of ListQuantTypes: ggml type numbers in tensor order; empty if llama.cpp cannot quantise the model."""

    ggml_types: list[int] = msgspec.field(name="types")


class EmbeddingsComputed(Event, frozen=True, tag="Embedded"):
    """Result of Embed: one unit vector per input."""

    embeddings: list[list[float]]


class Reranked(Event, frozen=True):
    """Result of Rerank: one score per document, and the number of tokens of all pairs.

    A score is the first output of the model's classifier.
    """

    scores: list[float]
    n_tokens: int
    are_probabilities: bool = False
    """True if the model applies the softmax function to its outputs, as Qwen3-Reranker does; otherwise the scores are
    logits."""


class Tokenized(Event, frozen=True):
    """Result of Tokenize: all tokens, including special tokens."""

    tokens: list[int]


class Detokenized(Event, frozen=True):
    """Result of Detokenize: the UTF-8 bytes of each token, which can be a part of a character."""

    pieces: list[bytes]


class PrefillProgressed(Event, frozen=True):
    """Prefill progress of a request, in prompt tokens. The first event is sent after the cached prefix was restored."""

    done_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    """Number of tokens that the prefix cache restored; they are part of `done_tokens`."""


class ContextResizing(Event, frozen=True):
    """The request waits while the context grows or shrinks, which takes more than a second."""

    n_ctx: int
    """New length of the context, in tokens."""
    is_growing: bool = True


class ContextResizeStarted(Event, frozen=True):
    """The context begins to grow or shrink; the id is 0. If memory then runs out, the client knows the new length."""

    n_ctx: int
    """New length of the context, in tokens."""


class ContextGrowthRefused(Event, frozen=True):
    """The context cannot grow, although the request needs more cells. The request may end early or have to wait."""

    n_ctx: int
    """Length of the context, in tokens."""
    refused_n_ctx: int
    """Length that the request needs."""
    needed_bytes: int
    """Memory that must be free to resize the context, including a copy of the sequences and a margin."""
    available_bytes: int
    error: str = ""
    """Error of a failed attempt to grow; "" if growth was not attempted, because memory is short."""

    def replace_id(self, request_id: int) -> ContextGrowthRefused:
        """Return this event for another request."""
        return msgspec.structs.replace(self, id=request_id)


class PromptLogprobs(Event, frozen=True):
    """Logprobs of the next tokens of the prompt. The first token of the prompt has a logprob of 0."""

    logprobs: list[TokenLogprobs]


class TokensGenerated(Event, frozen=True):
    """Newly generated text and tokens of one reply; the text contains only complete characters."""

    text: str
    tokens: list[int]
    sequence: int = 0
    """Index of the reply, from 0 to `Generate.n_sequences` - 1."""
    logprobs: list[TokenLogprobs] = []
    """Logprobs of `tokens`, one item per token; empty if `Generate.n_logprobs` is None."""
    draft_gain: float = 1.0
    """Estimated speed of the reply so far, relative to decoding without drafts; 1.0 without drafts."""
    draft_source: str = ""
    """Source of most of the accepted draft tokens so far, one of `edgechat.speculation.drafter.SOURCE_NAMES`; "" if
    they are not a noticeable share of the reply."""
    logprob_sum: float = 0.0
    """Sum of the logprobs of the reply's tokens so far; 0 if `Generate.mean_logprob` is False."""
    thinking_s: float = 0.0
    """Time in seconds that the reasoning of the reply has taken so far; 0 without reasoning."""


class SequenceFinished(Event, frozen=True):
    """One reply of a request with several parallel replies, or with `Generate.mean_logprob`, has ended."""

    sequence: int
    finish_reason: FinishReason
    completion_tokens: int
    mean_logprob: float | None = None
    """Mean natural logprob of the reply's tokens before sampling, without the token that ends it; None if
    `Generate.mean_logprob` is False or the reply has no token."""
    stop_string: str = ""
    """The stop string that ended the reply; "" if none did."""


class RequestFinished(Event, frozen=True):
    """A Generate request has ended: each reply has met a stop condition, reached a length limit or been cancelled."""

    finish_reason: FinishReason
    """Finish reason of the first reply."""
    stats: GenerationStats
    """Statistics over all replies of the request."""
    context_tokens: int
    """Number of tokens in the context at the end of the first reply."""
    peak_n_ctx: int = 0
    """Largest length that the context has had since the load, in tokens; 0 if it is unknown."""
    stop_string: str = ""
    """The stop string that ended the first reply; "" if none did."""
    cache_miss: CacheMiss | None = None
    """Why more of the prompt was not cached; None if nothing is to be explained."""
    drafter: DrafterState | None = None
    """State of the model drafter after the request; None if the plan has none."""


class EngineStats(Event, frozen=True):
    """Result of Stats: the loaded model, its memory use and its step costs."""

    backend: str
    model: str
    n_ctx: int
    """Largest length that the context can have, in tokens."""
    context_tokens: int
    peak_rss_bytes: int
    memory: dict[str, dict[str, int]]
    """Bytes by ggml buffer type, split into model, context and compute."""
    step_costs: dict[int, float] = {}
    """Measured cost of a decode step at the current depth, by its number of tokens; a step of one token costs 1."""
    drafter: DrafterState | None = None
    """State of the model drafter; None if the plan has none."""
    current_n_ctx: int = 0
    """Length that the context has now, in tokens."""


class Attached(Event, frozen=True):
    """Result of Attach: the model that is loaded already, if there is one."""

    load: Load | None = None
    """Request that loaded the model."""
    loaded: Loaded | None = None
    """Result of that request."""


class EngineStatus(Event, frozen=True):
    """Result of GetStatus."""

    load: Load | None
    loaded: Loaded | None
    clients: list[ClientInfo]
    idle_s: float
    """Seconds since the last request or the last client ended; 0 while a request has not ended."""
    keep_alive_s: float
    decode_tps: float | None
    """Decode speed of the last reply, in tokens per second; None before the first one."""
    cache_use: PromptCacheUse = PromptCacheUse()
    drafter: DrafterState | None = None
    """State of the model drafter after the last request; None before the first one, or if the plan has none."""


class RequestFailed(Event, frozen=True):
    """The request failed, but the engine process keeps running. After a failed Load no model is loaded."""

    error_type: str
    """Name of the exception class in `edgechat.errors`."""
    message: str


AnyRequest = (
    Load | ProbeMemory | ListDevices | ListQuantTypes | Embed | Rerank | Tokenize | Detokenize | Generate | Cancel
    | CancelSequences | EndThinking | Attach | GetStatus | Stats | Shutdown
)  # fmt: skip
AnyEvent = (
    Heartbeat | BackendTesting | BackendChosen | LoadProgressed | Loaded | MemoryProbed | DevicesListed
    | QuantTypesListed | EmbeddingsComputed | Reranked | Tokenized | Detokenized | PrefillProgressed
    | ContextResizing | ContextResizeStarted | ContextGrowthRefused
    | PromptLogprobs | TokensGenerated | SequenceFinished | RequestFinished | EngineStats
    | Attached | EngineStatus | RequestFailed
)  # fmt: skip
TARGETED_REQUESTS: Final = (Cancel, CancelSequences, EndThinking)
"""Requests about another request, which have no event."""
FINAL_EVENTS: Final = (
    Loaded, MemoryProbed, DevicesListed, QuantTypesListed, EmbeddingsComputed, Reranked, Tokenized, Detokenized,
    RequestFinished, EngineStats, Attached, EngineStatus, RequestFailed,
)  # fmt: skip
