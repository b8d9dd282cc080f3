"""OpenAPI document, generated from the msgspec structs of the request bodies."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgechat.serve.dialects.anthropic_schemas import CountTokensRequest, MessagesRequest
from edgechat.serve.dialects.ollama_schemas import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaModelRequest,
)
from edgechat.serve.dialects.openai_responses_schemas import ResponsesRequest
from edgechat.serve.infill_schemas import FimRequest, InfillRequest, NativeCompletionRequest
from edgechat.serve.rerank import RerankRequest
from edgechat.serve.schemas import ChatRequest, CompletionRequest, EmbeddingsRequest
from edgechat.serve.text_schemas import DetokenizeRequest, TokenizeRequest

_POST_ENDPOINTS: Final = {
    "/v1/chat/completions": (ChatRequest, "Generate a reply to a conversation"),
    "/v1/chat/completions/input_tokens": (ChatRequest, "Count the tokens of a conversation"),
    "/v1/completions": (CompletionRequest, "Continue a text"),
    "/v1/messages": (MessagesRequest, "Generate a reply to a conversation (Anthropic's API)"),
    "/v1/messages/count_tokens": (CountTokensRequest, "Count the tokens of a conversation (Anthropic's API)"),
    "/v1/responses": (ResponsesRequest, "Generate a response (Responses API)"),
    "/v1/responses/input_tokens": (ResponsesRequest, "Count the tokens of a request (Responses API)"),
    "/v1/embeddings": (EmbeddingsRequest, "Compute embeddings of texts"),
    "/completion": (NativeCompletionRequest, "Continue a text (llama-server's API)"),
    "/infill": (InfillRequest, "Fill a gap in a text (llama-server's API)"),
    "/v1/fim/completions": (FimRequest, "Fill a gap in a text (Mistral's API)"),
    "/v1/rerank": (RerankRequest, "Sort documents by their relevance to a query"),
    "/tokenize": (TokenizeRequest, "Convert a text or a conversation to tokens"),
    "/detokenize": (DetokenizeRequest, "Convert tokens to text"),
    "/apply-template": (ChatRequest, "Render the prompt of a conversation"),
    "/api/chat": (OllamaChatRequest, "Generate a reply to a conversation (Ollama API)"),
    "/api/generate": (OllamaGenerateRequest, "Continue a text, or reply to it (Ollama API)"),
    "/api/embed": (OllamaEmbedRequest, "Compute embeddings of texts (Ollama API)"),
    "/api/embeddings": (OllamaEmbeddingsRequest, "Compute the embedding of a text (Ollama API)"),
    "/api/show": (OllamaModelRequest, "Describe a served model (Ollama API)"),
    "/api/pull": (OllamaModelRequest, "Report whether a model is served (Ollama API)"),
}
_ID_ENDPOINTS: Final = {
    ("/v1/chat/completions/{id}/end_thinking", "post"): "End the reasoning of a running chat completion",
    ("/v1/responses/{id}", "get"): "Return a stored response (Responses API)",
    ("/v1/responses/{id}", "delete"): "Delete a stored response (Responses API)",
    ("/v1/responses/{id}/input_items", "get"): "List the input of a stored response (Responses API)",
    ("/v1/responses/{id}/cancel", "post"): "Refuse to cancel a response (Responses API)",
}
"""Endpoints with the id of a response in the path, by path and method."""
_GET_ENDPOINTS: Final = {
    "/v1/models": "List the served models",
    "/v1/models/{model}": "Describe a served model",
    "/props": "Describe a served model and the defaults of requests",
    "/version": "Return the version of edgechat",
    "/health": "Report whether the server accepts requests",
    "/metrics": "Return metrics for Prometheus",
    "/api/tags": "List the served models (Ollama API)",
    "/api/ps": "List the loaded models (Ollama API)",
    "/api/version": "Return the version of the Ollama API",
}
_MODEL_PARAMETER: Final = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_ID_PARAMETER: Final = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_ERROR_SCHEMA: Final = {
    "type": "object", "required": ["error"],
    "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        },
    }},
}  # fmt: skip
_OLLAMA_ERROR_SCHEMA: Final = {
    "type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}
}  # fmt: skip
_ANTHROPIC_ERROR_SCHEMA: Final = {
    "type": "object", "required": ["type", "error"],
    "properties": {"type": {"const": "error"}, "error": {
        "type": "object", "required": ["type", "message"],
        "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
    }},
}  # fmt: skip


def build_openapi_document(version: str) -> dict[str, Any]:
    """Build the OpenAPI document of a server with the given edgechat version."""
    body_types = [body_type for body_type, _ in _POST_ENDPOINTS.values()]
    schemas, components = msgspec.json.schema_components(body_types, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {
        path: {"post": {
            "summary": summary,
            "responses": _make_responses(path, "200", "400", "401", "403", "404", "408", "413", "503"),
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        }}
        for (path, (_, summary)), schema in zip(_POST_ENDPOINTS.items(), schemas, strict=True)
    }  # fmt: skip
    paths |= {
        path: {"get": {
            "summary": summary, "responses": _make_responses(path, "200", "401", "403", "404", "503"),
            "parameters": [_MODEL_PARAMETER] if "{" in path else [],
        }}
        for path, summary in _GET_ENDPOINTS.items()
    }  # fmt: skip
    for (path, method), summary in _ID_ENDPOINTS.items():
        paths.setdefault(path, {})[method] = {
            "summary": summary, "responses": _make_responses(path, "200", "400", "401", "403", "404", "503"),
            "parameters": [_ID_PARAMETER],
        }  # fmt: skip
    return {
        "openapi": "3.1.0", "info": {"title": "edgechat", "version": version}, "paths": paths,
        "components": {
            "schemas": components | {
                "Error": _ERROR_SCHEMA, "AnthropicError": _ANTHROPIC_ERROR_SCHEMA, "OllamaError": _OLLAMA_ERROR_SCHEMA,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }  # fmt: skip


def _make_responses(path: str, *codes: str) -> dict[str, Any]:
    is_anthropic, is_ollama = path.startswith("/v1/messages"), path.startswith("/api/")
    schema_name = "AnthropicError" if is_anthropic else "OllamaError" if is_ollama else "Error"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema_name}"}}}
    return {
        code: {"description": "Success"} if code == "200" else {"description": "Error", "content": content}
        for code in codes
    }
