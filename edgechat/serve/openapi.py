"""OpenAPI document, generated from the msgspec structs of request bodies."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgechat.serve.schemas import ChatRequest, CompletionRequest, EmbeddingsRequest

_POST_ENDPOINTS: Final = {
    "/v1/chat/completions": (ChatRequest, "Generate a reply to a conversation"),
    "/v1/completions": (CompletionRequest, "Continue a text"),
    "/v1/embeddings": (EmbeddingsRequest, "Compute embeddings of texts"),
}
_GET_ENDPOINTS: Final = {
    "/v1/models": "List the served models",
    "/v1/models/{model}": "Describe a served model",
    "/health": "Report whether the server accepts requests",
    "/metrics": "Return metrics for Prometheus",
}
_MODEL: Final = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_ERROR: Final = {
    "type": "object", "required": ["error"],
    "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        },
    }},
}  # fmt: skip


def document(version: str) -> dict[str, Any]:
    """Return the OpenAPI document of the server."""
    body_types = [body_type for body_type, _ in _POST_ENDPOINTS.values()]
    schemas, components = msgspec.json.schema_components(body_types, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {
        path: {"post": {
            "summary": summary, "responses": _responses("200", "400", "401", "403", "404", "408", "413", "503"),
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        }}
        for (path, (_, summary)), schema in zip(_POST_ENDPOINTS.items(), schemas, strict=True)
    }  # fmt: skip
    paths |= {
        path: {"get": {
            "summary": summary, "responses": _responses("200", "401", "403", "404", "503"),
            "parameters": [_MODEL] if "{" in path else [],
        }}
        for path, summary in _GET_ENDPOINTS.items()
    }  # fmt: skip
    return {
        "openapi": "3.1.0", "info": {"title": "edgechat", "version": version}, "paths": paths,
        "components": {
            "schemas": components | {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }  # fmt: skip


def _responses(*codes: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        code: {"description": "Success"} if code == "200" else {"description": "Error", "content": error}
        for code in codes
    }
