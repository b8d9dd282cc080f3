"""Hash of the instructions with which a reply was generated, so that it is offered again only with the same ones."""

from __future__ import annotations

import hashlib
from typing import Final

_HASH_CHARS: Final = 16


def hash_context(system_prompt: str, grammar: str = "") -> str:
    """Return a short hash of the system prompt and of the grammar of a reply; "" if both are empty."""
    if not system_prompt and not grammar:
        return ""
    text = f"{system_prompt}\0{grammar}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARS]
