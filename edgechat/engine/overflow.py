"""Messages about a context that is too short: the error for a prompt, and the notice that the context cannot grow."""

from __future__ import annotations

from edgechat.engine.protocol import ContextGrowthRefused
from edgechat.errors import ContextOverflowError
from edgechat.humanize import format_count, format_size


def make_overflow_error(subject: str, n_ctx: int, n_ctx_train: int, remedy: str = "Shorten it") -> ContextOverflowError:
    """Return the error for a prompt that does not fit in a context of `n_ctx` tokens.

    `subject` begins the message, such as "The prompt has 5,000 tokens". `n_ctx_train` is the context length that the
    model was trained with, 0 if it is unknown; beyond that length, replies get worse.
    """
    trained_length = format_count(n_ctx_train, "token")
    if 0 < n_ctx_train <= n_ctx:
        length = "as many" if n_ctx == n_ctx_train else trained_length
        advice = f"{remedy}: the model was trained with {length}, so replies get worse with a larger context (--ctx)."
    else:
        limit_text = f" (the model was trained with {trained_length})" if n_ctx_train else ""
        advice = f"{remedy}, or set a larger context with --ctx, if memory allows{limit_text}."
    return ContextOverflowError(f"{subject}, but the context holds {format_count(n_ctx, 'token')}. {advice}")


def make_prompt_overflow_error(n_tokens: int, n_ctx: int, n_ctx_train: int) -> ContextOverflowError:
    """Return the error for a prompt of `n_tokens` tokens that does not fit in a context of `n_ctx` tokens."""
    return make_overflow_error(f"The prompt has {format_count(n_tokens, 'token')}", n_ctx, n_ctx_train)


def make_refused_overflow_error(n_tokens: int, refusal: ContextGrowthRefused) -> ContextOverflowError:
    """Return the error for a prompt of `n_tokens` tokens that does not fit because the context cannot grow."""
    return ContextOverflowError(
        f"The prompt has {format_count(n_tokens, 'token')}, but the context holds "
        f"{format_count(refusal.n_ctx, 'token')}. {_describe_refusal(refusal)} Shorten the prompt, or close other "
        "programs and send it again."
    )


def format_growth_refusal(event: ContextGrowthRefused) -> str:
    """Return the notice that the context cannot grow."""
    advice = "" if event.error else " Close other programs."
    return f"The context stays at {format_count(event.n_ctx, 'token')}. {_describe_refusal(event)}{advice}"


def _describe_refusal(event: ContextGrowthRefused) -> str:
    length = format_count(event.refused_n_ctx, "token")
    if event.error:
        return f"Growing it to {length} failed ({event.error})."
    return (
        f"Growing it to {length} needs {format_size(event.needed_bytes)} of free memory, but only "
        f"{format_size(event.available_bytes)} is free."
    )
