"""Test of a remote: its list of models, and one short reply."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from edgechat.errors import RemoteError
from edgechat.remote.client import ChatRequest, ListedModel, RemoteClient, RetryScheduled
from edgechat.remote.model_lists import save_list
from edgechat.remote.reply_stream import Usage
from edgechat.remote.target import RemoteModel
from edgechat.remote_settings import RemoteSettings

QUESTION: Final = "Reply with the word OK."
_MAX_TOKENS: Final = 16


class ProbedList(msgspec.Struct, frozen=True, kw_only=True):
    """Models of a remote, and the time that it took to list them."""

    models: list[ListedModel]
    elapsed_s: float


class ProbedReply(msgspec.Struct, frozen=True, kw_only=True):
    """Short reply of a remote model, and its times."""

    model: str
    text: str
    """Beginning of the reply; "" if it began with reasoning and was cut there."""
    first_token_s: float
    total_s: float
    usage: Usage | None


def probe_list(name: str, settings: RemoteSettings) -> ProbedList:
    """List the models of a remote, and save the list for completions. Raises RemoteError."""
    started_at = time.monotonic()
    models = RemoteClient(name, settings).list_models()
    elapsed_s = time.monotonic() - started_at
    save_list(name, settings, models)
    return ProbedList(models=models, elapsed_s=elapsed_s)


def probe_reply(target: RemoteModel) -> ProbedReply:
    """Ask a remote model for a reply of a few tokens. Raises RemoteError."""
    request = ChatRequest(messages=[{"role": "user", "content": QUESTION}], options={"max_tokens": _MAX_TOKENS})
    started_at = time.monotonic()
    first_token_s, text, usage = 0.0, "", None
    has_chunk = False
    for chunk in RemoteClient(target.remote, target.settings).stream_reply(target, request):
        if isinstance(chunk, RetryScheduled):
            continue
        has_chunk = True
        if (chunk.text or chunk.reasoning) and not first_token_s:
            first_token_s = time.monotonic() - started_at
        text += chunk.text
        usage = chunk.usage or usage
    if not has_chunk:
        raise RemoteError(f"{target.name} sent an empty reply.")
    return ProbedReply(
        model=target.name, text=text, first_token_s=first_token_s, total_s=time.monotonic() - started_at, usage=usage
    )
