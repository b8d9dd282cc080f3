"""The error about a prompt that is longer than the context."""

from __future__ import annotations

import pytest

from edgechat.engine.overflow import make_overflow_error


@pytest.mark.parametrize(
    ("n_ctx", "n_ctx_train", "advice"),
    [
        (512, 8192, "or set a larger context with --ctx, if memory allows (the model was trained with 8,192 tokens)."),
        (8192, 8192, "the model was trained with as many, so replies get worse with a larger context (--ctx)."),
        (9000, 8192, "the model was trained with 8,192 tokens, so replies get worse with a larger context (--ctx)."),
        (512, 0, "Shorten it, or set a larger context with --ctx, if memory allows."),
    ],
)
def test_larger_context_is_recommended_only_up_to_the_length_of_the_training(
    n_ctx: int, n_ctx_train: int, advice: str
) -> None:
    error = make_overflow_error("The prompt has 9,999 tokens", n_ctx, n_ctx_train)
    assert str(error).startswith(f"The prompt has 9,999 tokens, but the context holds {n_ctx:,} tokens. Shorten it")
    assert str(error).endswith(advice)
