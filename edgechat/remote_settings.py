"""The setting `remotes`: servers with an OpenAI-compatible API, each with its name, URL and API key variable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

KEYRING: Final = "keyring"
"""Value of `api_key_env` for a key in the keyring of the system, instead of the name of an environment variable."""
ROUTE: Final = "route"
"""Value of the setting `model` that chooses one of two models for each message, by the setting `route`."""
RESERVED_NAMES: Final = ("auto", ROUTE, "starter")
"""Names that the setting `model` uses for other purposes."""
_MAX_NAME_CHARS: Final = 32
_NAME_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_MAX_URL_CHARS: Final = 2000


class RemoteSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Server with an OpenAI-compatible API, such as llama-server, vLLM, Ollama or `edgechat serve` on another machine.

    The settings never contain a key: `api_key_env` only names where it is.
    """

    url: str
    """URL of the API, such as `http://192.168.1.5:8080/v1`."""
    api_key_env: str = ""
    """Environment variable with the API key, or `keyring`; "" if the server needs no key."""
    model: str = ""
    """Model that the name of the remote alone means; "" if there is none."""

    def to_table(self) -> dict[str, str]:
        """Return the entry as it is saved in the settings file, without empty values."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value}


def parse_remotes(value: object) -> tuple[dict[str, RemoteSettings], dict[str, str]]:
    """Parse the table `remotes` of a settings file; return the valid remotes, and the reasons against the others.

    A reason is a clause whose subject is the entry, such as `must have a url`.
    """
    if not isinstance(value, Mapping):
        return {}, {"": "must be a table of remotes, such as [remotes.box] with a url"}
    remotes: dict[str, RemoteSettings] = {}
    problems: dict[str, str] = {}
    for name, entry in value.items():
        try:
            remote = entry if isinstance(entry, RemoteSettings) else msgspec.convert(entry, RemoteSettings)
        except (msgspec.ValidationError, RecursionError):
            problems[str(name)] = "must be a table with a url, and optionally api_key_env and model, all of them text"
            continue
        problem = check_remote(str(name), remote)
        if problem:
            problems[str(name)] = problem
        else:
            remotes[str(name)] = remote
    return remotes, problems


def is_remote_name(name: str) -> bool:
    """Return whether a remote can have this name; some of these names are reserved."""
    return 0 < len(name) <= _MAX_NAME_CHARS and _NAME_CHARS.issuperset(name) and name[0].isalnum()


def check_remote(name: str, remote: RemoteSettings) -> str:
    """Return the reason why a remote is invalid, as a clause; "" if it is valid."""
    if not is_remote_name(name):
        return f"must have a name of 1 to {_MAX_NAME_CHARS} characters: a to z, digits, - and _"
    if name in RESERVED_NAMES:
        return f"must have another name, because {name} has a meaning of its own"
    problem = _check_url(remote.url)
    if problem:
        return problem
    variable = remote.api_key_env
    if variable and not (variable.isascii() and variable.isidentifier()):
        # The value is not shown, because it may be a key.
        return "must name an environment variable in api_key_env, such as BOX_API_KEY, and not contain the key itself"
    if len(remote.model) > _MAX_URL_CHARS or not (remote.model.isprintable() and remote.model == remote.model.strip()):
        return "must have the name of a model in model"
    return ""


def _check_url(url: str) -> str:
    """Return the reason why a URL cannot be used, without the URL itself, which may contain a password."""
    import urllib.parse  # slow to import, and only needed if there are remotes

    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  (parsed on access)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return "must have a valid url, such as http://192.168.1.5:8080/v1"
    if not is_valid or not (url.isascii() and url.isprintable()) or " " in url or len(url) > _MAX_URL_CHARS:
        return "must have a url that begins with http:// or https://, such as http://192.168.1.5:8080/v1"
    if parts.username is not None or parts.password is not None:
        return "must have a url without a user name or password; api_key_env names the variable with a key"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "must have a url without ? and #"
    return ""
