"""Explanations in the usage: why more of a prompt was not cached."""

from __future__ import annotations

from typing import Any

from tests.serve.client import ServerProcess

RULES = " ".join(f"Rule {i}: be kind to the {word}." for i in range(12) for word in ("fox", "owl", "bee"))


def complete(server: ServerProcess, header: str, *texts: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    system = {"role": "system", "content": f"build={header};\n{RULES}"}
    status, answer = server.chat({"messages": [system, *messages], "max_tokens": 4, "temperature": 0})
    assert status == 200, answer
    details: dict[str, Any] = answer["usage"]["prompt_tokens_details"]
    return details


def test_changed_header_is_named_and_a_longer_conversation_is_not(server: ServerProcess) -> None:
    assert "cache_miss" not in complete(server, "apple", "Say hi.")
    longer = complete(server, "apple", "Say hi.", "Hi!", "Say ho.")
    assert "cache_miss" not in longer
    assert longer["cached_tokens"] > 200
    changed = complete(server, "melon", "Say hi.")
    miss = changed["cache_miss"]
    assert changed["cached_tokens"] <= miss["common_tokens"] < 40
    assert miss["repeated_tokens"] > 200
    assert miss["text_before"].endswith("build=")
    assert miss["text"].startswith("melon;")
    assert "apple" not in str(changed)  # the text of another request
    assert "the prompt differs from an earlier one, at 'melon;" in miss["explanation"]
    other = complete(server, "melon", "Tell me about the sea, its ships, its storms and its islands.")
    assert "cache_miss" not in other


def test_anthropic_usage_has_the_explanation(server: ServerProcess) -> None:
    rules = RULES.replace("Rule", "Law")  # the other test's prompts are no earlier prompts of this one
    for header in ("cherry", "quince"):
        body = {"system": f"build={header};\n{rules}", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        status, answer, _ = server.request("/v1/messages", body)
        assert status == 200, answer
    assert answer["usage"]["cache_miss"]["text"].startswith("quince;")
