"""The real Vulkan module on lavapipe, Mesa's driver that computes on the CPU: tests, replies, and failures in use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgechat.catalogue.library import starter_model
from edgechat.chat.events import ReplyTextGenerated, SessionEvent, TurnFinished
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.models import resources
from edgechat.runtime.backends import gpu_probe, gpu_speeds, gpu_type_tests, probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.gpu_device_test import ALL, Demand
from edgechat.runtime.backends.verdicts import Verdict
from edgechat.store import open_ephemeral_store
from tests.conftest import ROOT, Cli
from tests.faults.test_backends import copy_bundle
from tests.faults.test_gpu import Turn, n_gpu_layers, reply
from tests.serve.client import CERTAIN_PROMPT

pytestmark = [
    pytest.mark.long,
    pytest.mark.cold,
    pytest.mark.skipif(sys.platform != "linux", reason="the driver is installed from Debian's packages"),
]
Q4_0, Q4_1, Q8_0, Q4_K = 2, 3, 8, 12
MIB = 1 << 20
OpenSession = Callable[..., Session]
ON_CPU = Settings(n_ctx=512, temperature=0.0, max_tokens=12, gpu=False)


@pytest.fixture(scope="module")
def native() -> Iterator[Any]:
    """The modules of the native build; skips the tests if Debian's packages cannot be had."""
    sys.path.insert(0, str(ROOT / "native"))
    import debian_packages
    import toolchain
    import vulkan_module

    try:
        vulkan_module.shader_tools()
        debian_packages.unpacked("libvulkan1", "mesa-vulkan-drivers")
    except toolchain.BuildError as error:
        pytest.skip(f"needs Debian's packages of Vulkan: {error}")
    yield vulkan_module
    sys.path.remove(str(ROOT / "native"))


@pytest.fixture(scope="module")
def driver(native: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables that select lavapipe, behind a loader with scripted faults."""
    root: Path = native.debian_packages.unpacked("libvulkan1", "mesa-vulkan-drivers")
    folder = tmp_path_factory.mktemp("driver")
    [manifest] = (root / "usr" / "share" / "vulkan" / "icd.d").glob("lvp_icd*.json")
    content = json.loads(manifest.read_text())
    content["ICD"]["library_path"] = str(root) + content["ICD"]["library_path"]
    (folder / "lvp.json").write_text(json.dumps(content))
    libraries = native.debian_packages.library_path(root)
    [real] = root.glob("usr/lib/*/libvulkan.so.1")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", f'-DREAL="{real}"', str(Path(__file__).parent / "vulkan_loader.c"),
         "-o", str(folder / "libvulkan.so.1"), "-Wl,-soname,libvulkan.so.1"],
        check=True,
    )  # fmt: skip
    return {
        "LD_LIBRARY_PATH": os.pathsep.join([str(folder), libraries]),
        "VK_DRIVER_FILES": str(folder / "lvp.json"), "VK_ICD_FILENAMES": str(folder / "lvp.json"),
        "GGML_VK_VISIBLE_DEVICES": "0", "EDGECHAT_TEST_VULKAN_ON_CPU": "1",
        "EDGECHAT_TEST_IGNORE_GPU_SPEED": "1",
        # Compiled shaders are kept for the next run, but not among the files of the user.
        "MESA_SHADER_CACHE_DIR": str(native.cache_dir() / "shaders"),
        # The driver of Mesa 22.3 crashes when it compiles a shader while another one runs.
        "GGML_VK_SERIALIZE_SUBMISSIONS": "1",
    }  # fmt: skip


def add_module(directory: Path, module: Path) -> Path:
    """Add the Vulkan module to a copy of the bundle and return the copy."""
    copy_bundle(directory)
    shutil.copy(module, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"].append(module.name)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.fixture(scope="module")
def bundle(native: Any, tmp_path_factory: pytest.TempPathFactory, warm_verdicts: Path) -> Path:
    module: Path = native.module_prefix() / "libggml-vulkan.so"
    return add_module(tmp_path_factory.mktemp("vulkan") / "bundle", module)


def check(demand: Demand) -> Verdict:
    [(_, verdict)] = gpu_probe.check_gpu_modules(find_bundle(), probe.choose_module(find_bundle())[0], demand=demand)
    return verdict


@pytest.fixture(scope="module")
def saved_verdicts(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, warm_verdicts: Path, driver: dict[str, str]
) -> Path:
    """Return the path of a verdict file with a test of the types of the starter model, and of its memory."""
    home = tmp_path_factory.mktemp("verdicts")
    (home / "cache").mkdir()
    shutil.copy(warm_verdicts, home / "cache")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**driver, "EDGECHAT_HOME": str(home), "EDGECHAT_NATIVE_DIR": str(bundle)}.items():
            patch.setenv(name, value)
        verdict = check(Demand(types=(Q4_1, Q8_0), n_bytes=100 * MIB))
        assert verdict.is_usable, verdict.reason
    return home / "cache" / warm_verdicts.name


def use_lavapipe(
    monkeypatch: pytest.MonkeyPatch, driver: dict[str, str], bundle: Path, home: Path, verdicts: Path
) -> None:  # fmt: skip
    """Let edgechat use `bundle` and `driver`, with a copy of the file `verdicts` in its home."""
    for name, value in {**driver, "EDGECHAT_NATIVE_DIR": str(bundle)}.items():
        monkeypatch.setenv(name, value)
    (home / "cache").mkdir(parents=True, exist_ok=True)
    shutil.copy(verdicts, home / "cache")


@pytest.fixture
def machine(
    driver: dict[str, str], bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch, saved_verdicts: Path
) -> None:
    """A machine whose only GPU is lavapipe, which has passed its test for the starter model."""
    use_lavapipe(monkeypatch, driver, bundle, home, saved_verdicts)


@pytest.fixture
def open_session(machine: None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> OpenSession:
    def start(settings: Settings | None = None, **environment: object) -> Session:
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        settings = settings or msgspec.structs.replace(ON_CPU, gpu=True)
        session = Session(open_ephemeral_store(), settings, starter_model())
        request.addfinalizer(session.close)
        session.open()
        return session

    return start


def test_driver_on_the_cpu_is_not_for_users(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECHAT_TEST_VULKAN_ON_CPU")
    verdict = check(ALL)
    assert (verdict.status, verdict.devices) == ("refused", ())


def test_loader_without_a_driver_is_refused(machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", str(tmp_path / "none.json"))
    monkeypatch.setenv("VK_ICD_FILENAMES", str(tmp_path / "none.json"))
    verdict = check(ALL)
    assert (verdict.status, verdict.devices) == ("refused", ())


def test_device_passes_with_the_types_of_a_model(machine: None) -> None:
    verdict = check(Demand())
    [device] = verdict.devices
    assert (device.name, device.kind, device.types) == ("Vulkan0", "cpu", (Q4_1, Q8_0))
    assert device.description.startswith("llvmpipe")
    assert device.driver
    assert device.allocated_bytes == 100 * MIB


def test_types_that_the_model_does_not_use_are_tested_in_idle_time(
    machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_type_tests, "TENSOR_TYPES", {n: TENSOR_TYPES[n] for n in (Q4_0, Q4_1, Q8_0)})
    gpu_type_tests.test_unused_types(find_bundle(), probe.choose_module(find_bundle())[0], lambda: False)
    verdict = check(Demand())
    assert verdict.is_usable, verdict.reason
    assert verdict.devices[0].types == (Q4_0, Q4_1, Q8_0)


def test_reply_equals_that_of_the_cpu(open_session: OpenSession) -> None:
    on_gpu = open_session()
    assert (n_gpu_layers(on_gpu), on_gpu.warnings) == (31, [])
    assert on_gpu.model.engine.stats().memory["Vulkan0"]["model_bytes"] > 50 * MIB
    on_cpu = open_session(ON_CPU)
    assert n_gpu_layers(on_cpu) == 0
    assert reply(on_gpu) == reply(on_cpu)


def test_layers_that_exceed_the_memory_stay_on_the_cpu(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_compute_gpu_budget_bytes", lambda gpu: 80 * MIB)
    session = open_session()
    assert 0 < n_gpu_layers(session) < 31
    assert 0 < session.model.engine.stats().memory["Vulkan0"]["model_bytes"] < 80 * MIB
    assert reply(session) == reply(open_session(ON_CPU))


def test_exhausted_memory_at_load_falls_back_to_the_cpu(open_session: OpenSession) -> None:
    session = open_session(VULKAN_BYTES=60 * MIB)
    assert n_gpu_layers(session) == 0
    assert any("The GPU could not be used" in words for words in session.warnings)
    assert "Vulkan0" not in session.model.engine.stats().memory
    assert reply(session) == reply(open_session(ON_CPU))


def test_stopped_reply_is_followed_by_a_right_one(open_session: OpenSession) -> None:
    session = open_session(Settings(n_ctx=512, temperature=0.0, max_tokens=100))
    for event in session.send(CERTAIN_PROMPT):
        if isinstance(event, ReplyTextGenerated):
            session.stop()
    pid = session.model.engine.pid
    session.clear_stop()
    assert reply(session)
    assert (session.model.engine.pid, n_gpu_layers(session)) == (pid, 31)


def test_reply_goes_on_after_a_lost_device_which_is_remembered(open_session: OpenSession, tmp_path: Path) -> None:
    settings = Settings(n_ctx=512, temperature=0.0, max_tokens=40)
    on_cpu = reply(open_session(msgspec.structs.replace(settings, gpu=False)))
    session = open_session(settings, VULKAN_LOST_IF=tmp_path / "lost")
    assert n_gpu_layers(session) == 31
    turn = Turn(lose_device(session.send(CERTAIN_PROMPT), tmp_path / "lost"))
    assert isinstance(turn.last, TurnFinished)
    assert turn.texts[0][:30] == on_cpu[:30]
    assert [notice.endswith("The reply continues on the CPU.") for notice in turn.notices] == [True]
    assert n_gpu_layers(session) == 0
    session = open_session()
    assert n_gpu_layers(session) == 0
    assert "vulkan: not used with SmolLM2" in session.warnings[0]


def lose_device(events: Iterator[SessionEvent], path: Path) -> Iterator[SessionEvent]:
    for event in events:
        if isinstance(event, ReplyTextGenerated):
            path.touch()
        yield event


def test_reply_goes_on_after_a_driver_that_kills_the_engine(open_session: OpenSession) -> None:
    session = open_session(Settings(n_ctx=512, temperature=0.0, max_tokens=100))
    pid = session.model.engine.pid
    assert pid is not None

    def kill_engine() -> Iterator[SessionEvent]:
        for event in session.send(CERTAIN_PROMPT):
            if isinstance(event, ReplyTextGenerated) and session.model.engine.pid == pid:
                os.kill(pid, signal.SIGSEGV)
            yield event

    turn = Turn(kill_engine())
    assert isinstance(turn.last, TurnFinished)
    assert turn.last.reply.text == turn.texts[0]
    assert len(turn.notices) == 1
    assert n_gpu_layers(session) == 0


def test_driver_on_the_cpu_is_not_used_because_of_its_speed(
    machine: None, open_session: OpenSession, monkeypatch: pytest.MonkeyPatch, home: Path, cli: Cli
) -> None:
    monkeypatch.delenv("EDGECHAT_TEST_IGNORE_GPU_SPEED")
    (home / "cache" / "backends.json").unlink()
    session = open_session()
    [device] = check(Demand()).devices
    assert gpu_speeds.describe_speed(device)[0], device
    assert device.speeds.copied_bytes_per_s > MIB
    assert session.model.plan is not None
    assert (session.model.plan.options.uses_gpu, session.warnings) == (False, [])
    reason = session.model.plan.reasons["n_gpu_layers"]
    words = f"{device.description} is not used: slower than the CPU in prefill ("
    assert reason.startswith(words)
    assert "with only prefill on the GPU" in reason
    plan = " ".join(cli("plan", "starter", "--explain", "--no-measure").stdout.split())
    assert f"n_gpu_layers = 0: {words}" in plan
    assert reply(session)


def build_wrong_module(native: Any, shader: str, change: Callable[[str], str], target: Path) -> None:
    """Link the module with one shader whose source is changed. Skips the test if the build tree was deleted."""
    tools = native.shader_tools()
    _, tree, _ = native.locate(tools)
    build, source = tree / "build", next(tree.glob("llama_cpp_python-*/vendor/llama.cpp/ggml/src/ggml-vulkan"), None)
    if source is None or not (build / "build.ninja").exists():
        pytest.skip("the build tree of the module was deleted")
    shaders = target.parent / "shaders"
    shutil.copytree(source / "vulkan-shaders", shaders)
    path = shaders / shader
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    generator, header = build / "Release" / "vulkan-shaders-gen", build / "ggml/src/ggml-vulkan/ggml-vulkan-shaders.hpp"
    code = target.parent / f"{shader}.cpp"
    subprocess.run(
        [generator, "--glslc", tools.glslc, "--source", path, "--output-dir", target.parent / "spv",
         "--target-hpp", header, "--target-cpp", code],
        check=True,
    )  # fmt: skip
    object_file = code.with_suffix(".o")
    subprocess.run(["c++", "-fPIC", "-O1", f"-I{header.parent}", "-c", code, "-o", object_file], check=True)
    ninja = native.tool("ninja")
    commands = subprocess.run(
        [ninja, "-C", build, "-t", "commands", "-s", "bin/libggml-vulkan.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    link = commands.splitlines()[-1]
    original = f"ggml/src/ggml-vulkan/CMakeFiles/ggml-vulkan.dir/{shader}.cpp.o"
    assert original in link
    link = link.replace(original, str(object_file)).replace("-o bin/libggml-vulkan.so", f"-o {target}")
    subprocess.run(link, shell=True, check=True, cwd=build)


def test_wrong_shader_is_refused_with_its_product_row_and_column(
    native: Any,
    driver: dict[str, str],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm_verdicts: Path,
) -> None:
    module = tmp_path / "module" / "libggml-vulkan.so"
    module.parent.mkdir()
    native.module_prefix()
    start = "temp[j][i] = FLOAT_TYPE(0);"
    build_wrong_module(
        native, "mul_mat_vec_q4_k.comp", lambda text: text.replace(start, "temp[j][i] = FLOAT_TYPE(0.5);"), module
    )
    for name, value in {**driver, "EDGECHAT_NATIVE_DIR": str(add_module(tmp_path / "bundle", module))}.items():
        monkeypatch.setenv(name, value)
    verdict = check(Demand(types=(Q4_K,)))
    assert verdict.status == "wrong"
    assert "product of q4_K in Vulkan0, batch 1: row" in verdict.reason
    assert "column 0 is" in verdict.reason
