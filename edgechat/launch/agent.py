"""Description of a coding agent: what it needs of a model, and the settings that connect it to a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

KEY_VARIABLE: Final = "EDGECHAT_API_KEY"
"""Environment variable in which agents, and `edgechat serve`, find the API key."""
REQUEST_TIMEOUT_S: Final = 3600
"""Time limit for one request. The first prompt of an agent can take many minutes on a slow machine."""
UNUSED_KEY: Final = "none"
"""API key for a server without one, which ignores it. Agents refuse to start with an empty key."""
_MIN_OUTPUT_TOKENS: Final = 1024
_MAX_OUTPUT_TOKENS: Final = 8192


class Endpoint(msgspec.Struct, frozen=True):
    """Served model to which an agent connects."""

    address: str
    """Address of the server without a path, such as `http://127.0.0.1:8080`."""
    api_key: str
    model: str
    """Name of the model in the API."""
    n_ctx: int
    """Longest context in tokens that the server offers."""
    has_native_tools: bool = True
    """Whether the chat template of the model describes tools. If not, the system prompt explains them."""

    @property
    def openai_url(self) -> str:
        """Base URL of the OpenAI API."""
        return f"{self.address}/v1"

    @property
    def max_output_tokens(self) -> int:
        """Length limit of one reply: an eighth of the context, from 1,024 to 8,192 tokens."""
        return max(_MIN_OUTPUT_TOKENS, min(_MAX_OUTPUT_TOKENS, self.n_ctx // 8))


class AgentSettings(msgspec.Struct, frozen=True):
    """Settings that connect an agent to a server for one run. The user's own files are not part of it."""

    variables: Mapping[str, str] = {}
    """Environment variables to set."""
    removed_variables: tuple[str, ...] = ()
    """Environment variables to remove, because they would direct the agent to another service."""
    arguments: tuple[str, ...] = ()
    """Arguments before those of the user."""
    files: Mapping[str, str] = {}
    """Texts of files in a temporary folder, by name."""


class Agent(msgspec.Struct, frozen=True):
    """Coding agent that edgechat can start."""

    name: str
    """Name on edgechat's command line, and of the agent's program."""
    title: str
    min_n_ctx: int
    """Context length in tokens below which the first request of the agent does not fit."""
    usual_n_ctx: int
    """Context length in tokens from which a task of a few steps fits without summarising the conversation."""
    install_hint: str
    """How to install the agent: a command, and the page that describes it."""
    make_settings: Callable[[Endpoint, Path], AgentSettings]
    """Return the settings for a served model. The files of the settings will be in the given folder."""
    uses_tools: bool = True
    """Whether the agent sends tools. Agents that read edits from the text of replies send none."""
    extra_folders: tuple[str, ...] = ()
    """Folders of the agent's own installer that may be missing in PATH; `~` is the home directory."""
