"""`edgechat doctor`: describe this machine, test its backends, and report problems."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgechat import __version__
from edgechat.errors import EdgechatError
from edgechat.humanize import size


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--report", is_flag=True, help="Omit home directory and user name, for a bug report.")
@click.option("--retest", is_flag=True, help="Discard cached verdicts and test all backends again.")
def doctor(as_json: bool, report: bool, retest: bool) -> None:
    """Describe this machine and test every backend.

    Shows which backend edgechat uses and why. Exit code 4 if no backend works.
    """
    import msgspec

    if retest:
        from edgechat.runtime.backends.verdicts import clear_verdicts

        clear_verdicts()
    diagnosis = examine()
    if report:
        diagnosis = redact(diagnosis)
    if as_json:
        click.echo(msgspec.json.encode(diagnosis).decode())
    else:
        _print(diagnosis)
    if diagnosis["problem"]:
        raise SystemExit(4)


def examine() -> dict[str, Any]:
    """Collect the whole diagnosis as built-in types. Problems become values; nothing is raised for them."""
    import platform

    import msgspec

    from edgechat import config, paths
    from edgechat.hardware.profile import read_profile
    from edgechat.models.resources import measured_speeds, saved_gpus

    measured = measured_speeds()
    starter = _starter()
    profile = read_profile(
        paths.models_dir(), tuple(saved_gpus()), measured.read_bps if measured else 0.0,
        model_file=Path(starter) if starter else None,
    )  # fmt: skip
    cpu, memory = profile.cpu, profile.memory
    backends, bundle, problem = _backends()
    _, problems = config.load()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": {"model": cpu.model, "microcode": cpu.microcode, "threads": profile.n_threads, "flags": cpu.flags},
        "memory": {"total_bytes": memory.total_bytes, "available_bytes": memory.available_bytes},
        "profile": msgspec.to_builtins(profile),
        "warnings": [*profile.warnings(), *(bundle["left_out"] if bundle else ())],
        "bundle": bundle,
        "backends": backends,
        "backend": next((b["module"] for b in backends if b["status"] == "passed"), None),
        "problem": problem,
        "settings_problems": [str(p) for p in problems],
        "starter_model": starter,
        "paths": {
            "config": str(paths.config_file()), "data": str(paths.data_dir()), "cache": str(paths.cache_dir()),
            "log": str(paths.log_file()), "cache_writable": _writable(paths.cache_dir()),
        },
    }  # fmt: skip


def _backends() -> tuple[list[dict[str, Any]], dict[str, Any] | None, str]:
    import msgspec

    from edgechat.runtime.backends.bundle import find_bundle
    from edgechat.runtime.backends.probe import gpu_module_verdicts, module_verdicts

    try:
        bundle = find_bundle()
        bundle.check()
    except EdgechatError as error:
        return [], None, str(error)

    def on_progress(text: str) -> None:
        if sys.stderr.isatty():
            click.echo(text, err=True)

    judged = list(module_verdicts(bundle, on_progress))
    cpu_module = next((module for module, verdict in judged if verdict.is_usable), None)
    if cpu_module is not None:
        judged += gpu_module_verdicts(bundle, cpu_module, on_progress)
    backends = [{**msgspec.structs.asdict(verdict), "path": module.path} for module, verdict in judged]
    about = {k: v for k, v in msgspec.structs.asdict(bundle).items() if k != "modules"}
    usable = any(b["status"] == "passed" for b in backends)
    return backends, about, "" if usable else "No backend of the native bundle works on this machine."


def _starter() -> str | None:
    from edgechat.catalogue.library import starter_model

    try:
        return str(starter_model())
    except EdgechatError:
        return None


def _writable(directory: Path) -> bool:
    import os

    existing = next((d for d in (directory, *directory.parents) if d.exists()), directory)
    return existing.is_dir() and os.access(existing, os.W_OK)


def redact(value: Any) -> Any:
    """Return a copy of the diagnosis without the names of the home directory and the user."""
    import getpass

    home = str(Path.home())
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


def _print(diagnosis: dict[str, Any]) -> None:
    click.echo(f"edgechat {diagnosis['version']}, Python {diagnosis['python']}, {diagnosis['system']}")
    cpu, memory = diagnosis["cpu"], diagnosis["memory"]
    click.echo(f"processor  {cpu['model']}, {cpu['threads']} compute threads")
    click.echo(f"memory     {size(memory['available_bytes'])} available of {size(memory['total_bytes'])}")
    bundle = diagnosis["bundle"]
    if bundle:
        click.echo(
            f"bundle     {bundle['build_id']}, llama.cpp {bundle['llama_cpp_commit']}, "
            f"C++ compiler {bundle['compiler']}"
        )
    click.echo("backends")
    for backend in diagnosis["backends"]:
        mark = "*" if backend["module"] == diagnosis["backend"] else " "
        click.echo(f"  {mark} {backend['module']:<22}{backend['status']:<12}{backend['reason']}")
    click.echo(f"starter    {diagnosis['starter_model'] or 'not installed'}")
    locations = diagnosis["paths"]
    click.echo(f"settings   {locations['config']}")
    click.echo(f"data       {locations['data']}")
    click.echo(f"cache      {locations['cache']}{'' if locations['cache_writable'] else ' (not writable)'}")
    click.echo(f"log        {locations['log']}")
    for warning in diagnosis["warnings"]:
        click.echo(f"note       {warning}")
    for problem in diagnosis["settings_problems"]:
        click.echo(f"setting    {problem}")
    click.echo(diagnosis["problem"] or f"edgechat uses {diagnosis['backend']}")
