"""Error messages for refused hub requests, by error code or HTTP status, with the next step for the user."""

from __future__ import annotations

from typing import Final

from edgechat.catalogue.download.http import HttpStatusError
from edgechat.errors import HubError

# Messages by X-Error-Code, which takes precedence, and by HTTP status. `{subject}` is a repository or a search text.
_MESSAGES: Final[dict[str | int, str]] = {
    "GatedRepo": "{subject} is gated. Accept its conditions at {hub}/{subject}, and set HF_TOKEN to your token.",
    "RepoNotFound": "{subject} is not on {hub}, or it is private. Check the name, or set HF_TOKEN for a private one.",
    "RevisionNotFound": "{subject} does not have this revision. Leave the revision out to use the newest one.",
    401: "{hub} requires a valid token for {subject}. Set HF_TOKEN, or replace an expired token.",
    403: "{hub} denies access to {subject}. Accept its conditions at {hub}/{subject} if it is gated, and set HF_TOKEN.",
    404: "{subject} does not contain this file. `edgechat models info {subject}` lists its files.",
    429: "{hub} received too many requests. Try {subject} again {when}, or set HF_TOKEN for a higher limit.",
}
_SERVER_ERROR: Final = "{hub} has an internal error (HTTP status {status}). Try {subject} again later."
_OTHER_STATUS: Final = "{hub} refused the request for {subject} (HTTP status {status})."
_FIRST_SERVER_ERROR: Final = 500


def hub_error(error: HttpStatusError, subject: str, hub: str) -> HubError:
    """Convert a refused request for `subject`, sent to the hub at the URL `hub`, to a HubError."""
    default = _SERVER_ERROR if error.status >= _FIRST_SERVER_ERROR else _OTHER_STATUS
    message = _MESSAGES.get(error.code) or _MESSAGES.get(error.status, default)
    when = f"in {error.retry_after_s:.0f} s" if error.retry_after_s else "later"
    return HubError(message.format(subject=subject, hub=hub, status=error.status, when=when))
