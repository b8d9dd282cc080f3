"""One engine with the starter model for all tests of a file, because each load takes time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.planner.plan import manual_plan
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.bindings import Bindings, load


def load_request(client: EngineClient, path: Path, n_ctx: int = 2048) -> protocol.Load:
    return protocol.Load(id=client.next_id(), plan=manual_plan(str(path), n_ctx=n_ctx, n_threads=2))


@pytest.fixture(scope="module")
def engine(starter: Path, warm_verdicts: Path) -> Iterator[EngineClient]:
    before = os.environ.get("EDGECHAT_HOME")
    os.environ["EDGECHAT_HOME"] = str(warm_verdicts.parent.parent)
    client = EngineClient()
    try:
        client.load(load_request(client, starter))
        yield client
    finally:
        client.close()
        if before is None:
            del os.environ["EDGECHAT_HOME"]
        else:
            os.environ["EDGECHAT_HOME"] = before


@pytest.fixture
def native() -> Bindings:
    """llama.cpp loaded into the test process, for tests of the wrappers."""
    bundle = find_bundle()
    return load(bundle, probe.choose_module(bundle)[0])
