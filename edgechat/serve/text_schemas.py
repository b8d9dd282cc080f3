"""Request bodies of the endpoints for tokens and prompts, in the forms of llama-server and vLLM."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from edgechat.serve.message_schemas import ChatMessage
from edgechat.serve.schemas import Flag, TokenId, Tool


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """Request body of /tokenize: `content` as in llama-server, or `prompt` or `messages` as in vLLM."""

    model: str | None = None
    content: str | list[str | TokenId] | None = None
    """Text, or texts and tokens in order."""
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    tools: list[Tool] | None = None
    """Tools that the prompt of `messages` describes."""
    add_generation_prompt: Flag | None = None
    """False to end the prompt of `messages` before the beginning of the reply."""
    add_special: Flag | None = None
    """True to add the tokens that mark the start and the end of a text. The default is false for `content`."""
    add_special_tokens: Flag | None = None
    """The same field in vLLM. The default is true for `prompt`."""
    parse_special: Flag | None = None
    """False to tokenise the texts of control tokens as plain text."""
    with_pieces: Flag | None = None
    """True to return the text of each token, too."""
    return_token_strs: Flag | None = None
    """True to return the texts of the tokens as a list, too, as in vLLM."""


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """Request body of /detokenize."""

    tokens: list[TokenId]
    model: str | None = None
