"""Settings of opencode, which sends requests to the chat completions of the OpenAI API.

`OPENCODE_CONFIG_CONTENT` has a configuration that overrides the user's and the project's files for one run
(https://opencode.ai/v1/docs/config). `limit` has the lengths by which opencode summarises a conversation
(https://opencode.ai/v1/docs/providers). `{env:NAME}` is replaced by the value of a variable.

Its first request has 7,235 tokens, measured with version 1.18.33, an empty project and the tokenizer of Qwen2.5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from edgechat.launch.agent import KEY_VARIABLE, REQUEST_TIMEOUT_S, Agent, AgentSettings, Endpoint

_PROVIDER: Final = "edgechat"


def make_settings(endpoint: Endpoint, folder: Path) -> AgentSettings:  # noqa: ARG001
    """Return the variables for a served model; one of them has the configuration."""
    full_name = f"{_PROVIDER}/{endpoint.model}"
    config = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {
            _PROVIDER: {
                "npm": "@ai-sdk/openai-compatible",
                "name": "edgechat",
                "options": {
                    "baseURL": endpoint.openai_url,
                    "apiKey": f"{{env:{KEY_VARIABLE}}}",
                    "timeout": REQUEST_TIMEOUT_S * 1000,
                },
                "models": {
                    endpoint.model: {
                        "name": endpoint.model,
                        "tool_call": True,
                        "limit": {"context": endpoint.n_ctx, "output": endpoint.max_output_tokens},
                    }
                },
            }
        },
        "model": full_name,
        "small_model": full_name,
        "share": "disabled",
        "autoupdate": False,
    }
    return AgentSettings({"OPENCODE_CONFIG_CONTENT": json.dumps(config), KEY_VARIABLE: endpoint.api_key})


AGENT: Final = Agent(
    name="opencode",
    title="opencode",
    min_n_ctx=12_288,
    usual_n_ctx=65_536,
    install_hint="`npm install -g opencode-ai` (https://opencode.ai/docs)",
    make_settings=make_settings,
    extra_folders=("~/.opencode/bin",),
)
