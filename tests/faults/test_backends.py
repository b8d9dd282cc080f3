"""Backend modules that crash, hang, compute wrong numbers, or were planted: none of them is used."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from itertools import islice
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
    pytest.mark.skipif(sys.platform != "linux", reason="the faulty modules are built for Linux"),
]
FAULTS = {"crashes": 1, "hangs": 2, "wrong": 3, "planted": 4}
"""Values of FAULT in shim.cpp."""


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the headers of ggml, from the sources that the bundle was built from."""
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
def chosen_name() -> str:
    """Name of the module that edgechat chooses on this machine."""
    return probe.choose_module(find_bundle())[0].name


def copy_bundle(target: Path) -> Path:
    shutil.copytree(Path(find_bundle().directory), target)
    return target


def build_faulty_module(headers: Path, target: Path, real: Path, fault: str) -> None:
    """Compile a module with a fault, which otherwise computes with the module `real`."""
    source = Path(__file__).parent / "shim.cpp"
    library = find_bundle().directory
    subprocess.run(
        ["c++", "-std=c++17", "-shared", "-fPIC", f"-DFAULT={FAULTS[fault]}", f'-DREAL="{real}"', f"-I{headers}",
         str(source), "-o", str(target), f"-L{library}", "-lggml-base"],
        check=True,
    )  # fmt: skip


def use_bundle(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Bundle:
    monkeypatch.setenv("EDGECHAT_NATIVE_DIR", str(directory))
    return find_bundle()


def find_verdict(bundle: Bundle, name: str) -> verdicts.Verdict:
    """Return the verdict of a CPU module; the slower modules are not tested."""
    return next(verdict for module, verdict in probe.check_cpu_modules(bundle) if module.name == name)


def add_to_manifest(directory: Path, names: list[str]) -> None:
    """Add modules to the manifest of a bundle."""
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"] += [f"libggml-{name}.so" for name in names]
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_faulty_modules_are_skipped_and_their_verdicts_are_cached(
    tmp_path: Path, headers: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    directory = copy_bundle(tmp_path / "bundle")
    real = Path(next(m.path for m in find_bundle().modules if m.name == probe.choose_module(find_bundle())[0].name))
    good = directory / "libggml-cpu-x64.so"
    names = dict(zip(("sapphirerapids", "zen4", "cooperlake"), ("crashes", "hangs", "wrong"), strict=True))
    for name, fault in names.items():
        build_faulty_module(headers, directory / f"libggml-cpu-{name}.so", real, fault)
    add_to_manifest(directory, [f"cpu-{n}" for n in names if not (real.parent / f"libggml-cpu-{n}.so").exists()])
    bundle = use_bundle(monkeypatch, directory)
    assert [m.name for m in bundle.modules[:3]] == [f"cpu-{n}" for n in names]

    module, verdict = probe.choose_module(bundle)
    assert module.name not in [f"cpu-{n}" for n in names]
    assert verdict.is_usable
    assert good.exists()

    by_name = {m.name: v for m, v in islice(probe.check_cpu_modules(bundle), len(names))}
    assert by_name["cpu-sapphirerapids"].status == "crashed"
    assert "SIGILL" in by_name["cpu-sapphirerapids"].reason
    assert "product of f32 in CPU, batch 1" in by_name["cpu-sapphirerapids"].reason
    assert by_name["cpu-zen4"].status == "hung"
    assert by_name["cpu-cooperlake"].status == "wrong"
    assert "should be" in by_name["cpu-cooperlake"].reason

    def fail(*_: object) -> None:
        pytest.fail("a module with a cached verdict was tested again")

    monkeypatch.setattr(probe, "run_selftest", fail)
    assert probe.choose_module(bundle)[0] == module
    reply = cli("ask", "Hi", "--max-tokens", "4", "--json")
    assert json.loads(reply.stdout)["backend"] == module.name


@pytest.mark.usefixtures("warm")
def test_planted_module_is_not_loaded(tmp_path: Path, headers: Path, chosen_name: str, cli: Cli) -> None:
    real = tmp_path / "real.so"
    shutil.copy(next(m.path for m in find_bundle().modules if m.name == chosen_name), real)
    directory = tmp_path / "directory"
    directory.mkdir()
    build_faulty_module(headers, directory / "libggml-cpu-evil.so", real, "planted")
    shutil.copy(directory / "libggml-cpu-evil.so", directory / "libggml-evil.so")
    environment = os.environ | {"GGML_BACKEND_PATH": str(directory / "libggml-cpu-evil.so")}
    for arguments in (["ask", "Hi", "--max-tokens", "4"], ["doctor"]):
        result = cli(*arguments, cwd=directory, env=environment)
        assert result.returncode == 0, result.stderr
    assert not Path(f"{real}.was-loaded").exists()
    # Prove that the check works: a load creates the file.
    code = f"import ctypes; ctypes.CDLL({str(directory / 'libggml-cpu-evil.so')!r}).ggml_backend_init()"
    path = {"LD_LIBRARY_PATH": find_bundle().directory}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | path)
    assert Path(f"{real}.was-loaded").exists()


@pytest.mark.usefixtures("warm")
def test_planted_package_is_not_imported(tmp_path: Path, cli: Cli) -> None:
    for name in ("edgechat", "msgspec", "ctypes", "jinja2"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')")
    assert cli("ask", "Hi", "--max-tokens", "4", cwd=tmp_path).returncode == 0


def test_missing_module_gives_a_verdict_and_missing_library_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, chosen_name: str
) -> None:
    directory = copy_bundle(tmp_path / "bundle")
    (directory / f"libggml-{chosen_name}.so").unlink()
    assert find_verdict(use_bundle(monkeypatch, directory), chosen_name).status == "missing"
    assert cli("ask", "Hi", "--max-tokens", "2").returncode == 0  # with the next module
    (directory / "libllama.so").unlink()
    result = cli("ask", "Hi")
    assert result.returncode == 4
    assert "libllama.so is missing" in result.stderr


def test_error_of_a_variable_without_a_bundle_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setenv("EDGECHAT_NATIVE_DIR", str(tmp_path))
    result = cli("ask", "Hi")
    assert result.returncode == 4
    assert (
        f"Cannot find a native bundle in {tmp_path}, which the environment variable EDGECHAT_NATIVE_DIR names"
        in result.stderr
    )
    assert "Correct or unset the variable." in result.stderr
    assert cli("doctor").returncode == 4


def test_error_without_working_backend_names_every_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = use_bundle(monkeypatch, copy_bundle(tmp_path / "bundle"))
    for module in bundle.modules:
        Path(module.path).write_bytes(b"not a library")
    with pytest.raises(RuntimeLoadError) as error:
        probe.choose_module(bundle)
    assert all(m.name in str(error.value) for m in bundle.modules)


@pytest.mark.usefixtures("warm")
def test_second_engine_crash_withdraws_a_verdict() -> None:
    bundle = find_bundle()
    module, _ = probe.choose_module(bundle)
    key = verdicts.compute_verdict_key(bundle, module, read_cpu())
    verdicts.record_engine_crash(key, module.name, "SIGSEGV")
    assert probe.choose_module(bundle)[0] == module
    verdicts.record_engine_crash(key, module.name, "SIGSEGV")
    other, _ = probe.choose_module(bundle)
    assert other != module
    assert "failed on it 2 times" in find_verdict(bundle, module.name).reason


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can hold a process to one core")
def test_modules_pass_on_one_core() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from edgechat.runtime.backends.bundle import find_bundle\n"
        "from edgechat.runtime.backends.probe import choose_module\n"
        "print(choose_module(find_bundle())[1].status)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "passed"


def test_verdict_key_depends_on_build_module_and_cpu() -> None:
    bundle, cpu = find_bundle(), read_cpu()
    module = bundle.modules[0]
    key = verdicts.compute_verdict_key(bundle, module, cpu)
    replace = msgspec.structs.replace
    other_keys = [
        verdicts.compute_verdict_key(replace(bundle, build_id="x"), module, cpu),
        verdicts.compute_verdict_key(bundle, replace(module, path="/none"), cpu),
        verdicts.compute_verdict_key(bundle, module, replace(cpu, flags="x")),
        verdicts.compute_verdict_key(bundle, module, replace(cpu, microcode="x")),
    ]
    assert len({key, *other_keys}) == 5


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b'{"verdicts": 5}'])
def test_damaged_verdicts_file_counts_as_empty(home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(probe, "run_selftest", lambda module: verdicts.Verdict(module.name, "passed", ""))
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "backends.json").write_bytes(content)
    bundle = find_bundle()
    assert probe.choose_module(bundle)[1].is_usable
    assert b"passed" in (home / "cache" / "backends.json").read_bytes()


@pytest.mark.usefixtures("warm")
def test_llama_library_inside_the_bindings_is_reported_and_not_used(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    bindings = tmp_path / "site" / "llama_cpp"
    shutil.copytree(Path(str(spec.origin)).parent, bindings)
    (bindings / "lib").mkdir(exist_ok=True)
    (bindings / "lib" / "libllama.so").write_bytes(b"not a library")
    monkeypatch.setenv("PYTHONPATH", str(bindings.parent))
    result = cli("ask", "-m", "starter", "--max-tokens", "4", "--temperature", "0", "Hi")
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert "llama-cpp-python contains its own build of llama.cpp" in result.stderr
    assert "does not use" in cli("doctor").stdout
