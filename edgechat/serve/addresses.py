"""Client addresses: loopback detection, and the address under which limits count a client."""

from __future__ import annotations

import ipaddress
from typing import Final

LOOPBACK: Final = "loopback"
"""Address under which limits count all clients on this machine."""


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is a loopback address, which only this machine can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_client_address(host: str) -> str:
    """Return the address under which limits count a client: an IPv4 address, an IPv6 /64 network, or `LOOPBACK`."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_loopback:
        return LOOPBACK
    return str(address if address.version == 4 else ipaddress.ip_network((address, 64), strict=False))  # noqa: PLR2004
