"""Settings of aider, which sends requests to the chat completions of the OpenAI API.

Each option of aider has a variable `AIDER_...` (https://aider.chat/docs/config/options.html). It overrides
`.aider.conf.yml`, and unlike `OPENAI_API_KEY` it is rarely set in an `.env` file, which overrides the environment.
`openai/NAME` selects an OpenAI-compatible server (https://aider.chat/docs/llms/openai-compat.html), and a file of model
metadata has its context length (https://aider.chat/docs/config/adv-model-settings.html).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from edgechat.launch.agent import REQUEST_TIMEOUT_S, Agent, AgentSettings, Endpoint

_METADATA_NAME: Final = "model-metadata.json"


def make_settings(endpoint: Endpoint, folder: Path) -> AgentSettings:
    """Return the variables for a served model, and the file with its context length."""
    full_name = f"openai/{endpoint.model}"
    metadata = {
        full_name: {
            "max_tokens": endpoint.max_output_tokens,
            "max_input_tokens": endpoint.n_ctx,
            "max_output_tokens": endpoint.max_output_tokens,
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "litellm_provider": "openai",
            "mode": "chat",
        }
    }
    variables = {
        "AIDER_OPENAI_API_BASE": endpoint.openai_url,
        "AIDER_OPENAI_API_KEY": endpoint.api_key,
        "AIDER_MODEL": full_name,
        "AIDER_WEAK_MODEL": full_name,
        "AIDER_EDITOR_MODEL": full_name,
        "AIDER_MODEL_METADATA_FILE": str(folder / _METADATA_NAME),
        "AIDER_TIMEOUT": str(REQUEST_TIMEOUT_S),
        "AIDER_SHOW_MODEL_WARNINGS": "false",
        "AIDER_CHECK_UPDATE": "false",
        "AIDER_SHOW_RELEASE_NOTES": "false",
        "AIDER_ANALYTICS": "false",
    }
    return AgentSettings(variables, files={_METADATA_NAME: json.dumps(metadata, indent=2)})


AGENT: Final = Agent(
    name="aider",
    title="aider",
    min_n_ctx=4096,
    usual_n_ctx=16_384,
    install_hint="`pipx install aider-chat` (https://aider.chat/docs/install.html)",
    make_settings=make_settings,
    uses_tools=False,
    extra_folders=("~/.local/bin",),
)
