"""`edgechat doctor`: describe this machine, test its backends, and report problems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgechat import __version__
from edgechat.cli.cache_use import format_cache_use, make_cache_object
from edgechat.cli.doctor_gpus import (
    MAX_TEST_S,
    check_gpus,
    describe_device,
    describe_gpu_setup,
    make_device_object,
)
from edgechat.cli.drafter_state import format_drafter, make_drafter_object
from edgechat.cli.json_output import echo_json
from edgechat.cli.progress import StderrStatus
from edgechat.errors import EdgechatError, EngineError
from edgechat.humanize import format_count, format_size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.planner.throughput import KernelSpeeds
    from edgechat.runtime.backends.bundle import BackendModule, Bundle
    from edgechat.runtime.backends.verdicts import Verdict


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")
@click.option("--report", is_flag=True, help="Omit the home directory and the user name, for a bug report.")
@click.option("--retest", is_flag=True, help="Discard saved test results and test all backends again.")
@click.option("--measure", is_flag=True, help="Measure the speed of this machine again, for predictions.")
def doctor(as_json: bool, report: bool, retest: bool, measure: bool) -> None:
    """Describe this machine and test every backend.

    Shows the test result of each backend and the backend that edgechat uses. GPUs are tested for at most a minute, at
    first with the weight types of the installed models. Exits with code 4 if no backend works.
    """
    if retest:
        from edgechat.runtime import drafter_crashes
        from edgechat.runtime.backends.verdicts import clear_verdicts

        clear_verdicts()
        drafter_crashes.clear()
    if measure:
        _measure_speeds()
    diagnosis = diagnose(shows_prompts=not report)
    if report:
        diagnosis = redact(diagnosis)
    if as_json:
        echo_json(diagnosis)
    else:
        _print_diagnosis(diagnosis)
    if diagnosis["problem"]:
        raise SystemExit(4)


def _measure_speeds() -> None:
    """Run the kernel benchmark even if a result is saved, and show its progress. Raises EngineError if it fails."""
    import time

    from edgechat.engine.client import EngineClient
    from edgechat.models.selection import remeasure_speeds

    engine, status, started_at = EngineClient(), StderrStatus(print_lines=True), time.time()
    try:
        speeds = remeasure_speeds(engine, status.show)
    finally:
        status.clear()
        engine.close()
    if speeds is None:
        raise EngineError("The benchmark of the backend failed. `edgechat doctor` shows the backends and the log.")
    if speeds.measured_at < started_at:
        click.echo("edgechat: Other programs were busy, so the saved measurement is better and is kept.", err=True)


def diagnose(*, shows_prompts: bool = True, max_gpu_test_s: float = MAX_TEST_S) -> dict[str, Any]:
    """Return the diagnosis of this machine as JSON-compatible values; problems are reported in it, not raised.

    Without `shows_prompts`, it contains no text of prompts. GPUs are tested for at most `max_gpu_test_s` seconds. Call
    this in the main thread. Raises KeyboardInterrupt after Ctrl-C.
    """
    import platform

    import msgspec

    from edgechat import config, paths
    from edgechat.hardware.graphics_cards import list_graphics_cards
    from edgechat.hardware.profile import read_profile
    from edgechat.models.resources import load_measured_speeds, load_saved_gpus

    speeds = load_measured_speeds()
    starter_path = _find_starter_model()
    profile = read_profile(
        paths.models_dir(), tuple(load_saved_gpus()), speeds.read_bytes_per_s if speeds else 0.0,
        model_file=Path(starter_path) if starter_path else None, product_rates=speeds.product_rates if speeds else None,
    )  # fmt: skip
    if speeds is not None:
        profile = msgspec.structs.replace(
            profile, attention_rates=speeds.attention_rates, operations_per_s=speeds.operations_per_s,
            products_per_s=speeds.products_per_s,
        )  # fmt: skip
    cpu, memory = profile.cpu, profile.memory
    settings, problems = config.load()
    cards = list_graphics_cards()
    backends, bundle, problem = _test_backends(max_gpu_test_s if settings.gpu else None)
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": {"model": cpu.model, "microcode": cpu.microcode, "threads": profile.n_threads, "flags": cpu.flags},
        "memory": {"total_bytes": memory.total_bytes, "available_bytes": memory.available_bytes},
        "profile": msgspec.to_builtins(profile),
        "warnings": [*profile.warnings(), *(bundle.warnings if bundle is not None else ())],
        "bundle": _make_bundle_object(bundle) if bundle is not None else None,
        "graphics_cards": cards,
        "gpu_note": describe_gpu_setup(bundle, cards, is_enabled=settings.gpu),
        "backends": backends,
        "speed": _describe_speeds(speeds),
        "backend": next((b["module"] for b in backends if b["status"] == "passed"), None),
        "distrusted": _list_distrusted_backends(),
        "problem": problem,
        "settings_problems": [str(p) for p in problems],
        "starter_model": starter_path,
        "engines": _describe_engines(shows_prompts=shows_prompts),
        "paths": {
            "config": str(paths.config_file()), "data": str(paths.data_dir()), "cache": str(paths.cache_dir()),
            "log": str(paths.log_file()), "cache_writable": _is_writable(paths.cache_dir()),
        },
    }  # fmt: skip


def _describe_speeds(speeds: KernelSpeeds | None) -> dict[str, Any] | None:
    """Return the main results of the kernel benchmark; None if the speed of this machine was not measured."""
    if speeds is None:
        return None
    return {
        "read_bytes_per_s": speeds.read_bytes_per_s,
        "threads": speeds.n_decode_threads or speeds.n_threads,
        "measured_at": speeds.measured_at,
        "is_disturbed": speeds.is_disturbed,
    }


def _make_bundle_object(bundle: Bundle) -> dict[str, Any]:
    import msgspec

    fields = {k: v for k, v in msgspec.structs.asdict(bundle).items() if k not in {"modules", "warnings"}}
    return fields | {"left_out": bundle.warnings}


def _test_backends(max_gpu_test_s: float | None) -> tuple[list[dict[str, Any]], Bundle | None, str]:
    """Return the tested backends, the bundle, and a problem; without `max_gpu_test_s`, no driver of a GPU is run."""
    from edgechat.runtime.backends.bundle import find_bundle
    from edgechat.runtime.backends.probe import check_cpu_modules

    try:
        bundle = find_bundle()
        bundle.check_libraries()
    except EdgechatError as error:
        return [], None, str(error)

    status = StderrStatus(print_lines=True)
    try:
        with status.announce_wait(), status.show_elapsed():
            results = list(check_cpu_modules(bundle, status.show))
            cpu_module = next((module for module, verdict in results if verdict.is_usable), None)
            if cpu_module is not None and max_gpu_test_s is not None:
                results += check_gpus(bundle, cpu_module, status, max_gpu_test_s)
    finally:
        status.clear()
    backends = [_make_backend_object(module, verdict) for module, verdict in results]
    has_usable_backend = any(b["status"] == "passed" for b in backends)
    problem = "No backend works on this machine. The list of backends shows the reason for each backend."
    return backends, bundle, "" if has_usable_backend else problem


def _make_backend_object(module: BackendModule, verdict: Verdict) -> dict[str, Any]:
    import msgspec

    backend: dict[str, Any] = {**msgspec.to_builtins(verdict), "path": module.path}
    devices = zip(backend["devices"], verdict.devices, strict=True)
    return backend | {"devices": [make_device_object(device, device_verdict) for device, device_verdict in devices]}


def _list_distrusted_backends() -> list[dict[str, Any]]:
    """Return the backends that are not used for a certain model after engine crashes, with the reason and times."""
    import msgspec

    from edgechat.runtime.backends.verdicts import list_crash_records

    return [
        {**msgspec.structs.asdict(record), "retest_at": record.retest_at, "reason": record.describe()}
        for record in list_crash_records()
    ]


def _describe_engines(*, shows_prompts: bool) -> list[dict[str, Any]]:
    """Return how the running engines draft, how much they reuse of their prompts, and why not more of the last one."""
    from edgechat.engine.resident_client import read_status
    from edgechat.engine.resident_files import list_records

    statuses = [(record, read_status(record)) for record in list_records()]
    return [
        {
            "pid": record.pid,
            "model": record.model_path,
            **make_drafter_object(status, record.model_path),
            "prompt_cache": make_cache_object(status.cache_use, shows_text=shows_prompts),
        }
        for record, status in statuses
        if status is not None
    ]


def _find_starter_model() -> str | None:
    from edgechat.catalogue.library import starter_model

    try:
        return str(starter_model())
    except EdgechatError:
        return None


def _is_writable(directory: Path) -> bool:
    import os

    nearest_existing_dir = next((d for d in (directory, *directory.parents) if d.exists()), directory)
    return nearest_existing_dir.is_dir() and os.access(nearest_existing_dir, os.W_OK)


def redact(value: Any) -> Any:
    """Return a copy of `value` in which `~` replaces the home directory, and `USER` the user name in paths."""
    import getpass

    from edgechat.paths import home_dir

    home = str(home_dir() or "")
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    if isinstance(value, str):
        text = value.replace(home, "~") if len(home) > 1 else value
        try:
            user = getpass.getuser()
        except (OSError, KeyError):
            return text
        return text.replace(f"/{user}/", "/USER/")
    return value


def _print_diagnosis(diagnosis: dict[str, Any]) -> None:
    click.echo(f"edgechat {diagnosis['version']}, Python {diagnosis['python']}, {diagnosis['system']}")
    cpu, memory = diagnosis["cpu"], diagnosis["memory"]
    click.echo(f"processor      {cpu['model']}, {cpu['threads']} compute threads")
    click.echo(
        f"memory         {format_size(memory['available_bytes'])} available of {format_size(memory['total_bytes'])}"
    )
    bundle = diagnosis["bundle"]
    if bundle:
        click.echo(
            f"native bundle  {bundle['build_id']}, llama.cpp {bundle['llama_cpp_commit']}, "
            f"C++ compiler {bundle['compiler']}"
        )
    click.echo("backends")
    for backend in diagnosis["backends"]:
        mark = "*" if backend["module"] == diagnosis["backend"] else " "
        click.echo(f"  {mark} {backend['module']:<22}{backend['status']:<12}{escape_controls(backend['reason'])}")
        for device in backend["devices"]:
            click.echo(f"      {device['name']:<20}{device['status']:<12}{escape_controls(describe_device(device))}")
    for record in diagnosis["distrusted"]:
        click.echo(f"    {record['module']:<22}{escape_controls(record['reason'])}")
    if diagnosis["gpu_note"]:
        click.echo(f"GPU            {escape_controls(diagnosis['gpu_note'])}")
    click.echo(f"speed          {_format_speed(diagnosis['speed'])}")
    for engine in diagnosis["engines"]:
        lines = [f"{engine['pid']}: {engine['model']}", *format_drafter(engine)]
        lines += format_cache_use(engine["prompt_cache"])
        click.echo(f"engine         {escape_controls((chr(10) + ' ' * 15).join(lines))}")
    click.echo(f"starter model  {diagnosis['starter_model'] or 'not installed'}")
    locations = diagnosis["paths"]
    click.echo(f"settings file  {locations['config']}")
    click.echo(f"data folder    {locations['data']}")
    click.echo(f"cache folder   {locations['cache']}{'' if locations['cache_writable'] else ' (not writable)'}")
    click.echo(f"log file       {locations['log']}")
    for warning in diagnosis["warnings"]:
        click.echo(f"warning        {warning}")
    for problem in diagnosis["settings_problems"]:
        click.echo(f"settings error {problem}")
    click.echo(diagnosis["problem"] or f"edgechat uses {diagnosis['backend']}")


def _format_speed(speed: dict[str, Any] | None) -> str:
    import time

    if speed is None:
        return "not measured yet; measure it with --measure"
    measured_at = time.strftime("%Y-%m-%d %H:%M", time.localtime(speed["measured_at"]))
    note = ", while other programs were busy; measure again with --measure" if speed["is_disturbed"] else ""
    rate = f"reads {format_size(speed['read_bytes_per_s'])} of weights per second"
    return f"{rate} with {format_count(speed['threads'], 'thread')} (measured {measured_at}{note})"
