"""Quantisation of model files: equal to plain llama.cpp, bounded in memory, and never a damaged file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from edgechat import paths, process
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError, ModelFileError, RequestCancelledError, UsageError
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.models.quantization import MAX_BUFFER_BYTES, Quantization
from edgechat.planner.requantize import find_preset_number
from tests.conftest import ROOT, Cli, edgechat_command
from tests.fuzzing import shorten
from tests.layered_models import write_wide_llama
from tests.models import split_tiny
from tests.waiting import has_ended, until

MIB = 1 << 20
QUANTS = ("Q4_0", "Q8_0", "Q4_K_M")


@pytest.fixture(scope="module")
def full_precision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a small model in F16."""
    return write_wide_llama(tmp_path_factory.mktemp("f16") / "wide.F16.gguf")


def quantize(
    engine: EngineClient, source: Path, target: Path, quant: str, max_buffer_bytes: int = MAX_BUFFER_BYTES
) -> list[tuple[int, int]]:
    """Quantise `source`, and return the progress."""
    progress: list[tuple[int, int]] = []
    Quantization(engine, source, quant).run(
        target, lambda *counts: progress.append(counts), max_buffer_bytes=max_buffer_bytes
    )
    return progress


def find_child(parent_pid: int) -> psutil.Process | None:
    """Return the process that quantises for the process `parent_pid`; None if there is none."""
    for child in psutil.Process(parent_pid).children(recursive=True):
        try:
            if "_quantise" in child.cmdline():
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def test_files_equal_those_of_llama_cpp_with_any_buffer(
    empty_engine: EngineClient, full_precision: Path, tmp_path: Path
) -> None:
    n_tensors = len(read_gguf_header(full_precision).tensors)
    targets: list[str] = []
    for quant in QUANTS:
        # A matrix takes up to 1 MiB in F32, so that it is quantised in parts.
        progress = quantize(empty_engine, full_precision, tmp_path / f"{quant}.ours.gguf", quant, 64 << 10)
        assert progress == [(i + 1, n_tensors) for i in range(n_tensors)]
        targets += [str(tmp_path / f"{quant}.plain.gguf"), str(find_preset_number(quant))]
    program = (
        "import ctypes, sys; from edgechat.runtime import bindings\n"
        "from edgechat.runtime.backends import bundle, probe\n"
        "b = bundle.find_bundle(); llama = bindings.load(b, probe.choose_module(b)[0]).llama\n"
        "p = llama.llama_model_quantize_default_params()\n"
        "for target, preset in zip(sys.argv[2::2], sys.argv[3::2]):\n"
        "    p.ftype = int(preset)\n"
        "    assert not llama.llama_model_quantize(sys.argv[1].encode(), target.encode(), ctypes.byref(p))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(full_precision), *targets], check=True, capture_output=True)
    for quant in QUANTS:
        ours, plain = (tmp_path / f"{quant}.{name}.gguf" for name in ("ours", "plain"))
        assert ours.read_bytes() == plain.read_bytes()
    assert len(list(tmp_path.glob("*.gguf*"))) == 2 * len(QUANTS)


@pytest.mark.long
def test_files_equal_those_of_llama_quantize(empty_engine: EngineClient, full_precision: Path, tmp_path: Path) -> None:
    """The tool is built from the same source (`make peers`)."""
    build = subprocess.run(
        [sys.executable, str(ROOT / "native" / "build.py"), "peers"], check=True, capture_output=True, text=True
    )
    for quant in QUANTS:
        ours, theirs = tmp_path / f"{quant}.ours.gguf", tmp_path / f"{quant}.tool.gguf"
        quantize(empty_engine, full_precision, ours, quant)
        subprocess.run(
            [f"{build.stdout.strip()}/bin/llama-quantize", str(full_precision), str(theirs), quant],
            check=True, capture_output=True,
        )  # fmt: skip
        assert ours.read_bytes() == theirs.read_bytes()


def test_size_is_known_before(empty_engine: EngineClient, full_precision: Path, tmp_path: Path) -> None:
    job = Quantization(empty_engine, full_precision, "q4_k_m")
    job.run(tmp_path / "new.gguf", lambda _number, _count: None)
    assert abs((tmp_path / "new.gguf").stat().st_size - job.target_bytes) < 64 * 1024  # the header is rewritten
    assert job.default_target == paths.models_dir() / "quantized" / "wide.Q4_K_M.gguf"
    assert "as good as a download" in job.quality_note


@pytest.mark.skipif(sys.platform != "linux", reason="reads the largest memory of a process from /proc")
def test_memory_is_bounded(starter: Path, tmp_path: Path) -> None:
    command = process.make_command_line(
        "_quantise", str(starter), str(tmp_path / "new.gguf"), str(find_preset_number("Q4_0")), str(16 * MIB)
    )
    measure = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", measure, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:  # fmt: skip
        assert child.stdout is not None
        output = child.stdout.read()
    # The process took 69 MB. The largest matrix alone would take 113 MB in F32.
    assert int(output) * 1024 < 150 * 10**6


@pytest.mark.long
def test_kills_never_leave_a_damaged_model(full_precision: Path, tmp_path: Path) -> None:
    generator = random.Random(1)
    target = tmp_path / "new.gguf"
    command = edgechat_command("models", "quantize", str(full_precision), "Q4_K_M", "-o", str(target))

    def start() -> subprocess.Popen[bytes]:
        """Start a quantisation, and wait until it writes its file."""
        for path in tmp_path.glob("new.gguf*"):
            path.unlink()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: list(tmp_path.glob("new.gguf*")), interval_s=0.002)
        return child

    child, started_at = start(), time.monotonic()
    assert child.wait() == 0
    duration_s, size_bytes = time.monotonic() - started_at, target.stat().st_size
    for _ in range(shorten(50, 10)):
        child = start()
        time.sleep(generator.uniform(0, 1) * duration_s)
        child.kill()
        child.wait()
        if target.exists():
            read_gguf_header(target)
            assert target.stat().st_size == size_bytes


def test_child_ends_with_its_parent(starter: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.gguf"
    program = (
        "import sys; from pathlib import Path; from edgechat.engine.client import EngineClient\n"
        "from edgechat.models.quantization import Quantization\n"
        "job = Quantization(EngineClient(), Path(sys.argv[1]), 'Q2_K')\n"
        "print(job.target_bytes, flush=True)\n"
        "job.run(Path(sys.argv[2]), lambda *counts: print(*counts, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(starter), str(target)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        target_bytes = int(parent.stdout.readline())
        assert parent.stdout.readline()
        child = find_child(parent.pid)
        assert child is not None
        child.suspend()  # so that it cannot finish before its parent ends
        parent.kill()
    (part,) = tmp_path.glob("new.gguf.*.quantizing")
    child.resume()
    until(lambda: has_ended(child))
    assert part.stat().st_size < target_bytes
    assert not target.exists()


def test_cancelled_run_leaves_no_file(empty_engine: EngineClient, full_precision: Path, tmp_path: Path) -> None:
    cancellation, has_started = Cancellation(), threading.Event()

    def cancel() -> None:
        has_started.wait()
        cancellation.cancel()

    def on_progress(_number: int, _count: int) -> None:
        has_started.set()
        thread.join()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(RequestCancelledError):
        Quantization(empty_engine, full_precision, "Q2_K").run(tmp_path / "new.gguf", on_progress, cancellation)
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]


def test_split_model_becomes_one_file(empty_engine: EngineClient, tmp_path: Path) -> None:
    parts = split_tiny(tmp_path)
    quantize(empty_engine, parts[0], tmp_path / "new.gguf", "Q8_0")
    names = {tensor.name for part in parts for tensor in read_gguf_header(part).tensors}
    assert {tensor.name for tensor in read_gguf_header(tmp_path / "new.gguf").tensors} == names


def test_refusals_name_the_reason(
    cli: Cli, empty_engine: EngineClient, starter: Path, full_precision: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with pytest.raises(UsageError, match="Available quants: Q2_K"):
        Quantization(empty_engine, starter, "Q9")
    with pytest.raises(UsageError, match="is already in F16"):
        Quantization(empty_engine, full_precision, "f16")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(starter.read_bytes()[:1_000_000])
    with pytest.raises(ModelFileError, match=r"cut\.gguf"):
        Quantization(empty_engine, cut, "Q4_0")
    job = Quantization(empty_engine, starter, "Q4_0")
    (tmp_path / "there.gguf").touch()
    with pytest.raises(UsageError, match="exists"):
        job.run(tmp_path / "there.gguf", lambda *_counts: None)
    monkeypatch.setattr(paths, "free_bytes", lambda _path: 90 * MIB)
    with pytest.raises(UsageError, match=r"needs 92 MB, but .* has only 94 MB free"):
        job.run(tmp_path / "new.gguf", lambda *_counts: None)
    assert cli("models", "quantize", "starter", "Q9").returncode == 2
    assert cli("models", "quantize", "no-such-model", "Q4_0").returncode == 3


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_signals_that_end_the_program_leave_no_file(starter: Path, tmp_path: Path) -> None:
    arguments = ["models", "quantize", str(starter), "Q2_K"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        with subprocess.Popen(
            edgechat_command(*arguments, "-o", str(tmp_path / "new.gguf")), stderr=subprocess.DEVNULL
        ) as program:
            until(lambda: list(tmp_path.glob("new.gguf*")))
            child = find_child(program.pid)
            assert child is not None
            child.suspend()  # so that it cannot finish before the signal arrives
            program.send_signal(number)
            assert program.wait(300) == 128 + number
        assert not list(tmp_path.glob("new.gguf*"))


def test_incomplete_file_of_a_killed_process_is_no_download(
    empty_engine: EngineClient, full_precision: Path, cli: Cli
) -> None:
    folder = paths.models_dir() / "quantized"
    folder.mkdir(parents=True)
    incomplete = folder / "m.Q4_0.gguf.123.quantizing"
    incomplete.write_bytes(b"GGUF")
    assert "ncomplete" not in cli("models", "list").stdout
    os.utime(incomplete, (0, 0))
    quantize(empty_engine, full_precision, folder / "other.gguf", "Q4_0")
    assert not incomplete.exists()


def test_failed_write_leaves_no_file(empty_engine: EngineClient, full_precision: Path, tmp_path: Path) -> None:
    job = Quantization(empty_engine, full_precision, "Q4_0")
    job.source = tmp_path / "deleted.gguf"
    with pytest.raises(EngineError, match="Cannot quantise"):
        job.run(tmp_path / "new.gguf", lambda *_counts: None)
    assert not list(tmp_path.glob("new.gguf*"))


def test_command_installs_the_new_quant(cli: Cli) -> None:
    result = cli("models", "quantize", "starter", "q4_0")
    assert "Start it with: edgechat -m SmolLM2-135M-Instruct.Q4_0" in result.stdout
    assert "Q4_1 to Q4_0, 98 MB to 92 MB. From Q4_1 the result is worse than a download" in result.stderr
    assert "SmolLM2-135M-Instruct.Q4_0" in cli("models", "list").stdout
