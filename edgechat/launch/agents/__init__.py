"""The coding agents that `edgechat launch` starts, one module for each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from edgechat.launch.agent import Agent
from edgechat.launch.agents import aider, claude, codex, crush, goose, opencode

AGENTS: Final[Mapping[str, Agent]] = MappingProxyType(
    {agent.name: agent for agent in (aider.AGENT, claude.AGENT, codex.AGENT, crush.AGENT, goose.AGENT, opencode.AGENT)}
)
"""All agents by name, in alphabetical order."""
