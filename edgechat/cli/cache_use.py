"""Use of the prompt cache by a running engine, for `edgechat engine status` and `edgechat doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgechat.humanize import format_count

if TYPE_CHECKING:
    from edgechat.engine.generation import PromptCacheUse


def make_cache_object(use: PromptCacheUse, *, shows_text: bool = True) -> dict[str, Any]:
    """Return the use as JSON-compatible values; without `shows_text`, they contain no text of prompts."""
    return {
        "prompts": use.n_prompts, "prompt_tokens": use.prompt_tokens, "cached_tokens": use.cached_tokens,
        "last_prompt_tokens": use.last_prompt_tokens, "last_cached_tokens": use.last_cached_tokens,
        "last_miss": use.last_miss.describe(shows_text=shows_text) if use.last_miss is not None else None,
    }  # fmt: skip


def format_cache_use(cache_object: dict[str, Any]) -> list[str]:
    """Return lines for users: how many tokens were reused, and why not more of the last prompt; [] without prompts."""
    if not cache_object["prompt_tokens"]:
        return []
    n_prompts, n_tokens = format_count(cache_object["prompts"], "prompt"), cache_object["prompt_tokens"]
    percentage = 100 * cache_object["cached_tokens"] / n_tokens
    line = (
        f"prompt cache: {percentage:.0f} % of {format_count(n_tokens, 'token')} in {n_prompts} reused; last prompt: "
        f"{cache_object['last_cached_tokens']:,} of {cache_object['last_prompt_tokens']:,}"
    )
    return [line, *([cache_object["last_miss"]] if cache_object["last_miss"] else [])]
