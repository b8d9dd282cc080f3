"""A GPU that is there, has too little memory, lies, fails in use, or is gone: a scripted one, as a real module."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgechat.catalogue.library import starter_model
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError
from edgechat.hardware.profile import Gpu
from edgechat.models import resources as machine_module
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.store import ephemeral_store
from tests.conftest import Cli
from tests.faults.test_backends import copy_bundle, headers

__all__ = ["headers"]  # a fixture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripted GPU is built for Linux")
MIB = 1 << 20
Open = Callable[..., Session]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, headers: Path, warm_verdicts: Path) -> Path:
    """The native bundle with a module for a GPU in it; it has the name of a real kind."""
    directory = copy_bundle(tmp_path_factory.mktemp("gpu") / "bundle")
    build_gpu(headers, directory, directory / "libggml-vulkan.so")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"].append("libggml-vulkan.so")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def build_gpu(headers: Path, libraries: Path, target: Path) -> None:
    """Compile the scripted GPU, which computes with the CPU's real module."""
    real = probe.choose_module(find_bundle())[0].path
    subprocess.run(
        ["c++", "-std=c++17", "-shared", "-fPIC", f'-DREAL="{real}"', f"-I{headers}", str(Path(__file__).parent / "gpu.cpp"),
         "-o", str(target), f"-L{libraries}", "-lggml-base", "-Wl,-rpath,$ORIGIN"],
        check=True,
    )  # fmt: skip


@pytest.fixture
def add_ons(monkeypatch: pytest.MonkeyPatch, headers: Path, warm_verdicts: Path, tmp_path: Path) -> Path:
    """Where packages are installed, and in it one that brings a module for a GPU to the bundle of the working tree."""
    site = tmp_path / "site"
    package = site / "edgechat_cuda13"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    directory = Path(find_bundle().directory)
    build_gpu(headers, directory, package / "libggml-cuda.so")
    manifest = json.loads((directory / "manifest.json").read_text()) | {"files": ["libggml-cuda.so"]}
    (package / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


def test_a_package_beside_edgechat_brings_a_gpu(opened: Open, add_ons: Path) -> None:
    session = opened(EDGECHAT_NATIVE_DIR=find_bundle().directory)
    assert layers(session) == 31
    assert session.warnings == []
    assert said(session)


def test_of_two_packages_one_is_used_and_one_for_another_build_is_named(add_ons: Path, cli: Cli) -> None:
    shutil.copytree(add_ons / "edgechat_cuda13", add_ons / "edgechat_cuda12")
    judged = probe.gpu_module_verdicts(find_bundle(), probe.choose_module(find_bundle())[0])
    assert [(module.path.split("/")[-2], verdict.status) for module, verdict in judged] == [
        ("edgechat_cuda13", "passed")
    ]
    (add_ons / "edgechat_cuda13" / "libggml-cuda.so").write_bytes(b"no library")
    judged = probe.gpu_module_verdicts(find_bundle(), probe.choose_module(find_bundle())[0])
    assert [verdict.status for _, verdict in judged] == ["refused", "passed"]
    for name, change in (("edgechat_cuda13", '"0c1e57098"'), ("edgechat_cuda12", "{")):
        path = add_ons / name / "manifest.json"
        path.write_text(path.read_text().replace(change, '"1234567"'))
    assert find_bundle().gpu_modules == ()
    told = cli("doctor")
    assert "edgechat_cuda13 is for llama.cpp 1234567, but edgechat uses 0c1e57098" in told.stdout
    assert "edgechat_cuda12 is damaged" in told.stdout
    assert told.returncode == 0


@pytest.fixture
def opened(bundle: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Open:
    """Open a conversation on a machine with the scripted GPU."""

    def start(settings: Settings | None = None, **environment: object) -> Session:
        monkeypatch.setenv("EDGECHAT_NATIVE_DIR", str(bundle))
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        session = Session(
            ephemeral_store(), settings or Settings(n_ctx=1024, temperature=0.0, max_tokens=12), starter_model()
        )
        request.addfinalizer(session.close)
        session.open()
        return session

    return start


def said(session: Session, text: str = "What is gravity?") -> str:
    *_, last = session.send(text)
    return last.reply.text  # type: ignore[union-attr]


def layers(session: Session) -> int:
    assert session.plan is not None
    return session.plan.options.n_gpu_layers


def test_a_model_lies_on_a_gpu_as_a_whole_and_says_what_the_cpu_says(opened: Open) -> None:
    on_cpu = opened(Settings(n_ctx=1024, temperature=0.0, max_tokens=12, gpu=False))
    assert layers(on_cpu) == 0
    on_gpu = opened()
    assert layers(on_gpu) == 31
    assert on_gpu.warnings == []
    memory = on_gpu.engine.stats().memory
    assert memory["Scripted"]["model_bytes"] > 50 * MIB
    assert memory["Scripted"]["context_bytes"] > 0
    assert said(on_gpu)[:20] == said(on_cpu)[:20]


def test_what_has_no_room_stays_with_the_cpu(opened: Open) -> None:
    session = opened(GPU_BYTES=100 * MIB)
    assert 0 < layers(session) < 30
    assert session.plan is not None
    assert "for more it has no room" in session.plan.concessions[0]
    assert 0 < session.engine.stats().memory["Scripted"]["model_bytes"] < 90 * MIB
    assert said(session)


def test_memory_that_runs_out_at_load_is_a_step_down_aloud(opened: Open) -> None:
    session = opened(GPU_SAYS_BYTES=1024 * MIB, GPU_BYTES=40 * MIB)
    assert layers(session) < 31
    assert any("the GPU could not be used" in words for words in session.warnings)
    assert said(session)


def test_a_gpu_that_fails_in_use_leaves_the_work_to_the_cpu(opened: Open, tmp_path: Path) -> None:
    session = opened(GPU_FAILS_IF=tmp_path / "fails")
    assert layers(session) == 31
    (tmp_path / "fails").touch()
    with pytest.raises(EngineError, match="from here on the CPU computes"):
        said(session)
    assert layers(session) == 0
    assert said(session)


def test_a_gpu_that_fails_its_test_is_not_used(opened: Open) -> None:
    session = opened(GPU_WRONG=1)
    assert layers(session) == 0
    [warning] = session.warnings
    assert "vulkan" in warning
    assert "computes wrong numbers" in warning
    assert said(session)


def test_a_gpu_that_was_never_there_is_not_missed_and_one_that_is_gone_is(opened: Open) -> None:
    session = opened(GPU_GONE=1)
    assert (layers(session), session.warnings) == (0, [])
    machine_module.save_gpus([Gpu(name="a card", total_bytes=1, free_bytes=1)])
    session = opened(GPU_GONE=1)
    assert (layers(session), session.warnings) == (0, ["a card is not there any more; the CPU computes"])
    assert said(session)
    assert machine_module.saved_gpus() == []


def test_without_its_engine_a_plan_knows_the_gpu_that_was_found(opened: Open, cli: Cli) -> None:
    opened().close()
    [gpu] = machine_module.saved_gpus()
    assert machine_module.current_machine(Settings()).gpu_free_bytes == gpu.free_bytes - gpu.total_bytes // 8
    assert machine_module.current_machine(Settings(gpu=False)).gpu_free_bytes == 0
    row = json.loads(cli("plan", "starter", "--json", "--no-measure").stdout)["models"][0]
    assert row["plan"]["n_gpu_layers"] == 31
    assert "a scripted GPU takes 30 of 30 layers" in row["reasons"]["n_gpu_layers"]


def test_what_there_is_to_compute_with_can_be_asked(opened: Open, cli: Cli) -> None:
    opened().close()
    engine = EngineClient()
    try:
        found = engine.list_devices(benchmark=False)
    finally:
        engine.close()
    [gpu] = found.gpus
    assert (gpu.name, gpu.total_bytes, gpu.is_unified) == ("a scripted GPU", 1 << 30, False)
    assert found.problems == []
    shown = json.loads(cli("doctor", "--json").stdout)
    assert [b["module"] for b in shown["backends"] if b["status"] == "passed"][-1] == "vulkan"
