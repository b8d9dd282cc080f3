"""Error messages for refused hub requests, by error code or HTTP status, with the next step for the user."""

from __future__ import annotations

from typing import Final

from edgechat.catalogue.download.http import HttpStatusError
from edgechat.errors import HubError

# Messages by the value of the header X-Error-Code, which takes precedence, or by HTTP status. `{name}` is a repository
# or a search text.
_MESSAGES: Final[dict[str | int, str]] = {
    "GatedRepo": "{name} is gated. Accept its conditions at {hub}/{name}, and set HF_TOKEN to your token.",
    "RepoNotFound": "{name} is not on {hub}, or is private. Check the name; for a private repository, set HF_TOKEN.",
    "RevisionNotFound": "{name} does not have this revision. Leave the revision out to use the newest one.",
    401: "{hub} requires a valid token for {name}. Set HF_TOKEN, or replace an expired token.",
    403: "{hub} denies access to {name}. Accept its conditions at {hub}/{name} if it is gated, and set HF_TOKEN.",
    404: "{name} does not contain this file. `edgechat models info {name}` lists its files.",
    429: "{hub} received too many requests. Try again {retry_time}, or set HF_TOKEN for a higher limit.",
}
_SERVER_ERROR_MESSAGE: Final = (
    "{hub} had an internal error (HTTP status {status}) in a request for {name}. Try again later."
)
_OTHER_STATUS_MESSAGE: Final = "{hub} refused the request for {name} (HTTP status {status})."
_MIN_SERVER_ERROR_STATUS: Final = 500


def make_hub_error(error: HttpStatusError, repo_or_query: str, hub_url: str) -> HubError:
    """Return the HubError for a refused request to the hub, with a message for the user.

    `repo_or_query` is the requested repository or the search text.
    """
    default_message = _SERVER_ERROR_MESSAGE if error.status >= _MIN_SERVER_ERROR_STATUS else _OTHER_STATUS_MESSAGE
    message = _MESSAGES.get(error.code) or _MESSAGES.get(error.status, default_message)
    retry_time = f"in {error.retry_after_s:.0f} s" if error.retry_after_s else "later"
    return HubError(message.format(name=repo_or_query, hub=hub_url, status=error.status, retry_time=retry_time))
