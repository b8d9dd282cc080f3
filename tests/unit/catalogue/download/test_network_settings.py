"""Proxies and certificates of the environment, used alike by searches and downloads."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat.catalogue import hub
from edgechat.catalogue.download import http
from edgechat.catalogue.download.network_settings import (
    NetworkSetupError,
    find_proxy,
    make_tls_context,
    translate_setup_errors,
)
from edgechat.errors import HubError
from tests.hub import FakeRepo, LocalHub, local_hub

HUB = "http://hub.example.test"


@pytest.fixture(autouse=True)
def no_network_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HF_TOKEN", "HF_ENDPOINT"]
    for scheme in ("http", "https", "all", "no"):
        names += [f"{scheme}_proxy", f"{scheme.upper()}_PROXY"]
    for name in names:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[LocalHub]:
    """A local hub that is also a proxy for http, because it ignores the host in the URL of a request."""
    with local_hub() as local:
        local.repos["own/tiny"] = FakeRepo({"tiny-Q4_0.gguf": b"GGUF"})
        yield local


def choose(url: str, monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """Return `HOST:PORT` of the proxy for `url`, "direct", or the error message."""
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            proxy = find_proxy(urllib.parse.urlsplit(url))
        except HubError as error:
            return str(error)
    return f"{proxy.host}:{proxy.port}" if proxy else "direct"


@pytest.mark.parametrize(
    ("variables", "for_http", "for_https"),
    [
        ({}, "direct", "direct"),
        ({"http_proxy": "http://a:1", "ALL_PROXY": "socks5://b:2"}, "a:1", "ALL_PROXY is a SOCKS proxy (socks5://)"),
        ({"https_proxy": "socks5h://b:2"}, "direct", "https_proxy is a SOCKS proxy (socks5h://)"),
        ({"HTTP_PROXY": "http://[", "https_proxy": "a:1"}, "HTTP_PROXY is not a valid proxy address", "a:1"),
        ({"all_proxy": "socks://127.0.0.1:1080/"}, "all_proxy is a SOCKS proxy", "all_proxy is a SOCKS proxy"),
        ({"ALL_PROXY": "http://a:1"}, "a:1", "a:1"),
        ({"ALL_PROXY": "http://a:1", "https_proxy": "http://b:2"}, "a:1", "b:2"),
        ({"http_proxy": "", "HTTP_PROXY": "http://a:1"}, "direct", "direct"),
        ({"all_proxy": "//a:1"}, "not a valid proxy address", "not a valid proxy address"),
        ({"all_proxy": "proxy"}, "proxy:80", "proxy:80"),
        ({"all_proxy": " http://a:1/ "}, "a:1", "a:1"),
        ({"all_proxy": "http:/a:1"}, "not a valid proxy address", "not a valid proxy address"),
        ({"all_proxy": "http://a:99999"}, "not a valid proxy address", "not a valid proxy address"),
        ({"all_proxy": "http://"}, "not a valid proxy address", "not a valid proxy address"),
        ({"all_proxy": "http://a b:1"}, "not a valid proxy address", "not a valid proxy address"),
        ({"all_proxy": "quic://a:1"}, "not a valid proxy address", "not a valid proxy address"),
        ({"all_proxy": "https://a:1"}, "is an https:// address", "is an https:// address"),
        ({"ftp_proxy": "socks5://b:2", "socks_proxy": "b:2"}, "direct", "direct"),
        ({"all_proxy": "socks5://b:2", "no_proxy": "*"}, "direct", "direct"),
        ({"all_proxy": "nonsense://[", "NO_PROXY": "example.test"}, "direct", "direct"),
    ],
)  # fmt: skip
def test_only_the_proxy_for_the_scheme_is_used_or_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], for_http: str, for_https: str
) -> None:
    for scheme, expected in (("http", for_http), ("https", for_https)):
        chosen = choose(f"{scheme}://hub.example.test/x", monkeypatch, **variables)
        assert expected in chosen
        assert "\n" not in chosen


@pytest.mark.parametrize(
    ("no_proxy", "excluded", "included"),
    [
        ("example.test", "http://hub.example.test http://example.test", "http://badexample.test"),
        (".example.test", "http://hub.example.test http://HUB.EXAMPLE.TEST", "http://example.com"),
        ("*.example.test", "http://hub.example.test", "http://other.test"),
        ("hub.example.test:8080", "http://hub.example.test:8080", "http://hub.example.test"),
        ("a.test b.test,,c.test:443", "http://a.test http://b.test https://c.test", "http://c.test http://d.test"),
        ("10.0.0.0/8", "http://10.1.2.3", "http://11.1.2.3 http://hub.example.test"),
        ("127.0.0.1", "http://127.0.0.1:80", "http://127.0.0.2"),
        ("::1,fe80::/10", "http://[::1]:8 http://[fe80::1]", "http://[2001:db8::1]"),
        ("[::1]:8", "http://[::1]:8", "http://[::1]:9"),
        ("https://hub.example.test", "https://hub.example.test", "http://other.test"),
        ("[,:,/,*x*,999.1.1.1/99", "", "http://hub.example.test http://10.0.0.1"),
    ],
)
def test_forms_of_no_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str, excluded: str, included: str) -> None:
    for url in excluded.split():
        assert choose(url, monkeypatch, all_proxy="a:1", no_proxy=no_proxy) == "direct", url
    for url in included.split():
        assert choose(url, monkeypatch, all_proxy="a:1", no_proxy=no_proxy) == "a:1", url


def test_password_of_a_proxy_is_sent_to_the_proxy_but_never_shown(
    server: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = server.url.removeprefix("http://")
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@{address}")
    monkeypatch.setenv("HF_ENDPOINT", HUB)
    hub.Hub().search("tiny")
    assert server.requests[-1][2]["Proxy-Authorization"] == "Basic bWU6cEBzcw=="
    for value in ("http://me:secret@[", "socks5://me:secret@a:1", "https://me:secret@a:1"):
        assert "secret" not in choose(HUB, monkeypatch, http_proxy=value)


def test_searches_and_downloads_use_the_same_proxy(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", HUB)
    for variables in ({"http_proxy": server.url, "ALL_PROXY": "socks5://127.0.0.1:1"}, {"ALL_PROXY": server.url}):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert [result.id for result in hub.Hub().search("tiny")] == ["own/tiny"]
            with http.get(f"{HUB}/api/models") as response:
                assert response.status == 200
    for value in ("socks5://127.0.0.1:1", "socks://127.0.0.1:1/", "http://["):
        monkeypatch.setenv("ALL_PROXY", value)
        messages = set()
        for request in (lambda: hub.Hub().search("tiny"), lambda: http.get(f"{HUB}/api/models")):
            with pytest.raises(NetworkSetupError, match="ALL_PROXY") as error:
                request()
            messages.add(str(error.value))
        assert len(messages) == 1


def test_unreachable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with pytest.raises(HubError, match=r"Cannot reach hub.example.test through the proxy 127.0.0.1 \(HTTP_PROXY\)"):
        http.get(HUB)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_unusable_certificate_file_is_named_for_https_only(
    server: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    for path in (tmp_path / "missing.pem", tmp_path / "text.pem"):
        monkeypatch.setenv(variable, str(path))
        for request in (lambda: http.get("https://127.0.0.1:1"), make_tls_context):
            with pytest.raises(NetworkSetupError, match=f"{variable} is set to .*, which cannot be used"):
                request()
        http.get(f"{server.url}/api/models").close()
    monkeypatch.setenv(variable, "")
    make_tls_context()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    make_tls_context()
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing/keys.log"))
    with pytest.raises(NetworkSetupError, match="SSLKEYLOGFILE"):
        make_tls_context()


@pytest.mark.parametrize(
    "endpoint",
    ["huggingface.co", "htp://a", "http://[", "https://", "http://a:99999", "http://a b", "file:///etc", "x"],
)
def test_invalid_endpoint_is_named(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(NetworkSetupError, match="HF_ENDPOINT is set to"):
        hub.Hub()


def test_token_with_invalid_characters_is_refused_but_a_final_newline_is_not(
    server: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_right\r\n")
    hub.Hub().search("tiny")
    sent = {name.lower(): value for name, value in server.requests[-1][2].items()}
    assert sent["authorization"] == "Bearer hf_right"
    for token in ("hf_ä", "hf_\x1b", "hf a", "“hf_x”"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(NetworkSetupError, match="HF_TOKEN") as error:
            hub.Hub()
        assert token not in str(error.value)


def test_set_up_errors_name_the_variable() -> None:
    environment = {"HF_HUB_ETAG_TIMEOUT": "abc", "PATH": "abc"}
    for exception in (ImportError("No module named 'x'"), ValueError("invalid int: 'abc'"), KeyError("k")):
        with pytest.raises(NetworkSetupError, match="Check ") as error, translate_setup_errors(environment):
            raise exception
        assert ("HF_HUB_ETAG_TIMEOUT" in str(error.value)) is isinstance(exception, ValueError)
    with pytest.raises(HubError, match="as it is"), translate_setup_errors():
        raise HubError("as it is")
    with contextlib.suppress(KeyboardInterrupt), translate_setup_errors():
        raise KeyboardInterrupt
