"""Network settings of the environment: proxies, certificates, and errors during the set-up of a network library."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import re
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from edgechat.errors import EdgechatError, HubError, format_reason

# Variables with the certificate file or directory, in order of precedence. OpenSSL reads the first two; the others are
# the variables of requests and of curl, which many companies set.
_CERTIFICATE_VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_DEFAULT_PROXY_PORT: Final = 80
_TLS_PORT: Final = 443


class NetworkSetupError(HubError):
    """Raised before a connection if a network setting of the environment is invalid. A retry would fail as well."""


class Proxy(NamedTuple):
    """HTTP proxy for one URL."""

    host: str
    port: int
    headers: dict[str, str]
    """Proxy-Authorization header; empty if the proxy address has no user name."""
    source: str
    """Environment variable with the address of the proxy."""


def find_proxy(url: urllib.parse.SplitResult) -> Proxy | None:
    """Return the proxy for `url`, or None for a direct connection. Raises NetworkSetupError for an unusable proxy.

    Like curl, uses the variable of the URL's scheme (`https_proxy`), or else `all_proxy`, unless `no_proxy` excludes
    the host. Settings that do not apply to the URL are never parsed.
    """
    proxies = urllib.request.getproxies()
    name = next((name for name in (url.scheme, "all") if proxies.get(name)), None)
    host = url.hostname or ""
    port = url.port or (_TLS_PORT if url.scheme == "https" else 80)
    if name is None or _is_excluded(host, port, proxies.get("no", "")) or urllib.request.proxy_bypass(host):
        return None
    source = _find_variable(f"{name}_proxy")
    scheme, address = _parse_address(proxies[name].strip())
    advice = f"Set {source} to http://HOST:PORT, or add {host} to no_proxy to connect without a proxy."
    if scheme.startswith("socks"):
        raise NetworkSetupError(f"{source} is a SOCKS proxy ({scheme}://), which edgechat cannot use. {advice}")
    if scheme == "https":
        raise NetworkSetupError(f"{source} is an https:// address, but edgechat uses proxies over http://. {advice}")
    if scheme != "http" or address is None:
        # The message omits the address, because it may contain a password.
        raise NetworkSetupError(f"{source} is not a valid proxy address. {advice}")
    return Proxy(address.hostname or "", address.port or _DEFAULT_PROXY_PORT, _make_headers(address), source)


def _parse_address(text: str) -> tuple[str, urllib.parse.SplitResult | None]:
    """Return scheme and parts of a proxy address, which may lack its scheme. The parts are None if it is invalid."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        scheme, text = "http", f"http://{text}"
        if "/" in text.removeprefix("http://").rstrip("/"):
            return scheme, None
    try:
        parts = urllib.parse.urlsplit(text)
        is_valid = parts.hostname and parts.port != 0 and text.isascii() and text.isprintable() and " " not in text
    except ValueError:
        return scheme.lower(), None
    return scheme.lower(), parts if is_valid else None


def _make_headers(address: urllib.parse.SplitResult) -> dict[str, str]:
    if not address.username:
        return {}
    user = f"{urllib.parse.unquote(address.username)}:{urllib.parse.unquote(address.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}


def _find_variable(lower_name: str) -> str:
    names = (name for name in (lower_name, lower_name.upper()) if os.environ.get(name))
    return next(names, "the system's proxy setting")


def _is_excluded(host: str, port: int, no_proxy: str) -> bool:
    """Return whether a `no_proxy` entry (`*`, domain, address or network, with or without a port) matches the host."""
    for entry in re.split(r"[,\s]+", no_proxy.lower()):
        name = (entry.partition("://")[2] or entry).rstrip("/") if "://" in entry else entry
        if name == "*" or _is_in_network(host, name):
            return True
        match = re.fullmatch(r"(\[[^]]*\]|[^:]*):(\d+)", name)
        if match is not None:
            if int(match[2]) != port:
                continue
            name = match[1]
        name = name.strip("[]").lstrip("*").lstrip(".").rstrip(".")
        if name and (host.rstrip(".") == name or host.rstrip(".").endswith(f".{name}") or _is_in_network(host, name)):
            return True
    return False


def _is_in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network.strip("[]"), strict=False)
    except ValueError:
        return False


def make_tls_context() -> ssl.SSLContext:
    """Return the TLS context for all https connections. Raises NetworkSetupError if the certificates cannot be read.

    The certificates are those of `SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE`, whichever
    is set first, or else those of the system.
    """
    variable = next((name for name in _CERTIFICATE_VARIABLES if os.environ.get(name)), None)
    if variable is None:
        with translate_setup_errors():
            import httpx2

            return httpx2.create_ssl_context()
    value = os.environ[variable]
    try:
        if any(Path(path).is_dir() for path in value.split(os.pathsep)):
            return ssl.create_default_context(capath=value)
        return ssl.create_default_context(cafile=value)
    except (OSError, ValueError) as error:
        reason = "it contains no certificates" if isinstance(error, ssl.SSLError) else format_reason(error)
        if isinstance(error, OSError) and error.filename:  # SSLKEYLOGFILE, which every new context opens
            variable, value = "SSLKEYLOGFILE", error.filename
        raise NetworkSetupError(
            f"{variable} is set to {value}, which cannot be used: {reason}. Correct or unset this variable."
        ) from None


@contextlib.contextmanager
def translate_setup_errors(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Context manager for the set-up of a network library: raise NetworkSetupError instead of any other exception.

    The message names the variables of the hub and of TLS whose values occur in the exception.
    """
    try:
        yield
    except EdgechatError:
        raise
    except Exception as error:
        reason = format_reason(error).rstrip(".")
        names = [
            name
            for name, value in environment.items()
            if name.startswith(("HF_", "SSL")) and not name.startswith("HF_HUB_DISABLE") and value and value in reason
        ]
        raise NetworkSetupError(
            f"Cannot prepare network access: {reason}. "
            f"Check {' and '.join(names) or 'the variables HF_HOME, HF_ENDPOINT and HF_TOKEN'}."
        ) from error
