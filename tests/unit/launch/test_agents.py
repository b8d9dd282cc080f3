"""Settings of each agent: variables, arguments and files, and no key on a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgechat.launch.agent import Endpoint
from edgechat.launch.agents import AGENTS

ENDPOINT = Endpoint("http://127.0.0.1:4321", "secret-key", "qwen3.5-4b", 80_000)
FOLDER = Path("/folder")


@pytest.mark.parametrize("name", AGENTS)
def test_settings_name_the_server_the_model_and_the_key(name: str) -> None:
    agent = AGENTS[name]
    settings = agent.make_settings(ENDPOINT, FOLDER)
    texts = [*settings.variables.values(), *settings.arguments, *settings.files.values()]
    assert agent.name == name
    assert any("http://127.0.0.1:4321" in text for text in texts)
    assert any("qwen3.5-4b" in text for text in texts)
    assert any("80000" in text for text in texts)  # context length
    assert "secret-key" in settings.variables.values()
    assert not any("secret-key" in text for text in settings.arguments)  # other users can see command lines
    assert not set(settings.removed_variables) & set(settings.variables)
    assert agent.min_n_ctx < agent.usual_n_ctx


def test_agents_are_sorted_by_name() -> None:
    assert list(AGENTS) == sorted(AGENTS) == ["aider", "claude", "codex", "crush", "goose", "opencode"]


def test_claude_uses_the_served_model_for_every_role_and_no_other_service() -> None:
    settings = AGENTS["claude"].make_settings(ENDPOINT, FOLDER)
    assert settings.variables["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4321"
    assert settings.variables["ANTHROPIC_AUTH_TOKEN"] == "secret-key"
    for role in ("MODEL", "SMALL_FAST_MODEL", "DEFAULT_OPUS_MODEL", "DEFAULT_SONNET_MODEL", "DEFAULT_HAIKU_MODEL"):
        assert settings.variables[f"ANTHROPIC_{role}"] == "qwen3.5-4b"
    assert settings.variables["CLAUDE_CODE_ATTRIBUTION_HEADER"] == "0"
    assert settings.variables["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "8192"
    assert {"ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK"} <= set(settings.removed_variables)


def test_variables_in_the_users_settings_of_claude_are_overridden() -> None:
    settings = AGENTS["claude"].make_settings(ENDPOINT, FOLDER)
    assert settings.arguments == ("--settings", str(FOLDER / "settings.json"))
    variables = json.loads(settings.files["settings.json"])["env"]
    assert variables == {**dict.fromkeys(settings.removed_variables, ""), **settings.variables}


def test_claude_does_not_summarise_before_each_request_in_a_short_context() -> None:
    endpoint = Endpoint("http://127.0.0.1:4321", "secret-key", "qwen3.5-4b", 32_768)
    variables = AGENTS["claude"].make_settings(endpoint, FOLDER).variables
    n_ctx, n_output = (int(variables[f"CLAUDE_CODE_MAX_{name}_TOKENS"]) for name in ("CONTEXT", "OUTPUT"))
    summary_at = n_ctx - n_output - 13_000  # by the rule of Claude Code
    assert AGENTS["claude"].min_n_ctx < summary_at == 32_768 - n_output - 2000


def test_codex_overrides_its_configuration_with_toml_values() -> None:
    settings = AGENTS["codex"].make_settings(ENDPOINT, FOLDER)
    assert settings.arguments[::2] == ("-c",) * (len(settings.arguments) // 2)
    overrides = settings.arguments[1::2]
    assert 'model="qwen3.5-4b"' in overrides
    assert 'model_provider="edgechat"' in overrides
    assert 'model_providers.edgechat.base_url="http://127.0.0.1:4321/v1"' in overrides
    assert 'model_providers.edgechat.wire_api="responses"' in overrides
    assert 'model_providers.edgechat.env_key="EDGECHAT_API_KEY"' in overrides
    assert "model_context_window=80000" in overrides
    assert "features.multi_agent=false" in overrides
    assert settings.variables == {"EDGECHAT_API_KEY": "secret-key"}


def test_opencode_gets_a_configuration_in_a_variable() -> None:
    settings = AGENTS["opencode"].make_settings(ENDPOINT, FOLDER)
    config = json.loads(settings.variables["OPENCODE_CONFIG_CONTENT"])
    assert config["model"] == config["small_model"] == "edgechat/qwen3.5-4b"
    provider = config["provider"]["edgechat"]
    assert provider["options"]["baseURL"] == "http://127.0.0.1:4321/v1"
    assert provider["options"]["apiKey"] == "{env:EDGECHAT_API_KEY}"
    assert provider["models"]["qwen3.5-4b"]["limit"] == {"context": 80_000, "output": 8192}


def test_crush_gets_a_data_folder_of_its_own() -> None:
    settings = AGENTS["crush"].make_settings(ENDPOINT, FOLDER)
    assert settings.variables["CRUSH_GLOBAL_DATA"] == str(FOLDER)
    assert "CRUSH_GLOBAL_CONFIG" not in settings.variables  # the user's configuration still applies
    config = json.loads(settings.files["crush.json"])
    assert config["models"]["large"]["model"] == config["models"]["small"]["model"] == "qwen3.5-4b"
    assert config["providers"]["edgechat"]["base_url"] == "http://127.0.0.1:4321/v1"
    assert config["providers"]["edgechat"]["models"][0]["context_window"] == 80_000


def test_aider_reads_the_context_length_from_a_file() -> None:
    settings = AGENTS["aider"].make_settings(ENDPOINT, FOLDER)
    assert settings.variables["AIDER_MODEL"] == "openai/qwen3.5-4b"
    assert settings.variables["AIDER_MODEL_METADATA_FILE"] == str(FOLDER / "model-metadata.json")
    metadata = json.loads(settings.files["model-metadata.json"])
    assert metadata["openai/qwen3.5-4b"]["max_input_tokens"] == 80_000


def test_goose_uses_the_openai_provider() -> None:
    settings = AGENTS["goose"].make_settings(ENDPOINT, FOLDER)
    assert settings.variables["GOOSE_PROVIDER"] == "openai"
    assert settings.variables["OPENAI_HOST"] == "http://127.0.0.1:4321"
    assert settings.variables["OPENAI_BASE_PATH"] == "v1/chat/completions"
    assert "OPENAI_BASE_URL" in settings.removed_variables


@pytest.mark.parametrize(("n_ctx", "expected"), [(2048, 1024), (16_384, 2048), (32_768, 4096), (262_144, 8192)])
def test_output_is_limited_to_an_eighth_of_the_context(n_ctx: int, expected: int) -> None:
    assert Endpoint("http://h", "k", "m", n_ctx).max_output_tokens == expected
