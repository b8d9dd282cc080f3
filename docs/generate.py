#!/usr/bin/env python3
"""Generate docs/cli.md, docs/plans.md and the list of modules in docs/architecture.md; --check only compares them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import click
import msgspec

from edgechat.cli.root import edgechat
from edgechat.hardware.profile import HardwareProfile
from edgechat.models.selection import list_catalogue_candidates
from edgechat.planner.machine import machine_from_profile
from edgechat.planner.memory import MemoryEstimate
from edgechat.planner.ranking import Evaluation, choose_evaluation, evaluate

DOCS = Path(__file__).parent
PROFILES = DOCS.parent / "tests" / "profiles"
CLI_HEAD = "# Command line reference\n\n`make docs` generates this page from the help of the commands.\n"

MODULES_START, MODULES_END = "<!-- modules -->", "<!-- end of modules -->"
PLANS_HEAD = """# Automatic choices on several machines

`make docs` generates this page from the hardware profiles in `tests/profiles` and the catalogue, without a network.
`edgechat plan --all --machine FILE` shows every model that was compared. The goal "quality" sets no minimum speed.

These machines were not available. The memory is what such a machine has left beside its system
and a few programs. Speeds are upper limits computed from the memory bandwidth: for the Raspberry
Pi 5 the bandwidth derived from published measurements of two models (10.3 GB/s, 60 % of the data
sheet), for the others 60 % of the data sheet. On a real machine `edgechat plan` measures. A `?` after
the quality marks a value from a rule, for a quant without a published measurement.

"""


def main() -> int:
    """Write or check both pages. Return 1 if a check fails."""
    context = click.Context(edgechat, info_name="edgechat", **edgechat.context_settings)
    texts = {
        DOCS / "cli.md": CLI_HEAD + "".join(sections(edgechat, context)),
        DOCS / "plans.md": PLANS_HEAD + plans(),
        DOCS / "architecture.md": with_modules((DOCS / "architecture.md").read_text(encoding="utf-8")),
    }
    if "--check" not in sys.argv:
        for target, text in texts.items():
            target.write_text(text, encoding="utf-8")
        return 0
    outdated = [t.name for t, text in texts.items() if not t.is_file() or t.read_text(encoding="utf-8") != text]
    for name in outdated:
        print(f"{name} is out of date: run `make docs`", file=sys.stderr)
    return 1 if outdated else 0


def with_modules(text: str) -> str:
    """Replace the list of modules in the architecture page by one line for each module of the package."""
    before, _, rest = text.partition(MODULES_START)
    after = rest.partition(MODULES_END)[2]
    package = DOCS.parent / "edgechat"
    rows = ["| module | purpose |", "|---|---|"]
    for path in sorted(package.rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        name = path.relative_to(package).as_posix().replace("/__init__.py", "/")
        rows.append(f"| `{name}` | {docstring.partition(chr(10))[0]} |")
    return f"{before}{MODULES_START}\n" + "\n".join(rows) + f"\n{MODULES_END}{after}"


def plans() -> str:
    """Return the table of automatic choices, three rows for each hardware profile."""
    lines = [
        "| machine | goal | chosen | memory | context | tokens/s | quality | reasons |",
        "|---|---|---|--:|--:|--:|--:|---|",
    ]
    for file in sorted(PROFILES.glob("*.json")):
        machine = machine_from_profile(msgspec.json.decode(file.read_bytes(), type=HardwareProfile))
        for wish in (0.0, 5.0, 20.0):
            rated = [evaluate(c, machine, min_tps=wish) for c in list_catalogue_candidates()]
            lines.append(line(file.stem, wish, choose_evaluation(rated, defaults_only=True)))
    return "\n".join(lines) + "\n"


def memory_words(memory: MemoryEstimate) -> str:
    """Format the memory of a plan, with that of a discrete GPU apart."""
    words = f"{memory.total / 1e9:.1f} GB"
    return words if memory.is_unified or not memory.gpu else f"{words} + {memory.gpu / 1e9:.1f} GB on the GPU"


def line(machine: str, wish: float, chosen: Evaluation | None) -> str:
    """Format one row of the table of choices."""
    if chosen is None or chosen.plan is None:
        return f"| {machine} | {wish:g} | no model fits | | | | | |"
    options = chosen.plan.options
    speed = f"{chosen.speed.decode_tps:.1f}" if chosen.speed else "?"
    why = list(chosen.plan.concessions)
    if options.n_gpu_layers:
        why.insert(0, chosen.plan.reasons["n_gpu_layers"])
    if not chosen.is_fast_enough:
        why.insert(0, "no model that fits reaches this speed: the fastest one")
    words = "; ".join(why) or "fits without concessions"
    return (
        f"| {machine} | {f'{wish:g} tokens/s' if wish else 'quality'} | {chosen.candidate.name} "
        f"| {memory_words(chosen.memory)} "
        f"| {options.n_ctx} | {speed} | {chosen.points:.1f}{'' if chosen.candidate.quality.is_measured else '?'} "
        f"| {words} |"
    )


def sections(command: click.Command, context: click.Context) -> list[str]:
    """Return the help of a command and, recursively, of its subcommands."""
    context.terminal_width = context.max_content_width = 100
    texts = [f"\n## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            below = command.get_command(context, name)
            if below is not None:
                texts += sections(below, click.Context(below, info_name=name, parent=context))
    return texts


if __name__ == "__main__":
    sys.exit(main())
