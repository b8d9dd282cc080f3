"""API keys of remotes, from an environment variable or from the keyring of the system."""

from __future__ import annotations

import importlib.util
import os
from typing import Final

from edgechat.errors import RemoteSetupError
from edgechat.remote_settings import KEYRING, RemoteSettings

KEYRING_SERVICE: Final = "edgechat"
"""Service under which the keyring has the keys; the user name is the name of the remote."""
_MIN_REDACTED_CHARS: Final = 4


class ApiKey:
    """API key whose text is in no representation, log or error message; only `headers` and `redact` use it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "ApiKey(...)" if self._text else "ApiKey()"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __reduce__(self) -> str:
        raise TypeError("an API key cannot be serialised")

    def headers(self) -> dict[str, str]:
        """Return the HTTP header with the key; no header without a key."""
        return {"Authorization": f"Bearer {self._text}"} if self._text else {}

    def redact(self, text: str) -> str:
        """Return `text`, which a server sent, without the key."""
        return text.replace(self._text, "***") if len(self._text) >= _MIN_REDACTED_CHARS else text


def read_key(name: str, settings: RemoteSettings) -> ApiKey:
    """Return the API key of the remote `name`; an empty one if it needs none.

    Raises RemoteSetupError if the key is missing or invalid.
    """
    if not settings.api_key_env:
        return ApiKey("")
    if settings.api_key_env == KEYRING:
        source, text = "the keyring", _read_keyring(name)
    else:
        source, text = settings.api_key_env, os.environ.get(settings.api_key_env, "").strip()
    if not text:
        advice = f"`keyring set {KEYRING_SERVICE} {name}` adds it" if settings.api_key_env == KEYRING else "Set it"
        raise RemoteSetupError(f"The API key of the remote {name} is not in {source}. {advice}.".replace("..", "."))
    if not all("!" <= character <= "~" for character in text):
        raise RemoteSetupError(
            f"The API key of the remote {name}, from {source}, contains characters that are not allowed in a key. "
            "Copy it again."
        )
    return ApiKey(text)


def has_keyring() -> bool:
    """Return whether the package is installed that reads the keyring of the system."""
    try:
        return importlib.util.find_spec("keyring") is not None
    except ValueError:  # the module exists, but has no specification
        return True


def _read_keyring(name: str) -> str:
    """Return the key of a remote in the keyring; "" if there is none. Raises RemoteSetupError without the package."""
    try:
        import keyring
    except ImportError:
        raise RemoteSetupError(
            f"The API key of the remote {name} is in the keyring, but the package keyring is not installed. "
            "Install it, or name an environment variable in api_key_env."
        ) from None
    try:
        return str(keyring.get_password(KEYRING_SERVICE, name) or "").strip()
    except Exception as error:
        raise RemoteSetupError(
            f"The keyring cannot be read ({type(error).__name__}). Unlock it, or name an environment variable in "
            f"api_key_env of the remote {name}."
        ) from error
