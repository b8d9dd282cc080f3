"""Values in the messages about a Generate request: the limit of its reasoning, its logprobs and its statistics."""

from __future__ import annotations

import msgspec


class ThinkingLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Tags of the reasoning in a reply, and the limit at which the engine ends the reasoning.

    A limit applies to all reasoning of one reply together. Without limits, only EndThinking ends the reasoning.
    """

    start_tags: tuple[str, ...]
    """Texts that start reasoning."""
    end_tags: tuple[str, ...]
    """Texts that end reasoning. The engine writes the first one."""
    text_before_end: str = ""
    """Text that the engine writes before the end tag. White space with which the reasoning already ends is left out."""
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


class GenerationStats(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts and timings of one request."""

    prompt_tokens: int
    cached_tokens: int
    """Number of prompt tokens that the prefix cache restored from live sequences, RAM and disk."""
    cached_ram_tokens: int = 0
    cached_disk_tokens: int = 0
    completion_tokens: int
    ttft_s: float
    """Time to first token, measured from the arrival of the request in the engine process."""
    prefill_tps: float
    """Prefill speed in tokens per second, without cached tokens; 0 if no tokens were computed."""
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
    mean_logprob: float | msgspec.UnsetType = msgspec.UNSET
    """Mean natural logprob of the tokens of a reply that was generated to pick one of several replies."""
    pick: str | msgspec.UnsetType = msgspec.UNSET
    """How the reply was picked from several, such as "4 of 5 agree"."""
    reasoning_tokens: int | msgspec.UnsetType = msgspec.UNSET
    """Number of tokens of reasoning in `completion_tokens`; unset without reasoning, or if its format is unknown."""
    is_disturbed: bool | msgspec.UnsetType = msgspec.UNSET
    """True if other programs or a pause lowered the speeds, which then do not represent the machine."""
    repeats_itself: bool | msgspec.UnsetType = msgspec.UNSET
    """True for a saved reply that was stopped because it repeated itself. Its finish reason is saved as "length", which
    earlier versions can read."""
