"""Settings of Codex, which sends requests to the Responses API.

Its options `-c KEY=VALUE` override `~/.codex/config.toml` for one run; a value is TOML. The keys of a provider
(`base_url`, `env_key`, `wire_api`, `stream_idle_timeout_ms`) and of the model are described at
https://developers.openai.com/codex/config-reference.

Its first request has 6,054 tokens, measured with version 0.171.0, an empty project and the tokenizer of Qwen2.5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from edgechat.launch.agent import KEY_VARIABLE, REQUEST_TIMEOUT_S, Agent, AgentSettings, Endpoint

_PROVIDER: Final = "edgechat"


def make_settings(endpoint: Endpoint, folder: Path) -> AgentSettings:  # noqa: ARG001
    """Return the overrides of the configuration for a served model, and the variable with the key."""
    provider = f"model_providers.{_PROVIDER}"
    overrides = {
        "model": endpoint.model,
        "model_provider": _PROVIDER,
        f"{provider}.name": "edgechat",
        f"{provider}.base_url": endpoint.openai_url,
        f"{provider}.env_key": KEY_VARIABLE,
        f"{provider}.wire_api": "responses",
        f"{provider}.stream_idle_timeout_ms": REQUEST_TIMEOUT_S * 1000,
        "model_context_window": endpoint.n_ctx,
        "web_search": "disabled",  # a service of OpenAI
        # The tools for further agents make each first request longer, and one machine runs agents one after another.
        "features.multi_agent": False,
        "check_for_update_on_startup": False,
    }
    # A JSON value of these types is also a TOML value.
    arguments = [text for key, value in overrides.items() for text in ("-c", f"{key}={json.dumps(value)}")]
    return AgentSettings({KEY_VARIABLE: endpoint.api_key}, arguments=tuple(arguments))


AGENT: Final = Agent(
    name="codex",
    title="Codex",
    min_n_ctx=12_288,
    usual_n_ctx=65_536,
    install_hint="`npm install -g @openai/codex` (https://developers.openai.com/codex/cli)",
    make_settings=make_settings,
)
