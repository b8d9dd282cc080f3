"""Requests for the best of several replies: `best_of` of the OpenAI API, and `pick`, an extension of edgechat."""

from __future__ import annotations

from typing import NamedTuple

from edgechat.prompt.agreement.picker import MAX_PICKED_REPLIES, PickMethod
from edgechat.serve.errors import ApiError
from edgechat.serve.schemas import GenerationParams


class PickOptions(NamedTuple):
    """How to pick the choices of a response from more replies."""

    method: PickMethod
    n_replies: int
    """Number of replies from which the choices are picked."""
    n_choices: int


def find_pick_options(body: GenerationParams) -> PickOptions | None:
    """Return how to pick the choices of a response; None to return all replies. Raises ApiError."""
    n_choices, n_replies = body.n or 1, body.best_of
    if n_replies is None:
        if body.pick is not None:
            raise ApiError(400, "pick: needs best_of, the number of replies to pick from, such as 5.", param="pick")
        return None
    if n_replies < n_choices:
        raise ApiError(400, f"best_of: must be at least n, which is {n_choices}, got {n_replies}.", param="best_of")
    if n_replies > MAX_PICKED_REPLIES:
        raise ApiError(400, f"best_of: must be at most {MAX_PICKED_REPLIES}, got {n_replies}.", param="best_of")
    method: PickMethod = body.pick or "likely"
    if n_choices > 1 and method != "likely":
        raise ApiError(400, f"pick: {method} picks one reply. Set n to 1.", param="pick")
    if n_replies == n_choices:
        return None
    if body.stream:
        raise ApiError(400, "best_of: a reply that is picked from several cannot be streamed.", param="best_of")
    return PickOptions(method, n_replies, n_choices)
