"""Backends that die, hang, lie, or were planted: none of them is used, and a start survives all of them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import msgspec
import pytest

from edgechat.errors import RuntimeLoadError
from edgechat.hardware.cpu import read_cpu
from edgechat.runtime.backends import probe, verdicts
from edgechat.runtime.backends.bundle import Bundle, find_bundle
from tests.conftest import ROOT, Cli

pytestmark = [
    pytest.mark.cold,
    pytest.mark.skipif(sys.platform != "linux", reason="the shims are built for Linux"),
]
FAULTS = {"dies": 1, "hangs": 2, "wrong": 3, "planted": 4}


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ggml's headers, out of the very source that the bundle was built from."""
    sys.path.insert(0, str(ROOT / "native"))
    import sources

    target = tmp_path_factory.mktemp("headers")
    with tarfile.open(sources.sdist()) as tar:
        for member in tar:
            folder, _, name = member.name.partition("vendor/llama.cpp/ggml/")[2].rpartition("/")
            if folder in {"include", "src"} and name.endswith(".h"):
                source = tar.extractfile(member)
                assert source is not None
                (target / name).write_bytes(source.read())
    return target


@pytest.fixture
def usable() -> str:
    """Name of the module that this machine chooses by itself."""
    return probe.choose_module(find_bundle())[0].name


def copy_bundle(target: Path) -> Path:
    shutil.copytree(Path(find_bundle().directory), target)
    return target


def shim(headers: Path, target: Path, real: Path, fault: str) -> None:
    source = Path(__file__).parent / "shim.cpp"
    library = find_bundle().directory
    subprocess.run(
        ["c++", "-std=c++17", "-shared", "-fPIC", f"-DFAULT={FAULTS[fault]}", f'-DREAL="{real}"', f"-I{headers}",
         str(source), "-o", str(target), f"-L{library}", "-lggml-base"],
        check=True,
    )  # fmt: skip


def use(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Bundle:
    monkeypatch.setenv("EDGECHAT_NATIVE_DIR", str(directory))
    return find_bundle()


def insert_first(directory: Path, names: list[str]) -> None:
    """Make the manifest list modules that will be ranked before all others."""
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"] += [f"libggml-{name}.so" for name in names]
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_bad_modules_are_passed_over_and_remembered(
    tmp_path: Path, headers: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    directory = copy_bundle(tmp_path / "bundle")
    real = Path(next(m.path for m in find_bundle().modules if m.name == probe.choose_module(find_bundle())[0].name))
    good = directory / "libggml-cpu-x64.so"
    names = dict(zip(("sapphirerapids", "zen4", "cooperlake"), ("dies", "hangs", "wrong"), strict=True))
    for name, fault in names.items():
        shim(headers, directory / f"libggml-cpu-{name}.so", real, fault)
    insert_first(directory, [f"cpu-{n}" for n in names if not (real.parent / f"libggml-cpu-{n}.so").exists()])
    bundle = use(monkeypatch, directory)
    assert [m.name for m in bundle.modules[:3]] == [f"cpu-{n}" for n in names]

    started = time.monotonic()
    chosen, verdict = probe.choose_module(bundle)
    assert time.monotonic() - started < 15
    assert chosen.name not in [f"cpu-{n}" for n in names]
    assert verdict.is_usable
    assert good.exists()

    found = {m.name: v for m, v in probe.module_verdicts(bundle)}
    assert found["cpu-sapphirerapids"].status == "crashed"
    assert "SIGILL" in found["cpu-sapphirerapids"].reason
    assert "product of f32 in CPU, batch 1" in found["cpu-sapphirerapids"].reason
    assert found["cpu-zen4"].status == "hung"
    assert found["cpu-cooperlake"].status == "wrong"
    assert "should be" in found["cpu-cooperlake"].reason

    def no_test(*_: object) -> None:
        pytest.fail("a second start tests nothing")

    monkeypatch.setattr(probe, "run_selftest", no_test)
    assert probe.choose_module(bundle)[0] == chosen
    answer = cli("ask", "Hi", "--max-tokens", "4", "--json")
    assert json.loads(answer.stdout)["backend"] == chosen.name


def test_a_planted_module_is_not_loaded(tmp_path: Path, headers: Path, usable: str, cli: Cli) -> None:
    real = tmp_path / "real.so"
    shutil.copy(next(m.path for m in find_bundle().modules if m.name == usable), real)
    here = tmp_path / "here"
    here.mkdir()
    shim(headers, here / "libggml-cpu-evil.so", real, "planted")
    shutil.copy(here / "libggml-cpu-evil.so", here / "libggml-evil.so")
    environment = os.environ | {"GGML_BACKEND_PATH": str(here / "libggml-cpu-evil.so")}
    for arguments in (["ask", "Hi", "--max-tokens", "4"], ["doctor"]):
        result = cli(*arguments, cwd=here, env=environment)
        assert result.returncode == 0, result.stderr
    assert not Path(f"{real}.was-loaded").exists()
    # The check can fail: loaded on purpose, the module leaves its mark.
    code = f"import ctypes; ctypes.CDLL({str(here / 'libggml-cpu-evil.so')!r}).ggml_backend_init()"
    path = {"LD_LIBRARY_PATH": find_bundle().directory}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | path)
    assert Path(f"{real}.was-loaded").exists()


def test_a_planted_package_is_not_imported(tmp_path: Path, cli: Cli) -> None:
    for name in ("edgechat", "msgspec", "ctypes", "jinja2"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')")
    assert cli("ask", "Hi", "--max-tokens", "4", cwd=tmp_path).returncode == 0


def test_a_missing_module_is_a_verdict_and_a_missing_library_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, usable: str
) -> None:
    directory = copy_bundle(tmp_path / "bundle")
    (directory / f"libggml-{usable}.so").unlink()
    found = {m.name: v for m, v in probe.module_verdicts(use(monkeypatch, directory))}
    assert found[usable].status == "missing"
    assert cli("ask", "Hi", "--max-tokens", "2").returncode == 0  # the next best
    (directory / "libllama.so").unlink()
    result = cli("ask", "Hi")
    assert result.returncode == 4
    assert "libllama.so is missing" in result.stderr


def test_without_a_bundle_the_way_to_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("EDGECHAT_NATIVE_DIR", str(tmp_path))
    result = cli("ask", "Hi")
    assert result.returncode == 4
    assert "Install a wheel" in result.stderr
    assert cli("doctor").returncode == 4


def test_no_working_backend_names_every_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = use(monkeypatch, copy_bundle(tmp_path / "bundle"))
    for module in bundle.modules:
        Path(module.path).write_bytes(b"not a library")
    with pytest.raises(RuntimeLoadError) as error:
        probe.choose_module(bundle)
    assert all(m.name in str(error.value) for m in bundle.modules)


def test_two_deaths_in_use_withdraw_a_verdict() -> None:
    bundle = find_bundle()
    module, _ = probe.choose_module(bundle)
    name = verdicts.verdict_key(bundle, module, read_cpu())
    verdicts.record_engine_crash(name, module.name, "SIGSEGV")
    assert probe.choose_module(bundle)[0] == module
    verdicts.record_engine_crash(name, module.name, "SIGSEGV")
    other, _ = probe.choose_module(bundle)
    assert other != module
    assert "crashed on it 2 times" in dict(probe.module_verdicts(bundle))[module].reason


def test_a_verdict_is_for_one_machine_and_one_build() -> None:
    bundle, cpu = find_bundle(), read_cpu()
    module = bundle.modules[0]
    name = verdicts.verdict_key(bundle, module, cpu)
    replace = msgspec.structs.replace
    others = [
        verdicts.verdict_key(replace(bundle, build_id="x"), module, cpu),
        verdicts.verdict_key(bundle, replace(module, path="/none"), cpu),
        verdicts.verdict_key(bundle, module, replace(cpu, flags="x")),
        verdicts.verdict_key(bundle, module, replace(cpu, microcode="x")),
    ]
    assert len({name, *others}) == 5


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b'{"verdicts": 5}'])
def test_a_damaged_verdicts_file_is_an_empty_one(home: Path, content: bytes) -> None:
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "backends.json").write_bytes(content)
    bundle = find_bundle()
    assert probe.choose_module(bundle)[1].is_usable
    assert b"passed" in (home / "cache" / "backends.json").read_bytes()


def test_a_library_that_the_bindings_were_compiled_with_is_named_and_not_used(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    stock = tmp_path / "site" / "llama_cpp"
    shutil.copytree(Path(str(spec.origin)).parent, stock)
    (stock / "lib").mkdir(exist_ok=True)
    (stock / "lib" / "libllama.so").write_bytes(b"it would crash")
    monkeypatch.setenv("PYTHONPATH", str(stock.parent))
    done = cli("ask", "-m", "starter", "--max-tokens", "4", "--temperature", "0", "Hi")
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "llama-cpp-python contains its own build of llama.cpp" in done.stderr
    assert "does not use" in cli("doctor").stdout
