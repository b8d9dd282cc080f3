#!/usr/bin/env python3
"""Write docs/cli.md from the commands' own help and docs/plans.md from recorded machines; with --check, fail if they are old."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from edgechat.cli.root import edgechat
from edgechat.hardware.profile import HardwareProfile
from edgechat.models.selection import catalogue_candidates
from edgechat.planner.machine import machine_of
from edgechat.planner.memory import MemoryEstimate
from edgechat.planner.ranking import Evaluation, choose, evaluate

DOCS = Path(__file__).parent
PROFILES = DOCS.parent / "tests" / "profiles"
HEAD = "# The command line\n\nMade by `make docs` from the commands' own help.\n"

PLANS_HEAD = """# What would be chosen where

Made by `make docs` from the machines in tests/profiles, with the catalogue as it is and nothing asked of a network:
`edgechat plan --all --machine FILE` shows everything that was compared. "quality" wishes nothing of the speed.

None of these machines was at hand. Memory is what such a machine has left with its system and a few programs running;
speeds are upper bounds, computed from the memory's bandwidth alone: of the Raspberry Pi 5 as published measurements of two
models show it (10.3 GB/s, 60 % of the memory's data sheet), of the others 60 % of theirs. On a real machine `edgechat plan`
measures. A `?` at the quality marks what a rule says where nobody measured.

"""


def main() -> int:
    """Write or check the file; 1 if a check fails."""
    context = click.Context(edgechat, info_name="edgechat", **edgechat.context_settings)
    texts = {DOCS / "cli.md": HEAD + "".join(sections(edgechat, context)), DOCS / "plans.md": PLANS_HEAD + plans()}
    if "--check" not in sys.argv:
        for target, text in texts.items():
            target.write_text(text, encoding="utf-8")
        return 0
    old = [t.name for t, text in texts.items() if not t.is_file() or t.read_text(encoding="utf-8") != text]
    for name in old:
        print(f"{name} is out of date: run `make docs`", file=sys.stderr)
    return 1 if old else 0


def plans() -> str:
    """What of the catalogue would be chosen on machines that are written down."""
    lines = [
        "| machine | wish | chosen | memory | context | tokens/s | quality | why so |",
        "|---|---|---|--:|--:|--:|--:|---|",
    ]
    for file in sorted(PROFILES.glob("*.json")):
        machine = machine_of(msgspec.json.decode(file.read_bytes(), type=HardwareProfile))
        for wish in (0.0, 5.0, 20.0):
            rated = [evaluate(c, machine, min_tps=wish) for c in catalogue_candidates()]
            lines.append(line(file.stem, wish, choose(rated, unasked=True)))
    return "\n".join(lines) + "\n"


def memory_words(memory: MemoryEstimate) -> str:
    """Memory of the machine, and of its GPU where that is another."""
    words = f"{memory.total / 1e9:.1f} GB"
    return words if memory.is_unified or not memory.gpu else f"{words} + {memory.gpu / 1e9:.1f} GB on the GPU"


def line(machine: str, wish: float, chosen: Evaluation | None) -> str:
    """A row of the table."""
    if chosen is None or chosen.plan is None:
        return f"| {machine} | {wish:g} | nothing fits | | | | | |"
    options = chosen.plan.options
    speed = f"{chosen.speed.decode_tps:.1f}" if chosen.speed else "?"
    why = list(chosen.plan.trades)
    if options.n_gpu_layers:
        why.insert(0, chosen.plan.reasons["n_gpu_layers"])
    if not chosen.is_fast_enough:
        why.insert(0, "nothing that fits is as fast as wished: the fastest")
    words = "; ".join(why) or "it fits as it is"
    return (
        f"| {machine} | {f'{wish:g} tokens/s' if wish else 'quality'} | {chosen.candidate.name} "
        f"| {memory_words(chosen.memory)} "
        f"| {options.n_ctx} | {speed} | {chosen.points:.1f}{'' if chosen.candidate.quality.is_measured else '?'} | {words} |"
    )


def sections(command: click.Command, context: click.Context) -> list[str]:
    """Help of a command and of all below it."""
    context.terminal_width = context.max_content_width = 100
    found = [f"\n## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            below = command.get_command(context, name)
            if below is not None:
                found += sections(below, click.Context(below, info_name=name, parent=context))
    return found


if __name__ == "__main__":
    sys.exit(main())
