"""Addresses that limits apply to."""

from __future__ import annotations

import pytest

from edgechat.serve.addresses import LOOPBACK, is_loopback, parse_client_address


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", LOOPBACK), ("127.8.8.8", LOOPBACK), ("::1", LOOPBACK), ("::ffff:127.0.0.1", LOOPBACK),
        ("192.168.1.7", "192.168.1.7"), ("::ffff:192.168.1.7", "192.168.1.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64"), ("unix", "unix"), ("", ""),
    ],
)  # fmt: skip
def test_all_addresses_of_one_client_are_one(host: str, address: str) -> None:
    assert parse_client_address(host) == address


def test_loopback_names() -> None:
    assert all(is_loopback(host) for host in ("localhost", "LOCALHOST", "127.0.0.2", "::1"))
    assert not any(is_loopback(host) for host in ("", "localhost.example", "10.0.0.1", "0.0.0.0", "::"))  # noqa: S104
