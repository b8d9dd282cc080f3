"""Settings of Crush, which sends requests to the chat completions of the OpenAI API.

Crush merges the user's configuration (`CRUSH_GLOBAL_CONFIG`) with `crush.json` in its data folder
(`CRUSH_GLOBAL_DATA`), where it also writes, and with files of the project: `lookupConfigs` in
https://github.com/charmbracelet/crush/blob/main/internal/config/load.go; `config.go` in that folder has the fields. The
data folder of a run is the temporary folder, so that the user's configuration is read and not changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from edgechat.launch.agent import KEY_VARIABLE, Agent, AgentSettings, Endpoint

_PROVIDER: Final = "edgechat"


def make_settings(endpoint: Endpoint, folder: Path) -> AgentSettings:
    """Return the configuration file for a served model, and the variables that make Crush read it."""
    model = {"provider": _PROVIDER, "model": endpoint.model, "max_tokens": endpoint.max_output_tokens}
    config = {
        "models": {"large": model, "small": model},
        "providers": {
            _PROVIDER: {
                "name": "edgechat",
                "type": "openai-compat",
                "base_url": endpoint.openai_url,
                "api_key": f"${KEY_VARIABLE}",
                "discover_models": False,
                "models": [
                    {
                        "id": endpoint.model,
                        "name": endpoint.model,
                        "context_window": endpoint.n_ctx,
                        "default_max_tokens": endpoint.max_output_tokens,
                    }
                ],
            }
        },
    }
    variables = {
        "CRUSH_GLOBAL_DATA": str(folder),
        "CRUSH_DISABLE_PROVIDER_AUTO_UPDATE": "1",
        "CRUSH_DISABLE_METRICS": "1",
        KEY_VARIABLE: endpoint.api_key,
    }
    return AgentSettings(variables, files={"crush.json": json.dumps(config, indent=2)})


AGENT: Final = Agent(
    name="crush",
    title="Crush",
    min_n_ctx=8192,
    usual_n_ctx=65_536,
    install_hint="`npm install -g @charmland/crush` (https://github.com/charmbracelet/crush)",
    make_settings=make_settings,
)
