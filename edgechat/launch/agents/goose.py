"""Settings of goose, which sends requests to the chat completions of the OpenAI API.

Variables: https://github.com/block/goose/blob/main/documentation/docs/guides/environment-variables.md and
https://block.github.io/goose/docs/getting-started/providers. `OPENAI_HOST` in the environment overrides
`OPENAI_BASE_URL` and the user's `config.yaml`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgechat.launch.agent import REQUEST_TIMEOUT_S, Agent, AgentSettings, Endpoint


def make_settings(endpoint: Endpoint, folder: Path) -> AgentSettings:  # noqa: ARG001
    """Return the variables for a served model."""
    variables = {
        "GOOSE_PROVIDER": "openai",
        "GOOSE_MODEL": endpoint.model,
        "GOOSE_CONTEXT_LIMIT": str(endpoint.n_ctx),
        "OPENAI_HOST": endpoint.address,
        "OPENAI_BASE_PATH": "v1/chat/completions",
        "OPENAI_API_KEY": endpoint.api_key,
        "OPENAI_TIMEOUT": str(REQUEST_TIMEOUT_S),
        "GOOSE_DISABLE_SESSION_NAMING": "true",
        "GOOSE_DISABLE_TOOL_CALL_SUMMARY": "true",
        "GOOSE_TELEMETRY_ENABLED": "false",
    }
    removed = ("OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS", "OPENAI_ORGANIZATION", "OPENAI_PROJECT")
    return AgentSettings(variables, removed)


AGENT: Final = Agent(
    name="goose",
    title="goose",
    min_n_ctx=8192,
    usual_n_ctx=32_768,
    install_hint="its installer (https://block.github.io/goose/docs/getting-started/installation)",
    make_settings=make_settings,
    extra_folders=("~/.local/bin",),
)
