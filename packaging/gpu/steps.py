"""Steps of try.py after the installation: self-test, replies, exhausted memory, speeds and `doctor` on a GPU.

The argument is a JSON object with step, model, file for results, seconds left, and the path of llama-bench or "". Each
result is written at once, so that a killed step leaves what it found.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgechat.chat.events import format_notice
from edgechat.chat.session import Session
from edgechat.cli.doctor import diagnose
from edgechat.config import GREEDY, Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.engine.generation import TokenLogprobs
from edgechat.hardware.gpu import Gpu, GpuSpeeds, TypeRates
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.models import resources
from edgechat.planner.machine import choose_gpu
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.store import open_ephemeral_store

# Time of the self-test's step that the tests of the CPU modules need, and the end of a test.
CPU_TEST_S = 20.0
# Memory of the GPU that is left to a model which does not fit.
LEFT_BYTES = 200 << 20
# Names the variable that limits the memory of a stand-in for a GPU, in tests.
MEMORY_VARIABLE = "EDGECHAT_TRY_MEMORY_VARIABLE"
# Number of tokens of a reply, and less work in `bench speed`, for a stand-in that is slow.
TOKENS_VARIABLE = "EDGECHAT_TRY_TOKENS"
# Longer than 32 tokens, the smallest batch of which a GPU computes the prefill with weights in CPU memory.
PROMPT = f"Continue until 30: {', '.join(map(str, range(1, 25)))}"
N_LOGPROBS = 16
# Difference of log probabilities below which two tokens are as likely, for kernels that round differently.
NEAR_TIE = 0.5
MIB = 1 << 20


class Request(msgspec.Struct):
    """What to run; see the module's docstring."""

    step: str
    model: str
    results: str
    left_s: float
    llama_bench: str = ""


class Reply(NamedTuple):
    """Results of one session: text of the chat, tokens with logprobs after the same prompt, and figures."""

    text: str
    ids: list[int]
    tokens: list[TokenLogprobs]
    n_layers: int
    prefills: bool
    gpu_planned: int
    gpu_used: int
    figures: str
    warnings: list[str]


def report(request: Request, check: str, state: str, figures: str) -> None:
    """Write the result of a check."""
    with Path(request.results).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"check": check, "state": state, "figures": figures}) + "\n")


def run_selftest(request: Request) -> None:
    """Test every weight type on every device, as far as the time goes."""
    diagnosis = diagnose(max_gpu_test_s=max(5.0, request.left_s - CPU_TEST_S))
    state, figures = describe_devices(diagnosis)
    report(request, request.step, state, figures)


def describe_devices(diagnosis: dict[str, Any]) -> tuple[str, str]:
    """Return state and figures of the self-tests of all GPU modules."""
    texts, states = [], []
    for backend in diagnosis["backends"]:
        if backend["module"].startswith("cpu-"):
            continue
        for device in backend["devices"]:
            numbers = device["types"] or ()
            names = [TENSOR_TYPES[number].name for number in numbers if number in TENSOR_TYPES]
            is_complete = not device["untested_types"]
            types = "all types right" if is_complete else f"{len(numbers)} types right: {' '.join(names)}"
            is_right = device["status"] == "passed" and not device.get("failed_types")
            states.append("FAIL" if not is_right else "PASS" if is_complete else "CUT")
            failed = [TENSOR_TYPES[f["type_id"]].name for f in device.get("failed_types", ())]
            types += f", not {' '.join(failed)}" if failed else ""
            driver = f"driver {device['driver'] or '?'}"
            texts.append(f"{device['name']}, {device['description']}, {device['kind']}, {driver}: {types}")
        if not backend["devices"] or backend["status"] != "passed" or "CUT" in states:
            texts.append(f"{backend['module']} {backend['status']}, {backend['reason']}")
    if not {"PASS", "CUT"}.intersection(states):
        return "FAIL", "; ".join(texts) or "no GPU module is installed"
    return ("PASS" if set(states) == {"PASS"} else "FAIL" if "FAIL" in states else "CUT"), "; ".join(texts)


def show_doctor(request: Request) -> None:
    """Show the verdicts and speeds that the earlier steps left, without further tests."""
    diagnosis = diagnose(max_gpu_test_s=0.0)
    devices = [device for backend in diagnosis["backends"] for device in backend["devices"]]
    texts = [f"{d['name']}: {'not used: ' * d['is_slower']}{d['speed']}" for d in devices if d["speed"]]
    texts += [f"warning: {text}" for text in diagnosis["warnings"]]
    is_measured = any(device["speed"] for device in devices)
    report(request, request.step, "PASS" if is_measured else "FAIL", "; ".join(texts) or "no speed was measured")


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
def session(model: str, *, budget: int | None = None, use: str = "layers", **options: Any) -> Iterator[Session]:
    """Open a session; `budget` limits the GPU memory that the plan may use, and `use` says for what."""
    original = resources._compute_gpu_budget_bytes  # noqa: SLF001
    if budget is not None:
        resources._compute_gpu_budget_bytes = lambda gpu: budget  # noqa: SLF001
    resources.choose_gpu = partial(choose_gpu_for, use)
    settings = Settings(n_ctx=1024, temperature=0.0, max_tokens=n_tokens(), **options)
    opened = Session(open_ephemeral_store(), settings, Path(model))
    try:
        opened.open()
        yield opened
    finally:
        resources._compute_gpu_budget_bytes = original  # noqa: SLF001
        resources.choose_gpu = choose_gpu
        opened.close()


def n_tokens() -> int:
    """Return the number of tokens of a reply."""
    return int(os.environ.get(TOKENS_VARIABLE) or 24)


def reply(opened: Session, reference: Reply | None = None) -> Reply:
    """Send a message, and compute the tokens of `reference` after the same prompt again, with logprobs.

    The second time finds the kernels compiled. Without a reference, it computes the most likely tokens.
    """
    engine = opened.model.engine
    requests: list[protocol.Generate] = []
    generate = EngineClient.generate

    def generate_and_record(client: EngineClient, request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        requests.append(request)
        return generate(client, request)

    EngineClient.generate = generate_and_record  # type: ignore[method-assign]
    try:
        *events, last = opened.send(PROMPT)
    finally:
        EngineClient.generate = generate  # type: ignore[method-assign]
    if opened.model.plan is None:
        raise RuntimeError("the session has no plan")
    again = msgspec.structs.replace(
        requests[0], id=engine.next_id(), ignore_eog=True, sampling=GREEDY, n_logprobs=N_LOGPROBS, speculate=False,
        ephemeral=True, bypass_cache=True, conversation="", max_tokens=n_tokens(),
        forced_tokens=reference.ids if reference else None,
    )  # fmt: skip
    tokens: list[TokenLogprobs] = []
    ids: list[int] = []
    *generated, end = engine.generate(again)
    for event in generated:
        if isinstance(event, protocol.TokensGenerated):
            tokens += event.logprobs
            ids += event.tokens
    if not isinstance(end, protocol.RequestFinished):
        raise RuntimeError(f"the engine ended a reply with {end}")  # noqa: TRY004  (not the caller's mistake)
    plan = opened.model.plan  # another one after a fallback
    memory = {
        name: sum(size for key, size in entry.items() if key.endswith("_bytes"))
        for name, entry in engine.stats().memory.items()
    }
    gpu_used = sum(size for name, size in memory.items() if not name.startswith("CPU") and not name.endswith("_Host"))
    use = f"{plan.options.n_gpu_layers} layers{' and prefill' if plan.options.prefill_on_gpu else ''}"
    speed = f"prefill {end.stats.prefill_tps:.1f}, decode {end.stats.decode_tps:.1f} tokens/s"
    warnings = [text.replace(plan.model_path, Path(plan.model_path).name) for text in opened.warnings]
    warnings += filter(None, map(format_notice, events))
    text = last.reply.text  # type: ignore[union-attr]
    print(f"{use}; {speed}; {memory}; {plan.reasons}; {warnings}; {text!r}", flush=True)
    return Reply(
        text, ids, tokens, plan.options.n_gpu_layers, plan.options.prefill_on_gpu, plan.estimate.gpu, gpu_used,
        f"{use}; {speed}", warnings,
    )  # fmt: skip


def compare(found: Reply, reference: Reply) -> tuple[bool, str]:
    """Return whether the most likely token at each position is that of the CPU or nearly as likely, and a description.

    Both computed the tokens of the CPU's reply, so that a near tie at one position does not end the comparison.
    """
    if not len(found.tokens) == len(reference.tokens) == n_tokens():
        return False, f"{len(found.tokens)} tokens instead of {n_tokens()}"
    n_ties, difference = 0, 0.0
    for number, (token, expected) in enumerate(zip(found.tokens, reference.tokens, strict=True)):
        top, (expected_top, expected_logprob) = token.top_logprobs[0][0], expected.top_logprobs[0]
        difference = max(difference, abs(token.logprob - expected.logprob))
        if top != expected_top:
            gap = expected_logprob - dict(expected.top_logprobs).get(top, -math.inf)
            n_ties += 1
            if gap >= NEAR_TIE:
                return (
                    False,
                    f"token {number + 1} is {top!r} instead of {expected_top!r}, whose logprob is {gap:.2f} more",
                )
    words = "chat text equal" if found.text == reference.text else f"chat texts {found.text!r} and {reference.text!r}"
    return True, f"{len(found.tokens)} tokens equal up to {n_ties} near ties, logprobs within {difference:.3f}, {words}"


def compare_replies(request: Request) -> None:
    """Reply on the CPU, on the GPU, on both, with prefill on the GPU only, and as chosen by speed."""
    n_planned = n_all = 0
    reference: Reply | None = None
    for name in ("CPU", "GPU", "half and half", "prefill on the GPU", "chosen by speed"):
        options: dict[str, Any] = {
            "CPU": {"gpu": False}, "GPU": {}, "half and half": {"budget": n_planned // 2},
            "prefill on the GPU": {"use": "prefill"}, "chosen by speed": {"use": ""},
        }[name]  # fmt: skip
        with session(request.model, **options) as opened:
            found = reply(opened, reference)
        reference = reference or found
        is_equal, words = compare(found, reference)
        uses = {
            "CPU": found.n_layers == 0, "GPU": found.n_layers > 0, "half and half": 0 < found.n_layers < n_all,
            "prefill on the GPU": found.prefills, "chosen by speed": True,
        }[name]  # fmt: skip
        state = "PASS" if is_equal and uses and not found.warnings else "FAIL"
        problems = [*("not as planned for this check" for _ in [0] if not uses), *found.warnings]
        report(request, name, state, "; ".join([found.figures, words, *problems]))
        if name in {"GPU", "half and half"}:
            n_planned, n_all = (found.gpu_planned, found.n_layers) if name == "GPU" else (n_planned, n_all)
            state = "PASS" if 0 < found.gpu_used <= found.gpu_planned else "FAIL"
            sizes = f"planned {found.gpu_planned / MIB:.0f} MiB, used {found.gpu_used / MIB:.0f} MiB on the GPU"
            report(request, f"{name}: memory planned and used", state, sizes)


@contextlib.contextmanager
def full_gpu(model: str) -> Iterator[str]:
    """Let another process hold the memory of the GPU. Yields how much, or "" if its memory is that of the machine."""
    variable = os.environ.get(MEMORY_VARIABLE)
    if variable:
        os.environ[variable] = str(Path(model).stat().st_size // 2)
        try:
            yield f"{variable}={os.environ[variable]}"
        finally:
            del os.environ[variable]
        return
    backends = [
        b for b in diagnose(max_gpu_test_s=0.0)["backends"] if [d["kind"] for d in b["devices"][:1]] == ["discrete"]
    ]
    if not backends:
        yield ""
        return
    command = [sys.executable, str(Path(__file__).with_name("hold.py")), backends[0]["path"], str(LEFT_BYTES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            yield f"{int(holder.stdout.readline() or 0) / MIB:.0f} MiB held by another program"  # type: ignore[union-attr]
        finally:
            holder.kill()


def exhaust_memory(request: Request) -> None:
    """Load the model while another program has the memory of the GPU, although the plan believes that it is free."""
    with full_gpu(request.model) as held:
        if not held:
            report(request, request.step, "SKIP", "no discrete GPU; the memory of others is that of the machine")
            return
        with session(request.model, budget=Path(request.model).stat().st_size * 4) as opened:
            found = reply(opened)
    is_right = bool(found.text) and len(found.tokens) == n_tokens() and bool(found.warnings)
    fits = "" if found.warnings else "; the model fitted, so nothing was tried"
    report(
        request,
        request.step,
        "PASS" if is_right else "FAIL",
        f"{held}: {found.figures}; {'; '.join(found.warnings)}{fits}",
    )


def measure_speed(request: Request) -> None:
    """Compare the speed of edgechat with that of llama-bench, both with every layer on the GPU."""
    from edgechat.bench.speed import compare as compare_speed
    from edgechat.bench.speed import format_table, make_workload

    peer = Path(request.llama_bench) if request.llama_bench else None
    sizes = {"n_prompt": 32, "n_gen": n_tokens(), "rounds": 1} if os.environ.get(TOKENS_VARIABLE) else {"rounds": 2}
    workload = make_workload(Path(request.model), None, uses_gpu=True, **sizes)
    found = compare_speed(workload, peer)
    print(format_table(found), flush=True)
    texts = [f"every layer on {found.gpu}"]
    for name, ratio in (("prefill", found.prefill_ratio), ("decode", found.decode_ratio)):
        ours, theirs = ([getattr(s, f"{name}_tps") for s in samples] for samples in (found.edgechat, found.peer))
        peer_text = f", llama-bench on the same GPU {max(theirs):.1f}, ratio {ratio:.3f}" if theirs and ratio else ""
        texts.append(f"{name} {max(ours):.1f} tokens/s{peer_text}")
    texts += [] if peer else ["no llama-bench was given"]
    report(request, request.step, "PASS", "; ".join(texts))


def measure_speculation(request: Request) -> None:
    """Measure drafts for one kind of conversation on the GPU."""
    from edgechat.bench import model_drafters, speculation, workloads
    from edgechat.bench.speculation_report import format_table
    from edgechat.hardware.cpu import count_usable_threads

    options = speculation.SpeculationOptions(
        model=request.model, n_threads=count_usable_threads(), rounds=1, uses_gpu=True
    )  # fmt: skip
    cases = model_drafters.select_kinds(workloads.read_workloads(None), ["edit"])
    found = speculation.run(options, cases)
    print(format_table(found), flush=True)
    row = found.rows[0]
    report(
        request, request.step, "PASS",
        f"{found.backend}: speed with drafts relative to without {row.scripted_speed or 0:.2f} (scripted replies) and "
        f"{row.own_reply_speed or 0:.2f} (own replies), {row.mean_acceptance_length:.1f} tokens a step, "
        f"{found.agreement.n_different_replies} of {found.agreement.n_replies} replies differ",
    )  # fmt: skip


STEPS: dict[str, Callable[[Request], None]] = {
    "self-test": run_selftest, "replies": compare_replies, "exhausted memory": exhaust_memory,
    "bench speed": measure_speed, "bench speculation": measure_speculation, "doctor": show_doctor,
}  # fmt: skip


if __name__ == "__main__":
    find_bundle()
    asked = msgspec.json.decode(sys.argv[1], type=Request)
    STEPS[asked.step](asked)
