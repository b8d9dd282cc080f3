"""Connection of huggingface_hub to the hub: its HTTP client, its endpoint and its token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from edgechat.catalogue.download import http
from edgechat.catalogue.download.network_settings import NetworkSetupError

# Maximum size of a response of the API. The file list of a repository with 5000 files has about 1 MB.
_MAX_RESPONSE_BYTES: Final = 32 << 20
_READ_BYTES: Final = 64 << 10
_TOKEN_PATTERN: Final = re.compile(r"[!-~]+")


def check_endpoint(url: str) -> None:
    """Raise NetworkSetupError if `url`, the value of HF_ENDPOINT, is not an http or https URL."""
    try:
        parts = http.split_url(url)
        is_valid = parts.scheme in {"http", "https"} and parts.hostname and url.isascii() and url.isprintable()
    except http.InvalidUrlError:
        is_valid = False
    if not is_valid or " " in url or "?" in url or "#" in url:
        raise NetworkSetupError(
            f"HF_ENDPOINT is set to {url!r}, which is not a URL of a hub. Set it to an address such as "
            "https://huggingface.co, or unset it."
        )


def read_token() -> str:
    """Return the user's token for the hub; "" if there is none. Raises NetworkSetupError for an invalid token."""
    import huggingface_hub
    from huggingface_hub import constants

    token_file = Path(constants.HF_TOKEN_PATH)
    if token_file.exists() and not token_file.is_file():  # reading a pipe might never end
        raise NetworkSetupError(f"{token_file} is not a file with a token for the hub. Delete it, or set HF_TOKEN.")
    token = huggingface_hub.get_token() or ""
    if token and not _TOKEN_PATTERN.fullmatch(token):
        raise NetworkSetupError(
            f"The token for the hub, from HF_TOKEN or {token_file}, contains characters that are not allowed in a "
            "token. Set HF_TOKEN to a token from the settings page of the hub."
        )
    return token


def make_client(endpoint: str) -> Any:
    """Create the HTTP client of huggingface_hub, an httpx2.Client that sends its requests with edgechat's own client.

    Requests raise HttpStatusError for a transient status, because huggingface_hub would otherwise retry for half a
    minute, and HubError for other failures. If `endpoint` is an https URL, redirects to http are refused.
    """
    import httpx2

    class Transport(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if endpoint.startswith("https:") and request.url.scheme != "https":
                raise http.InvalidUrlError(
                    f"{endpoint} redirects to {http.redact_url(str(request.url))}. "
                    "edgechat does not follow redirects from https to http."
                )
            headers = dict(request.headers) | {"accept-encoding": "identity", "connection": "close"}
            body = request.read() or None
            with http.send_request(str(request.url), headers, method=request.method, body=body) as response:
                error = http.HttpStatusError("", response.status, http.parse_retry_after(response.headers))
                if error.is_transient:
                    raise error
                http.check_encoding(response)
                content = _read_body(response)
            return httpx2.Response(response.status, headers=response.headers.items(), content=content)

    return httpx2.Client(transport=Transport(), follow_redirects=True)


def _read_body(response: http.Response) -> bytes:
    content = bytearray()
    while data := response.read(_READ_BYTES):
        content += data
        if len(content) > _MAX_RESPONSE_BYTES:
            raise http.UnusableResponseError(
                f"{http.redact_url(response.url)} sent a response of more than {_MAX_RESPONSE_BYTES >> 20} MiB."
            )
    return bytes(content)
