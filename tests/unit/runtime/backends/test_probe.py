"""Choice of a CPU module, with crashes of the engine that were recorded for one model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.errors import RuntimeLoadError
from edgechat.hardware.cpu import read_cpu
from edgechat.runtime.backends import probe, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from edgechat.runtime.backends.verdicts import Verdict


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle of three modules, which all pass the self-test."""
    names = ("cpu-fast", "cpu-middle", "cpu-slow")
    for name in ("libggml-base.so", "libggml.so", "libllama.so", "libedgechat.so", *names):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(
        probe, "run_selftest", lambda module, _=None: Verdict(module=module.name, status="passed", reason="passed")
    )
    monkeypatch.setattr(Bundle, "check_libraries", lambda self: None)
    return Bundle(
        directory=str(tmp_path), build_id="1", llama_cpp_python="", llama_cpp_commit="", compiler="",
        modules=tuple(BackendModule(name=name, path=str(tmp_path / name)) for name in names),
    )  # fmt: skip


def crash(bundle: Bundle, name: str, model_path: str, n_times: int = 1) -> None:
    for module in bundle.modules:
        if module.name == name:
            key = verdicts.compute_verdict_key(bundle, module, read_cpu())
            for _ in range(n_times):
                verdicts.record_engine_crash(key, name, "SIGSEGV (signal 11)", model_path)


def chosen(bundle: Bundle, model_path: str = "") -> str:
    return probe.choose_module(bundle, model_path=model_path)[0].name


def test_two_crashes_choose_another_module_for_this_model_only(bundle: Bundle) -> None:
    crash(bundle, "cpu-fast", "/bad.gguf", 2)
    assert chosen(bundle, "/bad.gguf") == "cpu-middle"
    assert chosen(bundle, "/good.gguf") == chosen(bundle) == "cpu-fast"


def test_model_that_crashes_on_every_module_is_to_blame(bundle: Bundle) -> None:
    crash(bundle, "cpu-fast", "/bad.gguf", 2)
    crash(bundle, "cpu-middle", "/bad.gguf")
    assert chosen(bundle, "/bad.gguf") == "cpu-slow"
    crash(bundle, "cpu-slow", "/bad.gguf")
    assert chosen(bundle, "/bad.gguf") == "cpu-fast"
    assert chosen(bundle, "/good.gguf") == "cpu-fast"


def test_error_without_working_module_names_every_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Verdict(module="x", status="wrong", reason="computes wrong numbers")
    monkeypatch.setattr(probe, "run_selftest", lambda module, _=None: failed)
    crash(bundle, "cpu-fast", "/bad.gguf", 2)
    with pytest.raises(RuntimeLoadError, match=r"cpu-fast: computes wrong numbers\n  cpu-middle: computes"):
        probe.choose_module(bundle, model_path="/bad.gguf")
