"""`edgechat history export` and `edgechat history import`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgechat.cli.history_store import format_one_line, open_readable_store
from edgechat.cli.json_output import echo_json, echo_json_text
from edgechat.cli.options import FilePath, complete_conversation, json_option
from edgechat.cli.output_files import write_private
from edgechat.cli.progress import StderrStatus, echo_note
from edgechat.humanize import format_count
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgechat.store.sqlite import SqliteStore

_METER_INTERVAL_S: Final = 1.0
FORMAT_BY_SUFFIX: Final = {"md": "md", "markdown": "md", "txt": "md", "html": "html", "htm": "html", "json": "json"}
"""Export format for each file suffix."""


@click.command()
@click.argument("conversation_ids", metavar="[ID]...", nargs=-1, shell_complete=complete_conversation)
@click.option("--all", "export_all", is_flag=True, help="Export all conversations as JSON.")
@click.option(
    "--format",
    "export_format",
    type=click.Choice(["md", "json", "html"]),
    help="Export format. Default: from the suffix of FILE; otherwise md, or json for several conversations.",
)
@click.option(
    "-o",
    "--output",
    type=FilePath(dir_okay=False),
    metavar="FILE",
    help="Write to FILE instead of standard output.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@json_option
def export(
    *,
    conversation_ids: tuple[str, ...],
    export_all: bool,
    export_format: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export conversations as Markdown, HTML or JSON.

    JSON contains all branches and attachments.
    """
    from edgechat.errors import UsageError

    if as_json and output is None:  # without an output file, the JSON output is the export itself
        export_format = export_format or "json"
    if export_all == bool(conversation_ids):
        raise UsageError("Give conversation IDs or --all" + (", not both." if export_all else "."))
    with open_readable_store() as store:
        ids = store.conversation_ids() if export_all else [store.resolve_id(i) for i in conversation_ids]
        suffix = output.suffix.lower().lstrip(".") if output is not None else ""
        default_format = "json" if export_all or len(ids) > 1 else "md"
        if output is not None and suffix and suffix not in FORMAT_BY_SUFFIX and export_format is None:
            raise UsageError(
                f"Cannot export to {output.name}: its name must end in .md, .html or .json, or add --format."
            )
        export_format = export_format or FORMAT_BY_SUFFIX.get(suffix) or default_format
        if export_format != "json" and len(ids) != 1:
            raise UsageError(
                f"A file in the format {export_format} holds one conversation. To export {len(ids)}, use --format json."
            )
        if output is not None and output.is_file() and not force:
            raise UsageError(f"{output} exists already. Choose another file name, or add --force to overwrite it.")
        text = export_text(store, ids, export_format)
    if output is None:
        import sys

        if export_format == "json":
            echo_json_text(text, nl=False)
        else:  # only a terminal interprets control characters; a file or a pipe gets the text unchanged
            click.echo(escape_controls(text) if sys.stdout.isatty() else text, nl=False, color=True)
    else:
        write_private(output, text)
        if as_json:
            echo_json({"file": str(output), "format": export_format, "conversations": ids})


def export_text(store: SqliteStore, conversation_ids: Sequence[str], export_format: str) -> str:
    """Return any number of conversations as JSON, or one conversation as Markdown or HTML. Raises StoreError."""
    import msgspec

    from edgechat.store.formats import edgechat_json, html, markdown

    if export_format == "json":
        data = msgspec.json.encode(edgechat_json.export(store, list(conversation_ids)))
        return msgspec.json.format(data, indent=1).decode() + "\n"
    record = edgechat_json.load_record(store, conversation_ids[0])
    render = html.render if export_format == "html" else markdown.render
    return render(record, store.read_attachment)


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=FilePath(), metavar="FILE...")
@click.option("--dry-run", is_flag=True, help="Show what would be imported, without importing it.")
@json_option
def import_(*, files: tuple[Path, ...], dry_run: bool, as_json: bool) -> None:
    """Import conversations from files.

    Reads exports of edgechat (JSON or Markdown) and ChatGPT (JSON or ZIP), and the logs.db of the program llm. Messages
    that are already in the database are not imported again. If a file cannot be imported, an error is printed, the
    other files are imported, and the exit code is 2. Unreadable conversations and messages in a file are left out and
    counted; the exit code is then 0.
    """
    import msgspec

    from edgechat.errors import ImportRefusedError
    from edgechat.store import import_process
    from edgechat.store.formats import edgechat_json

    status = StderrStatus(print_lines=True)
    has_failed = False
    with open_readable_store() as store:
        for file in files:
            meter = _ImportMeter(status, file)
            try:
                data = import_process.read_file(file, meter.show_reading)
            except ImportRefusedError as error:
                has_failed = True
                status.clear()
                if as_json:
                    echo_json({"file": file, "error": str(error)})
                status.note(str(error))
                continue
            result = edgechat_json.merge(store, data, dry_run=dry_run, on_progress=meter.show_saving)
            status.clear()
            if as_json:
                echo_json({"file": file, **msgspec.to_builtins(result)})
                continue
            for problem in result.problems:
                echo_note(f"edgechat: {format_one_line(problem)}")
            verb = "would be added" if dry_run else "added"
            click.echo(
                f"{escape_controls(str(file))}: {format_count(result.n_conversations, 'conversation')} and "
                f"{format_count(result.n_messages, 'message')} {verb}; "
                f"{format_count(result.n_existing, 'message')} already in the database"
                + (f"; {format_count(result.n_left_out, 'conversation')} left out" if result.n_left_out else "")
            )
    if has_failed:
        click.get_current_context().exit(ImportRefusedError.exit_code)


class _ImportMeter:
    """Shows the progress of an import as a status line, which appears after one second."""

    def __init__(self, status: StderrStatus, file: Path) -> None:
        self._status, self._file = status, file
        self._next_at = time.monotonic() + _METER_INTERVAL_S

    def show_reading(self, seconds: float) -> None:
        self._show(f"Reading {self._file} ({seconds:.0f} s)")

    def show_saving(self, n_saved: int, n_total: int) -> None:
        self._show(f"Saving conversation {n_saved} of {n_total}")

    def _show(self, text: str) -> None:
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + _METER_INTERVAL_S
            self._status.show(text)
