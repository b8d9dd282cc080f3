"""Checks of the model for an agent."""

from __future__ import annotations

import pytest

from edgechat.errors import ContextOverflowError
from edgechat.launch.agent import Endpoint
from edgechat.launch.agents import AGENTS
from edgechat.launch.checks import check_context, list_warnings

CLAUDE, AIDER = AGENTS["claude"], AGENTS["aider"]


def make_endpoint(n_ctx: int, *, has_native_tools: bool = True) -> Endpoint:
    return Endpoint("http://127.0.0.1:1", "key", "small", n_ctx, has_native_tools)


def test_context_that_is_too_short_is_an_error_with_both_lengths() -> None:
    with pytest.raises(ContextOverflowError, match=f"at least {CLAUDE.min_n_ctx:,} tokens .* small offers 8,192"):
        check_context(CLAUDE, "small", 8192)
    check_context(CLAUDE, "small", CLAUDE.min_n_ctx)


def test_advice_for_a_running_server_is_about_its_start() -> None:
    with pytest.raises(ContextOverflowError, match=r"Start that `edgechat serve` with a longer --ctx"):
        check_context(CLAUDE, "small", 8192, is_running=True)


def test_short_context_is_a_warning() -> None:
    [warning] = list_warnings(CLAUDE, make_endpoint(CLAUDE.min_n_ctx))
    assert f"{CLAUDE.usual_n_ctx:,}" in warning
    [forced_warning] = list_warnings(CLAUDE, make_endpoint(8192))
    assert "expect errors" in forced_warning


def test_long_context_and_native_tools_give_no_warning() -> None:
    assert list_warnings(CLAUDE, make_endpoint(CLAUDE.usual_n_ctx)) == []


def test_template_without_tools_is_a_warning_for_agents_with_tools_only() -> None:
    [warning] = list_warnings(CLAUDE, make_endpoint(200_000, has_native_tools=False))
    assert "The chat template of small has no tools" in warning
    assert list_warnings(AIDER, make_endpoint(200_000, has_native_tools=False)) == []
