"""Settings of Claude Code, which sends requests to the Anthropic Messages API.

Variables: https://code.claude.com/docs/en/env-vars, and those that only the program documents (checked in 2.1.197):
`CLAUDE_CODE_MAX_CONTEXT_TOKENS` is the context length of models whose names do not begin with `claude-`, and
`CLAUDE_CODE_ATTRIBUTION_HEADER=0` omits a header with a hash that changes with each request from the system prompt.
https://github.com/ollama/ollama/blob/main/cmd/launch/claude.go also turns off a count of the remaining tokens, which
changes with each request, too.

Its first request has 18,945 tokens, measured with version 2.1.197, an empty project and the tokenizer of Qwen2.5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from edgechat.launch.agent import REQUEST_TIMEOUT_S, Agent, AgentSettings, Endpoint

_SETTINGS_NAME: Final = "settings.json"
_MODEL_VARIABLES: Final = (
    "ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL", "ANTHROPIC_DEFAULT_FABLE_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL",
)  # fmt: skip
# Claude Code summarises a conversation when the context has less room than for the longest reply and 13,000 tokens. In
# a context of 32,768 tokens, this would be before each request. So a short context is declared longer: the summary is
# made when there is room for the longest reply and 2,000 tokens, in which the request for the summary fits.
_SHORT_N_CTX: Final = 65_536
_ADDED_TOKENS: Final = 11_000
# These select another service, or another key.
_REMOVED_VARIABLES: Final = (
    "ANTHROPIC_API_KEY", "ANTHROPIC_CUSTOM_HEADERS", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY", "CLAUDE_CODE_USE_ANTHROPIC_AWS", "CLAUDE_CODE_USE_MANTLE", "CLAUDE_CODE_USE_GATEWAY",
)  # fmt: skip


def make_settings(endpoint: Endpoint, folder: Path) -> AgentSettings:
    """Return the variables for a served model, also as a file of settings."""
    n_ctx = endpoint.n_ctx + (_ADDED_TOKENS if endpoint.n_ctx < _SHORT_N_CTX else 0)
    variables = {
        "ANTHROPIC_BASE_URL": endpoint.address,
        "ANTHROPIC_AUTH_TOKEN": endpoint.api_key,
        **dict.fromkeys(_MODEL_VARIABLES, endpoint.model),
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(n_ctx),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(endpoint.max_output_tokens),
        "API_TIMEOUT_MS": str(REQUEST_TIMEOUT_S * 1000),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "off",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
    }
    # Variables in the user's settings.json override the environment; those in the file of --settings override both.
    settings = {"env": {**dict.fromkeys(_REMOVED_VARIABLES, ""), **variables}}
    return AgentSettings(
        variables,
        _REMOVED_VARIABLES,
        arguments=("--settings", str(folder / _SETTINGS_NAME)),
        files={_SETTINGS_NAME: json.dumps(settings, indent=2)},
    )


AGENT: Final = Agent(
    name="claude",
    title="Claude Code",
    min_n_ctx=24_576,
    usual_n_ctx=65_536,
    install_hint="`npm install -g @anthropic-ai/claude-code` (https://code.claude.com/docs/en/setup)",
    make_settings=make_settings,
    extra_folders=("~/.local/bin", "~/.claude/local"),
)
