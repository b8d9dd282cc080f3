"""Official clients, unmodified, each in an environment of its own, against one server.

A script for each client does what the client can do and prints the results (`scripts/report.py`). The tests check their
forms; the starter model is too small to check more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from tests.serve.client import ServerProcess
from tests.serve.clients.environments import node_environment, python_environment

pytestmark = pytest.mark.long
SCRIPTS = Path(__file__).parent / "scripts"
CITY = {
    "type": "object", "required": ["city"], "additionalProperties": False,
    "properties": {"city": {"type": "string", "maxLength": 12}},
}  # fmt: skip
PERSON = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0,
    "maximum": 99}},
}  # fmt: skip
# A cancelled request generates a few more tokens, on a busy machine hundreds; one that goes on generates 1500.
_MAX_CANCELLED_TOKENS = 1000
Results = dict[str, Any]


class Client(msgspec.Struct, frozen=True):
    """A client: its script, its packages, what the script does, and the error of a prompt that is too long."""

    script: str
    packages: tuple[str, ...]
    features: tuple[str, ...]
    context_error: str = ""


CLIENTS = (
    Client(
        "openai_client.py", ("openai==3.57.0",),
        ("chat", "stream", "tools", "streamed_tools", "schema", "parsed", "embeddings", "models", "other_model",
         "full_context", "cancel"),
        "BadRequestError",
    ),
    Client(
        "openai_client.mjs", ("openai@6.49.0",),
        ("chat", "stream", "tools", "tool_runner", "schema", "embeddings", "models", "full_context", "cancel"),
        "BadRequestError",
    ),
    Client(
        "openai_responses.py", ("openai==3.57.0",),
        ("chat", "stream", "conversation", "tools", "streamed_tools", "schema", "parsed", "full_context", "cancel"),
        "BadRequestError",
    ),
    Client(
        "openai_responses.mjs", ("openai@6.49.0",),
        ("chat", "stream", "conversation", "tools", "schema", "full_context", "cancel"),
        "BadRequestError",
    ),
    Client(
        "anthropic_client.py", ("anthropic==2.14.0",),
        ("chat", "stream", "tools", "streamed_tools", "schema", "count_tokens", "models", "full_context", "cancel"),
        "BadRequestError",
    ),
    Client(
        "anthropic_client.mjs", ("@anthropic-ai/sdk@1.14.0",),
        ("chat", "stream", "tools", "streamed_tools", "schema", "models", "full_context", "cancel"),
        "BadRequestError",
    ),
    Client(
        "ollama_client.py", ("ollama==0.6.3",),
        ("chat", "stream", "generate", "offered_tools", "schema", "embeddings", "models", "full_context",
         "unknown_model", "cancel"),
        "ResponseError",
    ),
    Client(
        "ollama_client.mjs", ("ollama@0.6.4",),
        ("chat", "stream", "offered_tools", "schema", "embeddings", "models", "full_context", "unknown_model",
         "cancel"),
        "ResponseError",
    ),
    Client(
        "llm_client.py", ("llm==0.36",),
        ("chat", "stream", "conversation", "offered_tools", "schema", "full_context"),
        "BadRequestError",
    ),
    Client(
        "litellm_client.py", ("litellm==1.110.2",),
        ("chat", "stream", "responses", "other_providers", "tools", "schema", "embeddings", "full_context"),
        "ContextWindowExceededError",
    ),
    Client(
        "langchain_client.py", ("langchain-openai==1.7.4",),
        ("chat", "stream", "responses", "batch", "tools", "schema", "schema_as_tool", "tools_and_schema",
         "embeddings", "full_context", "cancel"),
        "OpenAIContextOverflowError",
    ),
    Client(
        "instructor_client.py", ("instructor==1.17.0",),
        ("schema", "schema_as_tool", "partial_schema", "full_context"),
        "InstructorRetryException",
    ),
    Client(
        "pydantic_ai_client.py", ("pydantic-ai-slim[openai]==2.68.0",),
        ("chat", "stream", "responses", "schema", "schema_as_tool", "tools_and_schema", "full_context", "cancel"),
        "ModelContextWindowExceededError",
    ),
    Client(
        "openai_agents_client.py", ("openai-agents==0.24.0",),
        ("chat", "stream", "responses_schema", "responses_tool_runner", "tool_runner", "schema", "tools_and_schema",
         "full_context"),
        "BadRequestError",
    ),
    Client(
        "ai_responses_client.mjs", ("ai@6.0.326", "@ai-sdk/openai@3.0.141", "zod@4.6.7"),
        ("chat", "stream", "conversation", "tool_runner", "schema", "full_context"),
        "APICallError",
    ),
    Client(
        "ai_client.mjs", ("ai@6.0.326", "@ai-sdk/openai@3.0.141", "@ai-sdk/openai-compatible@2.0.92", "zod@4.6.7"),
        ("chat", "stream", "responses", "tool_runner", "schema", "partial_schema", "tools_and_schema", "embeddings",
         "full_context", "cancel"),
        "APICallError",
    ),
)  # fmt: skip
ALL_FEATURES = [(client, feature) for client in CLIENTS for feature in client.features]


@pytest.fixture(scope="module")
def run(embedding_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Client], Results]:
    """Return a function that runs the script of a client once and returns its results."""
    all_results: dict[str, Results] = {}

    def run_once(client: Client) -> Results:
        if client.script not in all_results:
            # An environment that cannot be installed is tried once; then all tests of the client are skipped.
            all_results[client.script] = {}
            all_results[client.script] = _run(client, embedding_server, tmp_path_factory.mktemp("scripts"))
        return all_results[client.script]

    return run_once


def _run(client: Client, server: ServerProcess, directory: Path) -> Results:
    if client.script.endswith(".py"):
        command = [str(python_environment(client.packages)), str(SCRIPTS / client.script)]
    else:
        # Node.js looks for packages in the directory of the script and above it.
        for path in SCRIPTS.glob("*.mjs"):
            shutil.copy(path, directory)
        (directory / "node_modules").symlink_to(node_environment(client.packages), target_is_directory=True)
        command = ["node", str(directory / client.script)]
    # Variables such as OPENAI_BASE_URL or PYTHONPATH would change what the clients do.
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT") if name in os.environ}
    done = subprocess.run(
        [*command, server.url.removesuffix("/v1"), "starter", "tiny-bert"], capture_output=True, text=True, timeout=600,
        check=False, cwd=directory, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize(("client", "feature"), ALL_FEATURES, ids=[f"{c.script}-{f}" for c, f in ALL_FEATURES])
def test_client(run: Callable[[Client], Results], client: Client, feature: str) -> None:
    results = run(client)
    if not results:
        pytest.skip("the client did not run: see its first test")
    result = results[feature]
    if isinstance(result, dict) and "failed" in result:
        pytest.fail(result["failed"], pytrace=False)
    CHECKS[feature](result, results, client)


def check_chat(result: Any, results: Results, client: Client) -> None:
    assert result["text"].startswith("1. 1\n2. 2")
    assert result["output_tokens"] == 16
    assert result["input_tokens"] > 20
    assert result.get("end", "length") in {"length", "max_tokens", "max_output_tokens"}


def check_stream(result: Any, results: Results, client: Client) -> None:
    assert result["text"] == results["chat"]["text"]
    assert result["output_tokens"] == 16


def check_other_model(result: Any, results: Results, client: Client) -> None:
    assert result == "starter"


def check_same_text(result: Any, results: Results, client: Client) -> None:
    assert result == results["chat"]["text"]


def check_call(result: Any, results: Results, client: Client) -> None:
    assert result["name"] == "get_weather"
    jsonschema.validate(result["arguments"], CITY)


def check_tools(result: Any, results: Results, client: Client) -> None:
    """Check the call of a tool, and the reply that follows the result of the tool."""
    check_call(result, results, client)
    assert result.get("end", "tool_use") in {"tool_calls", "tool_use"}
    assert result["reply"].strip()
    assert result["later_calls"] == 0


def check_offered_tools(result: Any, results: Results, client: Client) -> None:
    """Check that requests with tools are answered, for clients that cannot require a call."""
    assert result == [True, True]


def check_schema(result: Any, results: Results, client: Client) -> None:
    jsonschema.validate(result, PERSON)


def check_parsed(result: Any, results: Results, client: Client) -> None:
    assert result in ({"is_true": True}, {"is_true": False})


def check_tools_and_schema(result: Any, results: Results, client: Client) -> None:
    """Check the reply to a request with tools and a schema, which is a call or matches the schema."""
    if result["calls"]:
        jsonschema.validate(result["calls"][0], CITY)
    else:
        jsonschema.validate(result["parsed"], PERSON)


def check_conversation(result: Any, results: Results, client: Client) -> None:
    assert result[0] == results["chat"]["text"]
    assert result[1].strip()


def check_batch(result: Any, results: Results, client: Client) -> None:
    assert result == [results["chat"]["text"]] * 2


def check_other_providers(result: Any, results: Results, client: Client) -> None:
    assert set(result.values()) == {results["chat"]["text"]}


def check_count_tokens(result: Any, results: Results, client: Client) -> None:
    assert result["counted"] == result["used"]


def check_embeddings(result: Any, results: Results, client: Client) -> None:
    assert result == [64, 64]


def check_models(result: Any, results: Results, client: Client) -> None:
    assert [name.removesuffix(":latest") for name in result] == ["starter", "tiny-bert"]


def check_full_context(result: Any, results: Results, client: Client) -> None:
    assert result["type"] == client.context_error, result
    assert result["status"] in {400, None}  # instructor's error has no status
    assert "2,048 tokens" in result["text"]


def check_unknown_model(result: Any, results: Results, client: Client) -> None:
    assert result["type"] == "ResponseError", result
    assert result["status"] == 404


def check_cancel(result: Any, results: Results, client: Client) -> None:
    assert result["was_running"] == 1
    assert result["remaining"] == 0
    assert result["n_tokens"] < _MAX_CANCELLED_TOKENS


CHECKS: dict[str, Callable[[Any, Results, Client], None]] = {
    "chat": check_chat, "stream": check_stream, "generate": check_same_text, "responses": check_same_text,
    "other_model": check_other_model, "conversation": check_conversation,
    "batch": check_batch, "other_providers": check_other_providers, "tools": check_tools, "streamed_tools": check_call,
    "tool_runner": check_call, "offered_tools": check_offered_tools, "schema": check_schema,
    "schema_as_tool": check_schema, "partial_schema": check_schema, "tools_and_schema": check_tools_and_schema,
    "responses_schema": check_schema,
    "responses_tool_runner": check_call,
    "parsed": check_parsed, "count_tokens": check_count_tokens, "embeddings": check_embeddings, "models": check_models,
    "full_context": check_full_context, "unknown_model": check_unknown_model, "cancel": check_cancel,
}  # fmt: skip
