"""Explanation of cache misses: why an earlier prompt had more of the same tokens than the prompt cache."""

from __future__ import annotations

from typing import Final

from edgechat.engine.generation import CacheMiss
from edgechat.engine.protocol import Event, RequestFinished
from edgechat.engine.request import ActiveRequest
from edgechat.prefix.recent_prompts import RecentPrompts
from edgechat.runtime.model import Model

# Fewer tokens are processed in a moment, and the ends of prompts differ often.
_MIN_TOKENS: Final = 64
# Number of tokens before and after a difference whose text a report shows, and the maximum length of each text.
_EXCERPT_TOKENS: Final = 16
_MAX_EXCERPT_CHARS: Final = 60


class CacheMissFinder:
    """Compares each prompt of a model with the prompts that had been processed when it arrived."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._recent_prompts = RecentPrompts()
        self._prompts_at_arrival: dict[int, RecentPrompts] = {}
        """The prompts with which the prompt of a request is compared, by the id of the request."""

    def add(self, request: ActiveRequest) -> None:
        """Remember which prompts had been processed when `request` arrived."""
        self._prompts_at_arrival[request.params.id] = self._recent_prompts.copy()

    def find(self, request: ActiveRequest, event: Event) -> CacheMiss | None:
        """Return why more of the prompt of an ended request was not cached; None if nothing is to be explained.

        Requests that bypass the prompt cache are left out, and so are prompts that were not processed to their end.
        """
        params, prompt = request.params, request.prompt
        recent_prompts = self._prompts_at_arrival.pop(params.id, None)
        is_left_out = params.bypass_cache or params.ephemeral or params.prompt_logprobs or not request.sequences
        if is_left_out or not isinstance(event, RequestFinished):
            return None
        self._recent_prompts.add(prompt)
        n_cached = event.stats.cached_tokens
        if recent_prompts is None or len(prompt) - n_cached < _MIN_TOKENS:
            return None
        difference = recent_prompts.compare(prompt)
        n_common = difference.n_common
        n_uncached = min(n_common, len(prompt) - 1) - n_cached
        # A longer cached prefix is from another prompt than the compared one.
        has_difference = n_cached <= n_common and difference.n_repeated >= _MIN_TOKENS
        if not has_difference and n_uncached < _MIN_TOKENS:
            return None
        return CacheMiss(
            common_tokens=n_common,
            uncached_tokens=n_uncached if n_uncached >= _MIN_TOKENS else 0,
            repeated_tokens=difference.n_repeated if has_difference else 0,
            text_before=self._decode(prompt[max(0, n_common - _EXCERPT_TOKENS) : n_common])[-_MAX_EXCERPT_CHARS:],
            text=self._decode(prompt[n_common : n_common + _EXCERPT_TOKENS])[:_MAX_EXCERPT_CHARS],
        )

    def _decode(self, tokens: list[int]) -> str:
        return b"".join(self._model.token_to_piece(t, special=True) for t in tokens).decode("utf-8", "replace")
