"""`edgechat doctor`: what edgechat sees of this machine, and what it makes of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgechat import __version__
from edgechat.errors import EdgechatError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--report", is_flag=True, help="For a bug tracker: home directory and user name left out.")
@click.option("--retest", is_flag=True, help="Forget what is known of the backends, and test them anew.")
def doctor(as_json: bool, report: bool, retest: bool) -> None:
    """Describe this machine, try every backend, and say which one is used and why.

    Exit code 4 if no backend works.
    """
    import msgspec

    if retest:
        from edgechat.runtime.backends.verdicts import forget

        forget()
    found = examine()
    if report:
        found = redact(found)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        _print(found)
    if found["problem"]:
        raise SystemExit(4)


def examine() -> dict[str, Any]:
    """Everything that `doctor` tells; never raises for what it finds wrong."""
    import platform

    import msgspec

    from edgechat import config, paths
    from edgechat.hardware.profile import read_profile
    from edgechat.models.resources import measured_speeds, remembered_gpus

    measured = measured_speeds()
    starter = _starter()
    profile = read_profile(
        paths.models_dir(), tuple(remembered_gpus()), measured.read_bps if measured else 0.0,
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
    from edgechat.runtime.backends.probe import judge, judge_gpus

    try:
        bundle = find_bundle()
        bundle.check()
    except EdgechatError as error:
        return [], None, str(error)

    def tell(words: str) -> None:
        if sys.stderr.isatty():
            click.echo(words, err=True)

    judged = list(judge(bundle, tell))
    computes = next((module for module, verdict in judged if verdict.usable), None)
    if computes is not None:
        judged += judge_gpus(bundle, computes, tell)
    found = [{**msgspec.structs.asdict(verdict), "path": module.path} for module, verdict in judged]
    about = {k: v for k, v in msgspec.structs.asdict(bundle).items() if k != "modules"}
    usable = any(b["status"] == "passed" for b in found)
    return found, about, "" if usable else "no backend of the native bundle works on this machine"


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


def redact(found: Any) -> Any:
    """The same without the home directory's name and the user's."""
    import getpass

    home = str(Path.home())
    if isinstance(found, dict):
        return {key: redact(value) for key, value in found.items()}
    if isinstance(found, list):
        return [redact(value) for value in found]
    if isinstance(found, str):
        text = found.replace(home, "~") if len(home) > 1 else found
        try:
            user = getpass.getuser()
        except (OSError, KeyError):
            return text
        return text.replace(f"/{user}/", "/USER/")
    return found


def _print(found: dict[str, Any]) -> None:
    gib = 1 << 30
    click.echo(f"edgechat {found['version']}, Python {found['python']}, {found['system']}")
    cpu, memory = found["cpu"], found["memory"]
    click.echo(f"processor  {cpu['model']}, {cpu['threads']} threads to compute with")
    click.echo(
        f"memory     {memory['available_bytes'] / gib:.1f} GiB available of {memory['total_bytes'] / gib:.1f} GiB"
    )
    bundle = found["bundle"]
    if bundle:
        click.echo(
            f"bundle     {bundle['build_id']}, llama.cpp {bundle['llama_cpp_commit']}, C++ compiler {bundle['compiler']}"
        )
    click.echo("backends")
    for backend in found["backends"]:
        mark = "*" if backend["module"] == found["backend"] else " "
        click.echo(f"  {mark} {backend['module']:<22}{backend['status']:<12}{backend['reason']}")
    click.echo(f"starter    {found['starter_model'] or 'not installed'}")
    places = found["paths"]
    click.echo(f"settings   {places['config']}")
    click.echo(f"data       {places['data']}")
    click.echo(f"cache      {places['cache']}{'' if places['cache_writable'] else ' (cannot be written)'}")
    click.echo(f"log        {places['log']}")
    for words in found["warnings"]:
        click.echo(f"note       {words}")
    for problem in found["settings_problems"]:
        click.echo(f"setting    {problem}")
    click.echo(found["problem"] or f"edgechat computes with {found['backend']}")
