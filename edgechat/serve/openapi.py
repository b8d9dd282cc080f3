"""The OpenAPI document: made from the very types that requests are decoded with."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgechat.serve.schemas import ChatRequest, CompletionRequest, EmbeddingsRequest

_POSTS: Final = {
    "/v1/chat/completions": (ChatRequest, "Answer a conversation"),
    "/v1/completions": (CompletionRequest, "Go on with a text"),
    "/v1/embeddings": (EmbeddingsRequest, "Vectors for texts"),
}
_GETS: Final = {
    "/v1/models": "The models that are served",
    "/v1/models/{model}": "One of them",
    "/health": "Whether requests are taken",
    "/metrics": "Numbers for Prometheus",
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
    """The whole document."""
    kinds = [kind for kind, _ in _POSTS.values()]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {
        path: {"post": {
            "summary": summary, "responses": _responses("200", "400", "401", "403", "404", "408", "413", "503"),
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        }}
        for (path, (_, summary)), schema in zip(_POSTS.items(), schemas, strict=True)
    }  # fmt: skip
    paths |= {
        path: {
            "get": {
                "summary": words,
                "responses": _responses("200", "401", "403", "404", "503"),
                "parameters": [_MODEL] if "{" in path else [],
            }
        }
        for path, words in _GETS.items()
    }
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
        code: {"description": "fine"} if code == "200" else {"description": "not done", "content": error}
        for code in codes
    }
