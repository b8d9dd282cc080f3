"""Values in the messages about a Generate request: the limit of its reasoning, its logprobs and its statistics."""

from __future__ import annotations

from typing import Final

import msgspec

from edgechat.humanize import format_count

# With a smaller share of accepted drafts in a reply, the estimated time without drafts is too inexact for their gain.
_MIN_NOTICEABLE_SHARE: Final = 0.05


def are_drafts_noticeable(n_accepted: int, n_tokens: int) -> bool:
    """Return whether accepted drafts are a large enough share of a reply's tokens for their gain to be shown."""
    return n_accepted >= max(1, _MIN_NOTICEABLE_SHARE * n_tokens)


class ThinkingLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Tags of the reasoning in a reply, and the limit at which the engine ends the reasoning.

    A limit applies to all reasoning of one reply together. Without limits, only EndThinking ends the reasoning.
    """

    start_tags: tuple[str, ...]
    """Texts that start reasoning."""
    end_tags: tuple[str, ...]
    """Texts that end reasoning. The engine writes the first one."""
    text_before_end: str = ""
    """Text that the engine writes before the end tag. A beginning with which the reasoning already ends, such as white
    space, is left out."""
    text_after_end: str = ""
    """Text that the engine writes after the end tag, such as the start mark of the content."""
    is_open: bool = False
    """True if the prompt ends within the reasoning."""
    max_tokens: int | None = None
    """Maximum number of tokens of reasoning, without the text that the engine writes; None for no limit."""
    max_s: float | None = None
    """Maximum time in seconds that the reasoning takes; None for no limit."""


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Natural logprobs at one token position, computed from the logits before sampling."""

    token_bytes: bytes = msgspec.field(name="text")
    """UTF-8 bytes of the generated token, which can end within a character."""
    logprob: float
    top_logprobs: list[tuple[bytes, float]] = msgspec.field(name="top")
    """The most likely tokens and their logprobs, most likely first."""


class CacheMiss(msgspec.Struct, frozen=True, kw_only=True):
    """Why the prompt cache held less of a prompt than an earlier prompt had in common with it.

    The texts are from the prompt itself, never from the earlier one.
    """

    common_tokens: int
    """Number of tokens at the beginning of the prompt that the most similar recent prompt has, too."""
    uncached_tokens: int = 0
    """Number of these tokens that were not cached any more, or whose state the model cannot resume."""
    repeated_tokens: int = 0
    """Number of tokens after the first difference that are the same in both prompts."""
    text_before: str = ""
    """End of the text before the difference."""
    text: str = ""
    """Beginning of the text at the difference."""

    def describe(self, *, shows_text: bool = True) -> str:
        """Return one or two sentences for users; without `shows_text`, they contain no text of the prompt."""
        sentences = []
        if self.repeated_tokens:
            place = f", at {self.text!r} after {self.text_before!r}" if shows_text else ""
            sentences.append(
                f"After {format_count(self.common_tokens, 'token')}, the prompt differs from an earlier one{place}. "
                f"{self.repeated_tokens:,} later tokens are the same, but a cached prefix ends at the first difference."
            )
        if self.uncached_tokens:
            sentences.append(
                f"{format_count(self.uncached_tokens, 'token')} that an earlier prompt has, too, had left the cache, "
                "or the model cannot resume there."
            )
        return " ".join(sentences)


class PromptCacheUse(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the prompts of an engine came from the prompt cache."""

    n_prompts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    last_prompt_tokens: int = 0
    last_cached_tokens: int = 0
    last_miss: CacheMiss | None = None
    """Why more of the last prompt was not cached."""

    def add(self, stats: GenerationStats, miss: CacheMiss | None) -> PromptCacheUse:
        """Return the sum of this use and a finished request."""
        return PromptCacheUse(
            n_prompts=self.n_prompts + 1, prompt_tokens=self.prompt_tokens + stats.prompt_tokens,
            cached_tokens=self.cached_tokens + stats.cached_tokens, last_prompt_tokens=stats.prompt_tokens,
            last_cached_tokens=stats.cached_tokens, last_miss=miss,
        )  # fmt: skip


class DraftCounts(msgspec.Struct, frozen=True):
    """Numbers of drafted tokens from one source, and of those that were accepted."""

    n_drafted: int
    n_accepted: int


class DrafterState(msgspec.Struct, frozen=True, kw_only=True):
    """State of the model drafter of an engine."""

    is_open: bool
    """True if it can draft, or will be opened again for its next trial; False after an error."""
    is_asleep: bool = False
    """True if its memory was freed, because its drafts did not pay or memory was short."""
    error: str = ""
    """Why it could not be opened, or why it failed, one sentence; "" without an error."""
    draft_costs: dict[int, float] = {}
    """Measured cost of a draft by its number of tokens, relative to a step of one token; empty if not measured yet."""


class ReplyOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of another conversation of which a reply is a copy."""

    conversation_id: str
    message_id: str
    created_at_ms: int = 0
    """Time at which the model generated the text, in milliseconds since 1970; 0 if unknown."""


class GenerationStats(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts and timings of one request."""

    prompt_tokens: int
    cached_tokens: int
    """Number of prompt tokens that the prefix cache restored from live sequences, RAM and disk."""
    cached_ram_tokens: int = 0
    cached_disk_tokens: int = 0
    completion_tokens: int
    """Number of tokens of all replies, with those that an engine process generated before its GPU failed."""
    ttft_s: float
    """Time to first token, measured from the arrival of the request in the engine process."""
    prefill_tps: float
    """Prefill speed of the prompt in tokens per second, without cached tokens; 0 if no tokens were computed.

    Tokens of replies that are computed again, after a preemption or a failure of the GPU, do not count. After such a
    failure, it is the speed of the engine process that finished the request, on the CPU.
    """
    decode_tps: float
    """Decode speed in tokens per second, without the first token of each reply; 0 if no reply has a second token."""
    n_drafts: int = 0
    """Number of decode steps with drafted tokens."""
    n_drafted: int = 0
    """Number of drafted tokens."""
    n_accepted: int = 0
    """Number of drafted tokens that were accepted."""
    mean_acceptance_length: float = 1.0
    """Mean number of tokens generated per step with a draft, including the sampled token; 1.0 without drafts."""
    speculation_gain: float = 1.0
    """Estimated speed relative to decoding without drafts; 1.0 if nothing was drafted."""
    drafts_by_source: dict[str, DraftCounts] | msgspec.UnsetType = msgspec.UNSET
    """Drafted tokens by source, one of `edgechat.speculation.drafter.SOURCE_NAMES`; unset without drafts."""
    mean_logprob: float | msgspec.UnsetType = msgspec.UNSET
    """Mean natural logprob of the tokens of a reply that was picked from several, or that a route checked."""
    pick: str | msgspec.UnsetType = msgspec.UNSET
    """How the reply was picked from several, such as "4 of 5 agree"."""
    route: str | msgspec.UnsetType = msgspec.UNSET
    """Why a route chose this model, such as "escalated: mean log probability -1.20 below -0.80"."""
    reasoning_tokens: int | msgspec.UnsetType = msgspec.UNSET
    """Number of tokens of reasoning in `completion_tokens`; unset without reasoning, or if its format is unknown."""
    context_hash: str | msgspec.UnsetType = msgspec.UNSET
    """Hash of the system prompt and of the grammar of a saved reply, "" without either; unset in older replies."""
    origin: ReplyOrigin | msgspec.UnsetType = msgspec.UNSET
    """Reply of which a saved reply is a copy; unset for replies that were generated."""
    is_disturbed: bool | msgspec.UnsetType = msgspec.UNSET
    """True if other programs or a pause lowered the speeds, which then do not represent the machine."""
    repeats_itself: bool | msgspec.UnsetType = msgspec.UNSET
    """True for a saved reply that was stopped because it repeated itself. Its finish reason is saved as "length", which
    earlier versions can read."""
    is_remote: bool | msgspec.UnsetType = msgspec.UNSET
    """True for a reply of a remote model: the counts are the server's, the times include the network, and 0 cached
    tokens can also mean that the server does not report them."""
