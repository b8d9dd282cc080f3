"""Plugin of pytest for llama.cpp's tests of llama-server: `edgechat serve` takes the place of llama-server.

It runs in the directory `tools/server/tests` of llama.cpp's source. The starter takes the place of the tiny chat
models, and tiny random models that of the models for embeddings, reranking and infilling. Where a test expects words of
its own model, any text will do. Tests with the same options share a server, one after the other. Tests in the list
`not_applicable.toml` are left out, unless SUITE_RUNS_ALL is set. SUITE_MAX_CASES is the number of cases of each
parametrized test to run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serve.client import ServerProcess
from tests.serve.llama_cpp_suite import not_applicable
from tests.serve.llama_cpp_suite.models import TestModels

if TYPE_CHECKING:
    from collections.abc import Callable

# `utils.py` imports the package, which downloads models for tests that are left out.
sys.modules.setdefault("wget", types.ModuleType("wget"))
# Servers that stay open for later tests with the same options.
_MAX_SERVERS = 4
_REQUEST_TIMEOUT_S = 900
# Tests that expect the same text again. In edgechat, only the setting `strict` guarantees that.
_STRICT_TESTS = ("test_consistent_result_", "test_completion_stream_vs_non_stream")


class Servers:
    """Servers by their options."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._strict_home = home / "strict"
        shutil.copytree(home / "cache", self._strict_home / "cache")
        (self._strict_home / "config").mkdir()
        (self._strict_home / "config" / "config.toml").write_text("strict = true\n", encoding="utf-8")
        self._models = TestModels(home)
        self.is_strict = False
        self._servers: dict[tuple[bool, tuple[str, ...]], ServerProcess] = {}

    def start(self, options: Any) -> int:
        """Start a server with the options of llama.cpp's `ServerProcess`, unless it runs; return its port."""
        key = self.is_strict, self._translate(options)
        server = self._servers.pop(key, None)
        if server is None or server.process.poll() is not None:
            while len(self._servers) >= _MAX_SERVERS:
                self._servers.pop(next(iter(self._servers))).close()
            server = ServerProcess(self._strict_home if self.is_strict else self._home, *key[1])
        self._servers[key] = server
        return server.port

    def close(self) -> None:
        for server in self._servers.values():
            server.close()

    def _translate(self, options: Any) -> tuple[str, ...]:
        # llama-server divides its context among the slots; edgechat's limit applies to each request.
        divides = options.n_slots and not options.kv_unified
        n_ctx = (options.n_ctx or 4096) // (options.n_slots if divides else 1)
        if options.server_embeddings or options.server_reranking:
            model = self._models.encoder(options.model_alias, n_ctx, reranks=bool(options.server_reranking))
            arguments = ["-m", str(model)]
        elif "infill" in (options.model_alias or ""):
            arguments = ["-m", str(self._models.infill(options.model_alias))]
        else:
            template = Path(options.chat_template_file).read_text("utf-8") if options.chat_template_file else None
            model = self._models.chat(options.model_alias, template)
            arguments = ["-m", str(model), "--ctx", str(n_ctx)]
            arguments += ["--seed", str(options.seed), "--temperature", str(options.temperature)]
        if (options.n_predict or 0) > 0:
            arguments += ["--max-tokens", str(options.n_predict)]
        if options.api_key:
            arguments += ["--api-key", options.api_key]
        if options.reasoning in {"on", "off"}:
            arguments += ["--reasoning" if options.reasoning == "on" else "--no-reasoning"]
        return tuple(arguments)


class Suite:
    """Hooks of pytest that replace the server, leave out tests and write the outcomes to a file."""

    def __init__(self, servers: Servers, report: Path) -> None:
        self._servers = servers
        self._report = report
        self._outcomes: dict[str, list[str]] = {}
        self._reasons: dict[str, str] = {}
        self._unmatched: list[str] = []

    @pytest.hookimpl(trylast=True)  # after the option `-m`
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._reasons, self._unmatched = not_applicable.find([item.nodeid for item in items])
        if not os.environ.get("SUITE_RUNS_ALL"):
            config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self._reasons])
            items[:] = [item for item in items if item.nodeid not in self._reasons]
        n_cases: Counter[str] = Counter()
        kept_items: list[pytest.Item] = []
        for item in items:
            function = item.nodeid.partition("[")[0]
            n_cases[function] += 1
            if n_cases[function] <= int(os.environ["SUITE_MAX_CASES"]):
                kept_items.append(item)
        items[:] = kept_items

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._servers.is_strict = item.name.startswith(_STRICT_TESTS)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = self._outcomes.setdefault(report.nodeid, ["passed", ""])
        if report.outcome != "passed" and outcome[0] != "failed":
            outcome[:] = [report.outcome, report.longreprtext if report.failed else str(report.longrepr)]

    def pytest_sessionfinish(self) -> None:
        self._servers.close()
        content = {"outcomes": self._outcomes, "not_applicable": self._reasons, "unmatched": self._unmatched}
        self._report.write_text(json.dumps(content), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    sys.path.insert(0, str(Path.cwd()))
    import utils  # type: ignore[import-not-found]

    servers = Servers(Path(os.environ["EDGECHAT_HOME"]))
    config.pluginmanager.register(Suite(servers, Path(os.environ["SUITE_REPORT"])))

    def start(options: Any, timeout_seconds: int = 60) -> None:
        options.server_port = servers.start(options)
        options.ready = True

    def stop(options: Any) -> None:
        utils.server_instances.discard(options)

    def make_request(options: Any, *arguments: Any, **fields: Any) -> Any:
        # A limit only ends a test that hangs: a busy machine needs longer than llama.cpp's limits.
        return request(options, *arguments, **fields | {"timeout": _REQUEST_TIMEOUT_S})

    request = utils.ServerProcess.make_request
    replacements: dict[str, Callable[..., Any]] = {"start": start, "stop": stop, "make_request": make_request}
    for name, replacement in replacements.items():
        setattr(utils.ServerProcess, name, replacement)

    def match_regex(pattern: str, text: str) -> bool:
        return bool(text) if pattern in words else match(pattern, text)

    words, match = not_applicable.read_words(), utils.match_regex
    utils.match_regex = match_regex
    utils.ServerPreset.load_all = staticmethod(lambda: None)
