"""Steps of try.sh: tests, replies and speeds of edgechat on a GPU, each with a time limit, summed up in report.md."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.hardware.gpu import Gpu, GpuSpeeds, TypeRates
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.models import resources
from edgechat.planner.machine import choose_gpu
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.store import open_ephemeral_store

# Time of all steps, and of single ones, in seconds. A step that would end after the limit is left out. The self-test
# keeps the types that it has tested when its time is over; DOCTOR_S is for all of the command.
TOTAL_S = 450.0
SELFTEST_S = 120.0
DOCTOR_S = 200.0
BENCH_S = 90.0
# Starts `edgechat` with a time limit of the self-test that a busy machine does not extend.
DOCTOR_CODE = f"""
from edgechat.cli.main import main
from edgechat.runtime.backends import probe
class Deadline(probe._ProgressDeadline):
    def is_over(self):
        return super().is_over() or self._clock.read() > {SELFTEST_S}
probe._ProgressDeadline = Deadline
main()
"""
# Memory of the GPU that is left to a model which does not fit.
LEFT_BYTES = 200 << 20
# Names the variable that limits the memory of a stand-in for a GPU, in tests.
MEMORY_VARIABLE = "EDGECHAT_TRY_MEMORY_VARIABLE"
# Longer than 32 tokens, the smallest batch of which a GPU computes the prefill with weights in CPU memory.
PROMPT = f"Continue until 60: {', '.join(map(str, range(1, 41)))}"
MIB = 1 << 20


class Report:
    """Report in Markdown, written after each step, so that an interrupted run leaves what it found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.started_s = time.monotonic()
        self.backends: list[dict[str, Any]] = []
        """Tested modules and devices, from the output of `doctor`."""

    @property
    def left_s(self) -> float:
        """Time that is left for the next steps."""
        return TOTAL_S - (time.monotonic() - self.started_s)

    def add(self, text: str) -> None:
        """Append lines to the report."""
        self.lines.append(text)
        (self.folder / "report.md").write_text("\n".join(self.lines) + "\n", "utf-8")

    def run(self, name: str, step: Callable[[], None]) -> None:
        """Run a step and report its time, or why it failed."""
        if self.left_s < 10:  # noqa: PLR2004
            self.add(f"\n## {name}\n\nleft out: the time is over")
            return
        self.add(f"\n## {name}\n")
        started_s = time.monotonic()
        try:
            step()
        except Exception as error:  # noqa: BLE001  (every failure is a result)
            traceback.print_exc()
            self.add(f"**failed**: {type(error).__name__}: {error}")
        self.add(f"\n({time.monotonic() - started_s:.0f} s)")


def edgechat(report: Report, name: str, *arguments: str, limit_s: float, code: str = "") -> str:
    """Run a command of edgechat, started by `code` if given, keep its output in a file, and return it."""
    command = [sys.executable, "-X", "utf8", *(("-c", code) if code else ("-m", "edgechat")), *arguments]
    with (report.folder / f"{name}.txt").open("w+", encoding="utf-8") as file:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, stdout=file, stderr=sys.stderr, check=False, timeout=min(limit_s, report.left_s))
        file.seek(0)
        return file.read()


def run_doctor(report: Report) -> None:
    """Test every type on every device, as far as the time goes."""
    output = edgechat(report, "doctor", "doctor", "--json", limit_s=DOCTOR_S, code=DOCTOR_CODE)
    if not output:
        steps = (report.folder / "errors.log").read_text("utf-8", "replace").splitlines()[-1:]
        report.add(f"not finished in {DOCTOR_S:.0f} s, at: {''.join(steps)}")
    diagnosis = json.loads(output or "{}")
    report.backends = diagnosis.get("backends", [])
    for backend in report.backends:
        report.add(f"- {backend['module']}: {backend['status']}, {backend['reason']}")
        for device in backend["devices"]:
            numbers = device["types"] or ()
            names = [TENSOR_TYPES[number].name if number in TENSOR_TYPES else str(number) for number in numbers]
            types = "all types" if device["types"] is None else f"types {' '.join(names) or 'none'}"
            report.add(
                f"  - {device['name']}: {device['description']}, {device['kind']}, driver {device['driver'] or '?'}; "
                f"{device['status']}, {types}; {device['speed']}"
            )
    for warning in diagnosis.get("warnings", []):
        report.add(f"- warning: {warning}")


def choose_gpu_for(use: str, gpus: Sequence[Gpu]) -> Gpu | None:
    """Return the GPU with speeds for which plans put layers or only prefill on it; unchanged if `use` is ""."""
    gpu = choose_gpu(gpus)
    if gpu is None or not use:
        return gpu
    rates = tuple(
        TypeRates(type_id=n, decode=1.0, prefill=1e9, cpu_decode=1e9, cpu_prefill=1e6) for n in TENSOR_TYPES
    )  # fmt: skip
    speeds = GpuSpeeds(rates=rates, copied_bytes_per_s=1e12) if use == "prefill" else GpuSpeeds()
    return msgspec.structs.replace(gpu, speeds=speeds)


@contextlib.contextmanager
def session(model: Path, *, budget: int | None = None, use: str = "layers", **options: Any) -> Iterator[Session]:
    """Open a session; `budget` limits the GPU memory that the plan may use, and `use` says for what."""
    original = resources._compute_gpu_budget_bytes  # noqa: SLF001
    if budget is not None:
        resources._compute_gpu_budget_bytes = lambda gpu: budget  # noqa: SLF001
    resources.choose_gpu = partial(choose_gpu_for, use)
    opened = Session(open_ephemeral_store(), Settings(n_ctx=2048, temperature=0.0, max_tokens=64, **options), model)
    try:
        opened.open()
        yield opened
    finally:
        resources._compute_gpu_budget_bytes = original  # noqa: SLF001
        resources.choose_gpu = choose_gpu
        opened.close()


def describe(opened: Session) -> tuple[str, str]:
    """Send the prompt; return the reply, and a line about the plan, the memory and the speed."""
    *_, last = opened.send(PROMPT)
    reply, plan = last.reply, opened.model.plan  # type: ignore[union-attr]
    if plan is None:
        raise RuntimeError("the session has no plan")
    memory = {
        name: f"{sum(v for k, v in entry.items() if k.endswith('_bytes')) / MIB:.0f} MiB"
        for name, entry in opened.model.engine.stats().memory.items()
    }
    planned = f"planned {plan.estimate.gpu / MIB:.0f} MiB on the GPU, {plan.estimate.total / MIB:.0f} MiB in all"
    speed = f"prefill {reply.stats.prefill_tps or 0:.1f}, decode {reply.stats.decode_tps or 0:.1f} tokens/s"
    use = f"{plan.options.n_gpu_layers} layers{' and prefill' if plan.options.prefill_on_gpu else ''}"
    reason = plan.reasons.get("n_gpu_layers", "")
    return reply.text, f"{use}; {planned}; used {memory}; {speed}; {opened.warnings}; {reason}"


def compare_replies(report: Report, model: Path) -> None:
    """Reply on the GPU, on both, on the CPU, and as chosen by speed. The texts should be equal up to near ties."""
    texts: dict[str, str] = {}
    n_planned = 0
    for name in ("GPU", "half", "prefill", "CPU", "chosen"):
        variants: dict[str, dict[str, Any]] = {
            "GPU": {}, "half": {"budget": n_planned // 2}, "prefill": {"use": "prefill"}, "CPU": {"gpu": False},
            "chosen": {"use": ""},
        }  # fmt: skip
        options = variants[name]
        with session(model, **options) as opened:
            describe(opened)  # compiles kernels
        with session(model, **options) as opened:
            texts[name], line = describe(opened)
            n_planned = n_planned or (opened.model.plan.estimate.gpu if opened.model.plan else 0)
            report.add(f"- {name}: {line}")
    for name, text in texts.items():
        same = next((i for i, (a, b) in enumerate(zip(text, texts["CPU"], strict=False)) if a != b), len(text))
        report.add(f"- {name}: {'equal' if text == texts['CPU'] else f'equal for {same} characters'}: {text!r}")


@contextlib.contextmanager
def full_gpu(report: Report, model: Path) -> Iterator[str]:
    """Let another process hold the memory of the GPU. Yields how much, or "" if its memory is that of the machine."""
    variable = os.environ.get(MEMORY_VARIABLE)
    if variable:
        os.environ[variable] = str(model.stat().st_size // 2)
        try:
            yield f"{variable}={os.environ[variable]}"
        finally:
            del os.environ[variable]
        return
    modules = [b["path"] for b in report.backends if [d["kind"] for d in b["devices"][:1]] == ["discrete"]]
    if not modules:
        yield ""
        return
    command = [sys.executable, str(Path(__file__).parent / "hold.py"), modules[0], str(LEFT_BYTES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            yield f"{int(holder.stdout.readline() or 0) / MIB:.0f} MiB held"  # type: ignore[union-attr]
        finally:
            holder.kill()


def exhaust_memory(report: Report, model: Path) -> None:
    """Load the model while another program has the memory of the GPU, although the plan believes that it is free."""
    with full_gpu(report, model) as held:
        if not held:
            report.add("left out: no discrete GPU; the memory of others is that of the machine")
            return
        with session(model, budget=model.stat().st_size * 4) as opened:
            report.add(f"- {held}: {describe(opened)[1]}")


def run_llama_bench(report: Report, program: str, model: Path) -> None:
    """Run llama-bench with the same module, to compare its speeds with those of the replies."""
    bundle = find_bundle()
    module = next((b["path"] for b in report.backends if b["devices"] and b["status"] == "passed"), "")
    command = [program, "-m", str(model), "-p", "256", "-n", "64", "-ngl", "99", "-r", "2"]
    # ggml loads the module of the variable, and the best module for the CPU from the current directory.
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=min(BENCH_S, report.left_s), cwd=bundle.directory,
        env=os.environ | {"GGML_BACKEND_PATH": module},
    )  # fmt: skip
    report.add(f"```\n{done.stdout or done.stderr[-1000:]}\n```")


def main() -> int:
    """Run all steps."""
    folder, *names = map(str, sys.argv[1:])
    models = [Path(name).resolve() for name in names[: names.index("--") if "--" in names else len(names)]]
    bench = [str(Path(name).resolve()) for name in names[names.index("--") + 1 :]] if "--" in names else []
    report = Report(Path(folder))
    report.add(f"# edgechat on a GPU\n\n{' '.join(names)}")
    report.run("doctor: self-test of every type", lambda: run_doctor(report))
    for model in models:
        report.run(f"replies of {model.name}", lambda model=model: compare_replies(report, model))  # type: ignore[misc]
    report.run("out of memory", lambda: exhaust_memory(report, models[-1]))
    if bench:
        report.run("llama-bench with all layers on the GPU", lambda: run_llama_bench(report, bench[0], models[-1]))
    for name, arguments in {
        "speed": ["bench", "speed", "-m", str(models[-1]), "--rounds", "2", *(("--peer", bench[0]) if bench else ())],
        "speculation": ["bench", "speculation", "-m", str(models[-1]), "--rounds", "1", "--kinds", "edit"],
    }.items():
        report.run(
            f"bench {name} on the CPU",
            lambda name=name, arguments=arguments: report.add(  # type: ignore[misc]
                f"```\n{edgechat(report, name, *arguments, limit_s=BENCH_S)}\n```"
            ),
        )
    report.add(f"\n{TOTAL_S - report.left_s:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
