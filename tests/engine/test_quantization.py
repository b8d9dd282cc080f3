"""Quantisation of model files: equal to plain llama.cpp, bounded in memory, and never a damaged file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat import paths, process
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError, ModelFileError, RequestCancelledError, UsageError
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.models.quantization import MAX_BUFFER_BYTES, Quantization
from edgechat.planner.requantize import find_preset_number
from tests.conftest import ROOT, Cli, edgechat_command
from tests.models import split_tiny
from tests.waiting import until

MIB = 1 << 20


@pytest.fixture(scope="module")
def full_precision(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The starter model in F16."""
    path = tmp_path_factory.mktemp("f16") / "starter.F16.gguf"
    quantize(starter, path, "F16")
    yield path
    path.unlink()


def quantize(source: Path, target: Path, quant: str, max_buffer_bytes: int = MAX_BUFFER_BYTES) -> list[tuple[int, int]]:
    """Quantise `source`, and return the progress."""
    engine, progress = EngineClient(), list[tuple[int, int]]()
    try:
        Quantization(engine, source, quant).run(
            target, lambda *counts: progress.append(counts), max_buffer_bytes=max_buffer_bytes
        )
    finally:
        engine.close()
    return progress


@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0", "Q4_K_M"])
def test_file_equals_that_of_llama_cpp_with_any_buffer(full_precision: Path, tmp_path: Path, quant: str) -> None:
    progress = quantize(full_precision, tmp_path / "ours.gguf", quant, max_buffer_bytes=4 * MIB)
    n_tensors = len(read_gguf_header(full_precision).tensors)
    assert progress == [(i + 1, n_tensors) for i in range(n_tensors)]
    program = (
        "import ctypes, sys; from edgechat.runtime import bindings\n"
        "from edgechat.runtime.backends import bundle, probe\n"
        "b = bundle.find_bundle(); llama = bindings.load(b, probe.choose_module(b)[0]).llama\n"
        "p = llama.llama_model_quantize_default_params(); p.ftype = int(sys.argv[3])\n"
        "sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(p)))\n"
    )
    arguments = [str(full_precision), str(tmp_path / "plain.gguf"), str(find_preset_number(quant))]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.gguf*")) == ["ours.gguf", "plain.gguf"]


@pytest.mark.long
@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0", "Q4_K_M"])
def test_file_equals_that_of_llama_quantize(full_precision: Path, tmp_path: Path, quant: str) -> None:
    """The tool is built from the same source (`make peers`)."""
    build = subprocess.run(
        [sys.executable, str(ROOT / "native" / "build.py"), "peers"], check=True, capture_output=True, text=True
    )
    quantize(full_precision, tmp_path / "ours.gguf", quant)
    subprocess.run(
        [f"{build.stdout.strip()}/bin/llama-quantize", str(full_precision), str(tmp_path / "tool.gguf"), quant],
        check=True, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "tool.gguf").read_bytes()


def test_size_is_known_before(full_precision: Path, tmp_path: Path) -> None:
    engine = EngineClient()
    job = Quantization(engine, full_precision, "q4_k_m")
    engine.close()
    job.run(tmp_path / "new.gguf", lambda _number, _count: None)
    assert abs((tmp_path / "new.gguf").stat().st_size - job.target_bytes) < 64 * 1024  # the header is rewritten
    assert job.default_target == paths.models_dir() / "quantized" / "starter.Q4_K_M.gguf"
    assert "as good as a download" in job.quality_note


@pytest.mark.skipif(sys.platform != "linux", reason="reads the largest memory of a process from /proc")
def test_memory_is_bounded(full_precision: Path, tmp_path: Path) -> None:
    command = process.make_command_line(
        "_quantise", str(full_precision), str(tmp_path / "new.gguf"), str(find_preset_number("Q4_0")), str(256 * MIB)
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
    assert int(output) * 1024 < 400 * 10**6


@pytest.mark.long
def test_kills_never_leave_a_damaged_model(full_precision: Path, tmp_path: Path) -> None:
    generator = random.Random(1)
    target = tmp_path / "new.gguf"
    command = edgechat_command("models", "quantize", str(full_precision), "Q4_K_M", "-o", str(target))
    started_at = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    duration_s, size_bytes = time.monotonic() - started_at, target.stat().st_size
    n_complete = 0
    for _ in range(50):
        target.unlink(missing_ok=True)
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.1, 1.1) * duration_s)
        child.kill()
        child.wait()
        if target.exists():
            n_complete += 1
            read_gguf_header(target)
            assert target.stat().st_size == size_bytes
    assert n_complete < 50


def test_child_ends_with_its_parent(full_precision: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.gguf"
    program = (
        "import sys; from pathlib import Path; from edgechat.engine.client import EngineClient\n"
        "from edgechat.models.quantization import Quantization\n"
        "job = Quantization(EngineClient(), Path(sys.argv[1]), 'Q2_K')\n"
        "job.run(Path(sys.argv[2]), lambda *counts: print(*counts, flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(full_precision), str(target)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        parent.kill()
    (part,) = tmp_path.glob("new.gguf.*.quantizing")
    sizes: list[int] = []

    def has_stopped() -> bool:
        sizes.append(part.stat().st_size)
        return len(sizes) > 3 and sizes[-1] == sizes[-4]

    until(has_stopped, 30, "the child has ended", interval_s=0.1)
    assert not target.exists()


def test_cancelled_run_leaves_no_file(full_precision: Path, tmp_path: Path) -> None:
    engine, cancellation, has_started = EngineClient(), Cancellation(), threading.Event()

    def cancel() -> None:
        has_started.wait()
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(RequestCancelledError):
        Quantization(engine, full_precision, "Q2_K").run(
            tmp_path / "new.gguf", lambda *_counts: has_started.set(), cancellation
        )
    thread.join()
    engine.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]


def test_split_model_becomes_one_file(tmp_path: Path) -> None:
    parts = split_tiny(tmp_path)
    quantize(parts[0], tmp_path / "new.gguf", "Q8_0")
    names = {tensor.name for part in parts for tensor in read_gguf_header(part).tensors}
    assert {tensor.name for tensor in read_gguf_header(tmp_path / "new.gguf").tensors} == names


def test_refusals_name_the_reason(
    cli: Cli, starter: Path, full_precision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EngineClient()
    with pytest.raises(UsageError, match="Available quants: Q2_K"):
        Quantization(engine, starter, "Q9")
    with pytest.raises(UsageError, match="is already in F16"):
        Quantization(engine, full_precision, "f16")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(starter.read_bytes()[:1_000_000])
    with pytest.raises(ModelFileError, match=r"cut\.gguf"):
        Quantization(engine, cut, "Q4_0")
    job = Quantization(engine, starter, "Q4_0")
    (tmp_path / "there.gguf").touch()
    with pytest.raises(UsageError, match="exists"):
        job.run(tmp_path / "there.gguf", lambda *_counts: None)
    monkeypatch.setattr(paths, "free_bytes", lambda _path: 90 * MIB)
    with pytest.raises(UsageError, match=r"needs 92 MB, but .* has only 94 MB free"):
        job.run(tmp_path / "new.gguf", lambda *_counts: None)
    engine.close()
    assert cli("models", "quantize", "starter", "Q9").returncode == 2
    assert cli("models", "quantize", "no-such-model", "Q4_0").returncode == 3


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_signals_that_end_the_program_leave_no_file(full_precision: Path, tmp_path: Path) -> None:
    arguments = ["models", "quantize", str(full_precision), "Q4_K_M"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        with subprocess.Popen(
            edgechat_command(*arguments, "-o", str(tmp_path / "new.gguf")), stderr=subprocess.DEVNULL
        ) as program:
            until(lambda: list(tmp_path.glob("new.gguf*")))
            program.send_signal(number)
            assert program.wait(30) == 128 + number
        assert not list(tmp_path.glob("new.gguf*"))


def test_incomplete_file_of_a_killed_process_is_no_download(starter: Path, tmp_path: Path, cli: Cli) -> None:
    folder = paths.models_dir() / "quantized"
    folder.mkdir(parents=True)
    incomplete = folder / "m.Q4_0.gguf.123.quantizing"
    incomplete.write_bytes(b"GGUF")
    assert "ncomplete" not in cli("models", "list").stdout
    os.utime(incomplete, (0, 0))
    quantize(starter, folder / "other.gguf", "Q4_0")
    assert not incomplete.exists()


def test_failed_write_leaves_no_file(starter: Path, tmp_path: Path) -> None:
    engine = EngineClient()
    job = Quantization(engine, starter, "Q4_0")
    engine.close()
    job.source = tmp_path / "deleted.gguf"
    with pytest.raises(EngineError, match="Cannot quantise"):
        job.run(tmp_path / "new.gguf", lambda *_counts: None)
    assert not list(tmp_path.glob("new.gguf*"))


def test_command_installs_the_new_quant(cli: Cli) -> None:
    result = cli("models", "quantize", "starter", "q4_0")
    assert "Start it with: edgechat -m SmolLM2-135M-Instruct.Q4_0" in result.stdout
    assert "Q4_1 to Q4_0, 98 MB to 92 MB. From Q4_1 the result is worse than a download" in result.stderr
    assert "SmolLM2-135M-Instruct.Q4_0" in cli("models", "list").stdout
