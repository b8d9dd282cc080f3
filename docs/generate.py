#!/usr/bin/env python3
"""Generate docs/cli.md, docs/plans.md and the list of modules in docs/architecture.md; --check only compares them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import click
import msgspec

from edgechat.cli.root import edgechat
from edgechat.config import Settings
from edgechat.hardware.profile import HardwareProfile
from edgechat.models.selection import list_catalogue_candidates
from edgechat.planner.machine import machine_from_profile, speeds_from_profile
from edgechat.planner.memory import MemoryEstimate
from edgechat.planner.picks import choose_picks
from edgechat.planner.ranking import Evaluation, evaluate

DOCS = Path(__file__).parent
PROFILES = DOCS.parent / "tests" / "profiles"
CLI_HEAD = "# Command line reference\n\n`make docs` generates this page from the help of the commands.\n"

MODULES_START, MODULES_END = "<!-- modules -->", "<!-- end of modules -->"
PLANS_HEAD = """# Automatic choices on several machines

`make docs` generates this page from the hardware profiles in `tests/profiles` and the catalogue, without a network.
`edgechat plan --all --machine FILE` shows every model that was compared, and `--explain` the reasons.

Each machine has three picks. A typical reply is a prompt of 600 new tokens, 800 tokens of reasoning where
it is on, and 300 tokens of reply. *Balanced* is the default: a model of quality 8 or more within 30 s
comes first, and half the time is worth 2.5 points of quality. *Fast* prefers replies within 10 s, and half
the time is worth 4.9 points, as many as half the weights cost. *Best quality* takes the best model within
120 s. Differences of a quarter of a point are ties that the faster model wins. All leave a fifth of the
memory to other programs (2 GiB above 8 GiB), and a download takes at most a quarter of the free disk.
Reasoning is on by default at 60 tokens/s and more; the column "reply" has the time without it, and the
next column with it, where it is on. Models are compared by the time without it if it can be turned off.

These machines were not available. The memory is what the operating system and a few programs
leave free on such a machine. Where the kernels of a machine were not measured, decode speeds are upper limits
from the memory bandwidth, and prefill speeds come from published measurements or estimates; the list
below the table has the sources. The 800 tokens of reasoning are an estimate, too. On a real machine
`edgechat plan` measures. A `?` after the quality marks a value from a rule, for a model or quant
without a published measurement.

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
    """Return the table of automatic choices, three picks for each hardware profile, and their sources."""
    lines = [
        "| machine | pick | model | file | memory | context | tokens/s | reply | with reasoning | quality | reasons |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    sources = ["", "Sources of the figures:", ""]
    candidates = list_catalogue_candidates()
    for file in sorted(PROFILES.glob("*.json")):
        profile = msgspec.json.decode(file.read_bytes(), type=HardwareProfile)
        machine, speeds = machine_from_profile(profile), speeds_from_profile(profile)
        evaluations = [evaluate(c, machine, speeds=speeds, min_tps=Settings().min_speed) for c in candidates]
        for pick in choose_picks(evaluations, defaults_only=True):
            lines += [line(file.stem, objective.label, pick.evaluation) for objective in pick.objectives]
        sources.append(f"- {file.stem}: {profile.sources}.")
    return "\n".join(lines + sources) + "\n"


def memory_words(memory: MemoryEstimate) -> str:
    """Format the memory of a plan, with that of a discrete GPU apart."""
    words = f"{memory.total / 1e9:.1f} GB"
    return words if memory.is_unified or not memory.gpu else f"{words} + {memory.gpu / 1e9:.1f} GB on the GPU"


def line(machine: str, label: str, chosen: Evaluation) -> str:
    """Format one row of the table of choices."""
    plan, speed, turn, candidate = chosen.plan, chosen.speed, chosen.turn, chosen.candidate
    if plan is None or speed is None or turn is None:  # the profiles have speeds, and picks fit
        return f"| {machine} | {label} | {candidate.name} | ? | ? | ? | ? | ? | | ? | |"
    reasons = list(plan.concessions)
    if plan.options.n_gpu_layers:
        reasons.insert(0, plan.reasons["n_gpu_layers"])
    size = f"{'~' if candidate.is_size_estimated else ''}{candidate.profile.tensor_bytes / 1e9:.2f} GB"
    return (
        f"| {machine} | {label} | {candidate.name} | {size} | {memory_words(chosen.memory)} | {plan.options.n_ctx} "
        f"| {speed.decode_tps:.1f} | {turn.total_s - turn.thinking_s:.0f} s "
        f"| {f'{turn.total_s:.0f} s' if turn.thinking_s else ''} "
        f"| {chosen.points:.1f}{'' if candidate.quality.is_measured else '?'} | {'; '.join(reasons)} |"
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
