"""GPU support with a scripted GPU module: out of memory, wrong results, failures in use, a removed device."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from edgechat.catalogue.library import starter_model
from edgechat.chat.events import ReplyTextGenerated, SessionEvent, TurnFinished, TurnInterrupted, format_notice
from edgechat.chat.session import Session
from edgechat.cli.output_schema import make_schema_rule
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineDiedError, EngineError
from edgechat.hardware.gpu import Gpu
from edgechat.models import loading, resources
from edgechat.models.events import ModelLoadProgressed
from edgechat.runtime.backends import gpu_absence, gpu_probe, probe, verdicts
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.verdicts import FailedType, Verdict
from edgechat.store import open_ephemeral_store
from tests.conftest import Cli
from tests.draft_models import make_llama, turn_into_chain
from tests.faults import drafter_faults
from tests.faults.test_backends import copy_bundle, headers
from tests.serve.client import CERTAIN_PROMPT, ServerProcess
from tests.waiting import until

__all__ = ["headers"]  # fixture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripted GPU is built for Linux")
MIB = 1 << 20
F16, Q4_1 = 1, 3
OpenSession = Callable[..., Session]


@pytest.fixture(autouse=True)
def gpu_of_any_speed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the scripted GPU although its kernels are those of the CPU."""
    monkeypatch.setenv("EDGECHAT_TEST_IGNORE_GPU_SPEED", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, headers: Path, warm_verdicts: Path) -> Path:
    """Copy of the native bundle with the scripted GPU under the name of a real module."""
    directory = copy_bundle(tmp_path_factory.mktemp("gpu") / "bundle")
    build_gpu(headers, directory, directory / "libggml-vulkan.so")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"].append("libggml-vulkan.so")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.fixture(scope="module")
def gpu_verdicts(tmp_path_factory: pytest.TempPathFactory, bundle: Path, warm_verdicts: Path) -> Path:
    """Return the path of a verdict file with the self-test of the scripted GPU."""
    home = tmp_path_factory.mktemp("verdicts")
    (home / "cache").mkdir()
    shutil.copy(warm_verdicts, home / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECHAT_HOME", str(home))
        patch.setenv("EDGECHAT_NATIVE_DIR", str(bundle))
        [(_, verdict)] = gpu_probe.check_gpu_modules(find_bundle(), probe.choose_module(find_bundle())[0])
    assert verdict.is_usable
    return home / "cache" / warm_verdicts.name


def build_gpu(headers: Path, libraries: Path, target: Path) -> None:
    """Compile the scripted GPU module, which computes with the real CPU module."""
    real = probe.choose_module(find_bundle())[0].path
    source = Path(__file__).parent / "gpu.cpp"
    subprocess.run(
        ["c++", "-std=c++17", "-shared", "-fPIC", f'-DREAL="{real}"', f"-I{headers}", str(source),
         "-o", str(target), f"-L{libraries}", "-lggml-base", "-Wl,-rpath,$ORIGIN"],
        check=True,
    )  # fmt: skip


@pytest.fixture
def site_packages(monkeypatch: pytest.MonkeyPatch, headers: Path, warm_verdicts: Path, tmp_path: Path) -> Path:
    """Site directory with the package edgechat_cuda13, which contains the scripted GPU module."""
    site = tmp_path / "site"
    package = site / "edgechat_cuda13"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    directory = Path(find_bundle().directory)
    build_gpu(headers, directory, package / "libggml-cuda.so")
    manifest = json.loads((directory / "manifest.json").read_text()) | {"files": ["libggml-cuda.so"]}
    (package / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    return site


def test_gpu_module_of_an_installed_package_is_used(open_session: OpenSession, site_packages: Path) -> None:
    session = open_session(EDGECHAT_NATIVE_DIR=find_bundle().directory)
    assert n_gpu_layers(session) == 31
    assert session.warnings == []
    assert reply(session)


def test_one_of_two_gpu_packages_is_used_and_mismatched_ones_are_reported(site_packages: Path, cli: Cli) -> None:
    shutil.copytree(site_packages / "edgechat_cuda13", site_packages / "edgechat_cuda12")
    results = gpu_probe.check_gpu_modules(find_bundle(), probe.choose_module(find_bundle())[0])
    assert [(module.path.split("/")[-2], verdict.status) for module, verdict in results] == [
        ("edgechat_cuda13", "passed")
    ]
    (site_packages / "edgechat_cuda13" / "libggml-cuda.so").write_bytes(b"no library")
    results = gpu_probe.check_gpu_modules(find_bundle(), probe.choose_module(find_bundle())[0])
    assert [verdict.status for _, verdict in results] == ["damaged", "passed"]
    assert results[0][1].reason.startswith("its file is no shared library (10 bytes). Install the module again: ")
    for name, change in (("edgechat_cuda13", '"0c1e57098"'), ("edgechat_cuda12", "{")):
        path = site_packages / name / "manifest.json"
        path.write_text(path.read_text().replace(change, '"1234567"'))
    assert find_bundle().gpu_modules == ()
    doctor = cli("doctor")
    assert "edgechat_cuda13 is for llama.cpp 1234567, but edgechat uses 0c1e57098" in doctor.stdout
    assert "edgechat_cuda12 is damaged" in doctor.stdout
    assert doctor.returncode == 0


def test_own_module_in_a_copy_of_the_bundle_is_tested_like_any_other(
    tmp_path: Path, headers: Path, home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of docs/install.md."""
    original = json.loads(cli("doctor", "--json").stdout)["bundle"]["directory"]
    own = tmp_path / "my bundle"
    shutil.copytree(original, own)
    module = own / "libggml-hip.so"
    build_gpu(headers, own, module)
    manifest = json.loads((own / "manifest.json").read_text())
    (own / "manifest.json").write_text(json.dumps(manifest | {"files": [*manifest["files"], module.name]}))
    monkeypatch.setenv("EDGECHAT_NATIVE_DIR", str(own))

    def diagnose(*arguments: str) -> tuple[str, str]:
        done = cli("doctor", "--json", *arguments)
        assert done.returncode == 0
        [found] = [b for b in json.loads(done.stdout)["backends"] if b["module"] == "hip"]
        assert found["path"] == str(module)
        return found["status"], found["reason"]

    status, reason = diagnose()
    assert (status, reason.startswith("passed")) == ("passed", True)
    session = Session(open_ephemeral_store(), Settings(n_ctx=512, max_tokens=4), starter_model())
    with contextlib.closing(session):
        session.open()
        assert n_gpu_layers(session) == 31
        assert reply(session)
    monkeypatch.setenv("GPU_WRONG", "1")
    status, reason = diagnose("--retest")
    assert status == "wrong"
    assert "computes wrong numbers: product of" in reason
    module.write_bytes(b"no library")
    assert diagnose()[0] == "damaged"
    for code, reason in (
        (b"int other;", "it is no backend module of llama.cpp"),
        (
            b"void *ggml_backend_init(void) { static int registry[64] = {1}; return registry; }",
            "it was built for another version of llama.cpp (interface 1 instead of 2)",
        ),
        (
            b"extern int ggml_newer; void *ggml_backend_init(void) { return &ggml_newer; }",
            "it was built for another version of llama.cpp or of its own libraries: ggml_newer is missing there",
        ),
    ):
        subprocess.run(["cc", "-shared", "-fPIC", "-xc", "-", "-o", module], input=code, check=True)
        assert diagnose() == ("refused", f"cannot be loaded: {reason}")


PEER = """#!/bin/sh
[ "$GGML_BACKEND_PATH" = "$GPU_MODULE" ] && ls libggml-cpu-*.so >&2 && echo "$@" > "$ARGUMENTS"
echo '[{"n_prompt": 32, "n_gen": 0, "samples_ts": [100.0], "backends": "'"$KIND"'"},
       {"n_prompt": 0, "n_gen": 4, "samples_ts": [10.0], "backends": "'"$KIND"'"}]'
"""


def test_speed_of_the_gpu_is_compared_with_llama_bench_on_the_gpu(
    bundle: Path, gpu_verdicts: Path, home: Path, run_here: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(gpu_verdicts, home / "cache")
    peer = tmp_path / "llama-bench"
    peer.write_text(PEER)
    peer.chmod(0o755)
    monkeypatch.setenv("EDGECHAT_NATIVE_DIR", str(bundle))
    monkeypatch.setenv("GPU_MODULE", str(bundle / "libggml-vulkan.so"))
    monkeypatch.setenv("ARGUMENTS", str(tmp_path / "arguments"))
    options = ("bench", "speed", "--rounds", "1", "--prompt", "32", "--gen", "4", "--peer", str(peer))
    monkeypatch.setenv("KIND", "Vulkan")
    report = json.loads(run_here(*options, "--gpu", "--json").stdout)
    assert report["gpu"] == "a scripted GPU"
    assert report["decode_ratio"] == report["ours"][0]["decode_tps"] / 10
    assert "-ngl 99" in (tmp_path / "arguments").read_text()
    monkeypatch.setenv("KIND", "CPU")
    done = run_here(*options, "--gpu")
    assert "llama-bench did not use a scripted GPU" in done.stderr
    (tmp_path / "arguments").unlink()
    assert json.loads(run_here(*options, "--json").stdout)["gpu"] == ""
    assert not (tmp_path / "arguments").exists()
    monkeypatch.delenv("EDGECHAT_NATIVE_DIR")
    done = run_here(*options, "--gpu")
    assert (done.returncode, "No GPU can be measured: none was found" in done.stderr) == (2, True)
    done = run_here("bench", "speculation", "--gpu", "--draft-model", "auto")
    assert (done.returncode, "only drafts from the text" in done.stderr) == (2, True)


@pytest.fixture
def open_session(
    bundle: Path, gpu_verdicts: Path, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> OpenSession:
    """Open a session on a machine with the scripted GPU, configured by environment variables."""

    has_verdicts = False

    def start(settings: Settings | None = None, model: Path | None = None, **environment: object) -> Session:
        nonlocal has_verdicts
        if not has_verdicts and not {"GPU_WRONG", "GPU_GONE"}.intersection(environment):
            shutil.copy(gpu_verdicts, home / "cache")
            has_verdicts = True  # later sessions remember what happened
        monkeypatch.setenv("EDGECHAT_NATIVE_DIR", str(bundle))
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        session = Session(
            open_ephemeral_store(),
            settings or Settings(n_ctx=1024, temperature=0.0, max_tokens=12),
            model or starter_model(),
        )
        request.addfinalizer(session.close)
        session.open()
        return session

    return start


def reply(session: Session, text: str = CERTAIN_PROMPT) -> str:
    *_, last = session.send(text)
    return last.reply.text  # type: ignore[union-attr]


def n_gpu_layers(session: Session) -> int:
    assert session.model.plan is not None
    return session.model.plan.options.n_gpu_layers


def test_model_on_the_gpu_replies_like_on_the_cpu(open_session: OpenSession) -> None:
    on_cpu = open_session(Settings(n_ctx=1024, temperature=0.0, max_tokens=12, gpu=False))
    assert n_gpu_layers(on_cpu) == 0
    on_gpu = open_session()
    assert n_gpu_layers(on_gpu) == 31
    assert on_gpu.warnings == []
    memory = on_gpu.model.engine.stats().memory
    assert memory["Scripted0"]["model_bytes"] > 50 * MIB
    assert memory["Scripted0"]["context_bytes"] > 0
    assert reply(on_gpu)[:20] == reply(on_cpu)[:20]


def test_layers_that_exceed_gpu_memory_stay_on_the_cpu(open_session: OpenSession) -> None:
    session = open_session(GPU_BYTES=100 * MIB)
    assert 0 < n_gpu_layers(session) < 30
    assert session.model.plan is not None
    assert "layers fit on the GPU" in session.model.plan.concessions[0]
    assert 0 < session.model.engine.stats().memory["Scripted0"]["model_bytes"] < 90 * MIB
    assert reply(session)


def test_gpu_out_of_memory_at_load_reduces_layers_with_a_warning(open_session: OpenSession) -> None:
    session = open_session(GPU_SAYS_BYTES=1024 * MIB, GPU_BYTES=40 * MIB)
    assert n_gpu_layers(session) < 31
    assert any("The GPU could not be used" in words for words in session.warnings)
    assert reply(session)


LONGER = Settings(n_ctx=1024, temperature=0.0, max_tokens=40)


@pytest.fixture
def fails(tmp_path: Path) -> Path:
    """File that says how and when the GPU fails, see gpu.cpp."""
    return tmp_path / "fails"


class Turn:
    """Events of one turn: the text of each reply, the notices and the last event."""

    def __init__(self, events: Iterable[SessionEvent]) -> None:
        self.texts: dict[int, str] = {}
        self.notices: list[str] = []
        for event in events:
            self.last = event
            self.notices += filter(None, [format_notice(event)])
            if isinstance(event, ReplyTextGenerated):
                self.texts[event.reply_index] = self.texts.get(event.reply_index, "") + event.text


@pytest.fixture
def text_of_cpu(open_session: OpenSession) -> str:
    return reply(open_session(msgspec.structs.replace(LONGER, gpu=False)))


@pytest.mark.parametrize(("failure", "n_graphs"), [("fail", 0), ("fail", 25), ("die", 25), ("nan", 25)])
def test_reply_goes_on_with_the_cpu_once_and_the_failure_is_remembered(
    open_session: OpenSession, fails: Path, text_of_cpu: str, failure: str, n_graphs: int
) -> None:
    """After a failure while the prompt is computed, or within the reply."""
    session = open_session(LONGER, GPU_FAILS_IF=fails)
    assert n_gpu_layers(session) == 31
    fails.write_text(f"{failure} {n_graphs}")
    turn = Turn(session.send(CERTAIN_PROMPT))
    assert isinstance(turn.last, TurnFinished)
    assert turn.last.reply.text == turn.texts[0]
    assert turn.texts[0][:30] == text_of_cpu[:30]
    assert turn.last.reply.stats is not None
    assert turn.last.reply.stats.completion_tokens == 40
    [notice] = turn.notices
    assert re.fullmatch(r"The GPU failed \(.+\)\. The reply continues on the CPU\.", notice), notice
    assert n_gpu_layers(session) == 0
    assert Turn(session.send("And then?")).notices == []
    later = open_session(GPU_FAILS_IF=fails)
    assert n_gpu_layers(later) == 0
    assert "not used with SmolLM2" in later.warnings[0]


def test_second_failure_ends_the_reply_with_an_error(open_session: OpenSession, fails: Path) -> None:
    session = open_session(msgspec.structs.replace(LONGER, max_tokens=400), GPU_FAILS_IF=fails)
    fails.write_text("fail 10")

    def kill_second_engine() -> None:
        was_killed = False
        for event in session.send(CERTAIN_PROMPT):
            if not was_killed and isinstance(event, ReplyTextGenerated) and not n_gpu_layers(session):
                os.kill(session.model.engine.pid, signal.SIGSEGV)  # type: ignore[arg-type]
                was_killed = True

    with pytest.raises(EngineError, match="SIGSEGV"):
        kill_second_engine()
    assert session.tree.path[-1].text
    assert reply(session)


def test_several_replies_go_on(open_session: OpenSession, fails: Path) -> None:
    settings = msgspec.structs.replace(LONGER, temperature=0.7, seed=1)
    session = open_session(settings, GPU_FAILS_IF=fails)
    fails.write_text("die 20")
    turn = Turn(session.send(CERTAIN_PROMPT, n_replies=2))
    assert isinstance(turn.last, TurnFinished)
    replies = [turn.last.reply, *turn.last.alternatives]
    assert [r.text for r in replies] == [turn.texts[0], turn.texts[1]]
    assert all(r.finish_reason in {"stop", "length"} for r in replies)
    assert len(turn.notices) == 1


def test_picked_replies_go_on(open_session: OpenSession, fails: Path) -> None:
    session = open_session(msgspec.structs.replace(LONGER, temperature=0.7), GPU_FAILS_IF=fails)
    fails.write_text("fail 20")
    turn = Turn(session.send(CERTAIN_PROMPT, n_replies=3, pick="agree"))
    assert isinstance(turn.last, TurnFinished)
    assert turn.last.picked is not None
    assert sum("continues on the CPU" in notice for notice in turn.notices) == 1


def test_structured_reply_goes_on_within_its_grammar(open_session: OpenSession, fails: Path) -> None:
    session = open_session(msgspec.structs.replace(LONGER, max_tokens=200), GPU_FAILS_IF=fails)
    fails.write_text("fail 20")
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": {"type": "integer"}, "minItems": 12,
              "maxItems": 12}}, "required": ["items"], "additionalProperties": False}  # fmt: skip
    turn = Turn(session.send(CERTAIN_PROMPT, output_rule=make_schema_rule(schema, "schema"), output_schema=schema))
    assert len(json.loads(turn.texts[0])["items"]) == 12
    assert len(turn.notices) == 1


def test_stop_during_the_fallback_ends_the_reply(open_session: OpenSession, fails: Path) -> None:
    session = open_session(msgspec.structs.replace(LONGER, max_tokens=400), GPU_FAILS_IF=fails)
    fails.write_text("fail 10")
    last = None
    for event in session.send(CERTAIN_PROMPT):
        last = event
        if isinstance(event, ModelLoadProgressed):
            session.stop()
    assert isinstance(last, TurnInterrupted)
    assert last.reply.finish_reason == "cancelled"
    assert last.reply.text
    assert reply(session)


def test_gpu_that_dies_during_the_load_is_not_used(open_session: OpenSession, fails: Path) -> None:
    open_session(GPU_FAILS_IF=fails).close()
    fails.write_text("load 0")
    session = open_session(GPU_FAILS_IF=fails)
    assert n_gpu_layers(session) == 0
    assert any("The GPU could not be used" in words for words in session.warnings)
    assert reply(session)
    [warning] = open_session(GPU_FAILS_IF=fails).warnings
    assert "the engine failed on it 1 time, most recently with a crash while it loaded the model" in warning


def test_gpu_that_dies_when_the_engine_restarts_is_not_used(open_session: OpenSession, fails: Path) -> None:
    session = open_session(GPU_FAILS_IF=fails)
    assert n_gpu_layers(session) == 31
    fails.write_text("load 0")
    os.kill(session.model.engine.pid, signal.SIGKILL)  # type: ignore[arg-type]
    until(lambda: session.model.needs_restart)
    check_restart_with_cpu(session)
    [warning] = open_session(GPU_FAILS_IF=fails).warnings
    assert "most recently with a crash while it loaded the model" in warning


def check_restart_with_cpu(session: Session) -> None:
    turn = Turn(session.send(CERTAIN_PROMPT))
    assert isinstance(turn.last, TurnFinished)
    [notice] = turn.notices
    assert re.fullmatch(r"The model could not be loaded on the GPU again \(.+\)\. It uses the CPU\.", notice), notice
    assert n_gpu_layers(session) == 0
    assert Turn(session.send("And then?")).notices == []


def test_gpu_that_is_missing_when_the_engine_restarts_is_not_used(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session()
    monkeypatch.setenv("GPU_GONE", "1")
    os.kill(session.model.engine.pid, signal.SIGKILL)  # type: ignore[arg-type]
    until(lambda: session.model.needs_restart)
    check_restart_with_cpu(session)


@pytest.mark.parametrize("is_shared", [False, True])
def test_every_request_after_a_failure_moves_the_model_to_the_cpu(
    open_session: OpenSession, fails: Path, request: pytest.FixtureRequest, *, is_shared: bool
) -> None:
    """Not only the reply that failed: a title or a count of tokens can be the first."""
    if is_shared:
        request.getfixturevalue("resident")
    session = open_session(GPU_FAILS_IF=fails)
    engine = session.model.engine
    fails.write_text("die 0")
    with pytest.raises(EngineDiedError):
        list(engine.generate(protocol.Generate(id=engine.next_id(), tokens=[1, 2, 3], max_tokens=4)))
    fails.unlink()
    assert engine.tokenize("a word")
    assert n_gpu_layers(session) == 0
    turn = Turn(session.send(CERTAIN_PROMPT))
    assert turn.notices == ["The GPU failed. The model uses the CPU from now on."]
    assert Turn(session.send("And then?")).notices == []


@pytest.mark.usefixtures("resident")
def test_new_client_does_not_share_an_engine_whose_gpu_has_failed_with_the_model(open_session: OpenSession) -> None:
    """It failed in another engine, for example one with another context length."""
    first = open_session()
    assert first.model.plan is not None
    assert open_session().model.engine.pid == first.model.engine.pid
    plan = first.model.plan
    gpu_probe.record_failure(find_bundle(), "SIGSEGV (signal 11)", plan.model_path, plan.gpu_module)
    later = open_session()
    assert n_gpu_layers(later) == 0
    assert later.model.engine.pid != first.model.engine.pid


def test_reply_continues_after_a_crash_while_a_draft_is_computed_on_the_gpu(
    open_session: OpenSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = turn_into_chain(make_llama(n_layer=4)).write(tmp_path / "target.gguf")
    draft = turn_into_chain(make_llama(seed=1)).write(tmp_path / "draft.gguf")
    settings = Settings(n_ctx=1024, temperature=0.0, max_tokens=60, draft_model=str(draft))
    faults = drafter_faults.arrange(tmp_path, f"draft {signal.SIGSEGV:d}")
    session = open_session(settings, target, **faults)
    assert n_gpu_layers(session) > 0
    assert session.model.plan is not None
    assert session.model.plan.drafter is not None
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # the next engine has no fault
    turn = Turn(session.send("Hello"))
    assert isinstance(turn.last, TurnFinished)
    [notice] = turn.notices
    assert "while drafting with a model on the GPU: SIGSEGV" in notice
    assert turn.last.reply.stats is not None
    assert turn.last.reply.stats.completion_tokens == 60
    assert session.model.plan.drafter is not None, "the GPU is to blame, not the drafter"
    assert n_gpu_layers(open_session(settings, target)) == 0


def test_draft_model_whose_weights_crashed_the_test_of_the_gpu_is_left_out(
    open_session: OpenSession, tmp_path: Path
) -> None:
    target, small = make_llama(n_layer=4).write(tmp_path / "target.gguf"), make_llama(seed=1)
    name = "blk.0.ffn_up.weight"
    small.tensors[name] = small.tensors[name].astype(np.float16)
    settings = Settings(n_ctx=1024, draft_model=str(small.write(tmp_path / "draft.gguf")))
    session = open_session(settings, target)
    assert session.model.plan is not None
    assert session.model.plan.drafter is not None
    fail_types(F16)
    session = open_session(settings, target)
    assert n_gpu_layers(session) > 0
    assert session.model.plan is not None
    assert session.model.plan.drafter is None
    [warning] = session.warnings
    start = "Decoding without the drafter: draft is left out: a scripted GPU is not used for a model with F16 weights"
    assert warning.startswith(start)


def fail_types(*types: int) -> None:
    """Change the verdict of the scripted GPU as if its test had crashed with these weight types."""
    [module] = find_bundle().gpu_modules
    reason = "crashed with SIGSEGV (signal 11) at step: product of a type in CUDA0, batch 1"
    failed = tuple(FailedType(type_id, reason) for type_id in types)

    def fail(newest: Verdict) -> Verdict:
        devices = [msgspec.structs.replace(device, failed_types=failed) for device in newest.devices]
        return msgspec.structs.replace(newest, devices=tuple(devices))

    verdicts.change_verdict(gpu_absence.compute_key(find_bundle(), module), fail)


@pytest.mark.usefixtures("resident")
def test_shared_engine_whose_gpu_dies_when_it_is_replaced_uses_the_cpu(open_session: OpenSession, fails: Path) -> None:
    session = open_session(GPU_FAILS_IF=fails)
    fails.write_text("load 0")
    os.kill(session.model.engine.pid, signal.SIGKILL)  # type: ignore[arg-type]
    until(lambda: session.model.needs_restart)
    check_restart_with_cpu(session)


@pytest.mark.usefixtures("resident")
def test_clients_of_a_shared_engine_whose_gpu_failed_share_one_with_the_cpu(
    open_session: OpenSession, fails: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = open_session(LONGER, GPU_FAILS_IF=fails), open_session(LONGER)
    pid = first.model.engine.pid
    assert pid is not None
    assert second.model.engine.pid == pid
    had_ended = []

    def read_machine(*arguments: Any) -> Any:
        had_ended.append(not psutil.pid_exists(pid))
        return resources.current_machine(*arguments)

    monkeypatch.setattr(loading, "current_machine", read_machine)
    fails.write_text("fail 10")
    assert len(Turn(first.send(CERTAIN_PROMPT)).notices) == 1
    assert had_ended == [True], "the plan was made while the failed engine took memory"
    third = open_session(LONGER)
    assert n_gpu_layers(third) == 0
    turn = Turn(second.send(CERTAIN_PROMPT))
    assert isinstance(turn.last, TurnFinished)
    assert turn.notices == ["The GPU failed. The model uses the CPU from now on."]
    assert n_gpu_layers(second) == 0
    assert {session.model.engine.pid for session in (first, second)} == {third.model.engine.pid}


@pytest.mark.usefixtures("resident")
@pytest.mark.parametrize("failure", ["die", "fail"])
def test_replies_of_all_clients_of_a_shared_engine_go_on(open_session: OpenSession, fails: Path, failure: str) -> None:
    sessions = [open_session(LONGER, GPU_FAILS_IF=fails) for _ in range(2)]
    fails.write_text(f"{failure} 25")
    with ThreadPoolExecutor(2) as threads:
        turns = list(threads.map(lambda session: Turn(session.send(CERTAIN_PROMPT)), sessions))
    for turn in turns:
        assert isinstance(turn.last, TurnFinished)
        assert turn.last.reply.text == turn.texts[0]
        assert len(turn.notices) == 1
    assert [n_gpu_layers(session) for session in sessions] == [0, 0]
    assert len({session.model.engine.pid for session in sessions}) == 1


def test_ask_prints_one_reply_and_one_sentence(open_session: OpenSession, fails: Path, cli: Cli) -> None:
    open_session(GPU_FAILS_IF=fails).close()
    fails.write_text("die 25")
    result = cli("ask", "-m", "starter", "--ctx", "1024", "--temperature", "0", "--max-tokens", "40", CERTAIN_PROMPT)
    assert result.returncode == 0, result.stderr
    assert "6\n7. 7\n8. 8" in result.stdout
    assert result.stderr.count("The reply continues on the CPU.") == 1


def test_responses_of_the_server_go_on(open_session: OpenSession, fails: Path, home: Path) -> None:
    open_session(GPU_FAILS_IF=fails).close()
    body = {"messages": [{"role": "user", "content": CERTAIN_PROMPT}], "temperature": 0, "max_tokens": 40,
            "logprobs": True}  # fmt: skip
    server = ServerProcess(home, "-m", "starter", "--ctx", "1024")
    try:
        fails.write_text("fail 25")
        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(lambda _: list(server.stream(body)), range(2))
        cpu = list(server.stream(body))
        log = "".join(server.errors)
    finally:
        server.close()
    expected = text_of_stream(cpu)
    for chunks in (first, second):
        text, n_logprobs = text_of_stream(chunks)
        assert text[:30] == expected[0][:30]
        assert n_logprobs == expected[1]
        assert chunks[-1] == "[DONE]"
    assert "replies continue on the CPU" in log


def text_of_stream(chunks: list[Any]) -> tuple[str, int]:
    """Return the text of a stream, and the number of its tokens with logprobs."""
    choices = [choice for chunk in chunks[:-1] for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text, sum(len(choice["logprobs"]["content"]) for choice in choices if choice.get("logprobs"))


def test_gpu_with_a_failed_selftest_is_not_used(open_session: OpenSession) -> None:
    session = open_session(GPU_WRONG=1)
    assert n_gpu_layers(session) == 0
    [warning] = session.warnings
    assert "vulkan" in warning
    assert "computes wrong numbers" in warning
    assert reply(session)


def test_model_with_a_weight_type_that_crashed_the_test_uses_the_cpu(open_session: OpenSession) -> None:
    session = open_session()
    [module] = find_bundle().gpu_modules
    assert session.model.plan is not None
    assert session.model.plan.gpu_module == module.path
    fail_types(Q4_1)
    session = open_session()
    [warning] = session.warnings
    assert warning.startswith("a scripted GPU is not used for a model with Q4_1 weights, because its test crashed with")
    assert warning.endswith("batch 1; edgechat uses the CPU")
    assert n_gpu_layers(session) == 0


def test_removed_gpu_is_reported_and_absent_gpu_is_not(open_session: OpenSession) -> None:
    session = open_session(GPU_GONE=1)
    assert (n_gpu_layers(session), session.warnings) == (0, [])
    resources.save_gpus([Gpu(name="a card", total_bytes=1, free_bytes=1)])
    session = open_session(GPU_GONE=1)
    assert (n_gpu_layers(session), session.warnings) == (0, ["The GPU a card was not found; edgechat uses the CPU"])
    assert reply(session)
    assert resources.load_saved_gpus() == []


def test_plan_without_engine_uses_the_saved_gpu(open_session: OpenSession, cli: Cli) -> None:
    open_session().close()
    [gpu] = resources.load_saved_gpus()
    assert resources.current_machine(Settings()).gpu_free_bytes == gpu.free_bytes - gpu.total_bytes // 8
    assert resources.current_machine(Settings(gpu=False)).gpu_free_bytes == 0
    row = json.loads(cli("plan", "starter", "--json", "--no-measure").stdout)["models"][0]
    assert row["plan"]["n_gpu_layers"] == 31
    assert "a scripted GPU computes 30 of 30 layers" in row["reasons"]["n_gpu_layers"]


def test_engine_and_doctor_list_the_gpu(open_session: OpenSession, cli: Cli) -> None:
    open_session().close()
    engine = EngineClient()
    try:
        devices = engine.list_devices(benchmark=False)
    finally:
        engine.close()
    [gpu] = devices.gpus
    assert (gpu.name, gpu.total_bytes, gpu.is_unified) == ("a scripted GPU", 1 << 30, False)
    assert devices.problems == []
    doctor = json.loads(cli("doctor", "--json").stdout)
    assert [b["module"] for b in doctor["backends"] if b["status"] == "passed"][-1] == "vulkan"
