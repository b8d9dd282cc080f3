"""Checks whether a served model suits an agent: context length and tool calls."""

from __future__ import annotations

from edgechat.errors import ContextOverflowError
from edgechat.launch.agent import Agent, Endpoint


def check_context(agent: Agent, model: str, n_ctx: int, *, is_running: bool = False) -> None:
    """Raise ContextOverflowError if the first request of the agent does not fit in a context of `n_ctx` tokens.

    `is_running` is True for a server that was started before, whose context `edgechat launch` cannot change.
    """
    if n_ctx < agent.min_n_ctx:
        advice = (
            "Start that `edgechat serve` with a longer --ctx, or with a model that has a longer context"
            if is_running
            else "Choose a model with a longer context (`edgechat models`), or a longer --ctx"
        )
        raise ContextOverflowError(
            f"{agent.title} needs a context of at least {agent.min_n_ctx:,} tokens for its first request, and {model} "
            f"offers {n_ctx:,}. {advice}; --force starts the agent anyway."
        )


def list_warnings(agent: Agent, endpoint: Endpoint) -> list[str]:
    """Return one sentence for each property of the model that limits the agent."""
    warnings = []
    if endpoint.n_ctx < agent.min_n_ctx:
        warnings.append(
            f"The context of {endpoint.n_ctx:,} tokens is shorter than the {agent.min_n_ctx:,} tokens that the first "
            f"request of {agent.title} needs: expect errors."
        )
    elif endpoint.n_ctx < agent.usual_n_ctx:
        warnings.append(
            f"The context of {endpoint.n_ctx:,} tokens is short for {agent.title}, which works best with "
            f"{agent.usual_n_ctx:,}: it will often summarise the conversation."
        )
    if agent.uses_tools and not endpoint.has_native_tools:
        warnings.append(
            f"The chat template of {endpoint.model} has no tools: the system prompt explains them, and the model may "
            "call them wrongly or not at all."
        )
    return warnings
