"""Consistency of the OpenAPI document."""

from __future__ import annotations

import msgspec

from edgechat.serve import openapi


def test_every_schema_reference_resolves() -> None:
    document = openapi.build_openapi_document("1")
    text = msgspec.json.encode(document).decode()
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names
    assert names <= document["components"]["schemas"].keys()
    paths = {"/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/v1/responses", "/health", "/metrics"}
    assert paths <= document["paths"].keys()
    assert document["paths"]["/v1/responses/{id}"].keys() == {"get", "delete"}
