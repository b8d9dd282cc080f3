"""`edgechat engine`: show and stop the resident engines, which keep models in memory between programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from edgechat.cli.cache_use import format_cache_use, make_cache_object
from edgechat.cli.drafter_state import format_drafter, make_drafter_object
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import IntRange
from edgechat.cli.progress import echo_note
from edgechat.errors import NotFoundError, UsageError
from edgechat.humanize import format_duration, format_size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.engine.protocol import EngineStatus
    from edgechat.engine.resident_files import EngineRecord


class _Row(NamedTuple):
    """A running engine; its status is None if it does not answer, for example because it is ending."""

    record: EngineRecord
    status: EngineStatus | None


@click.group()
def engine() -> None:
    """Show or stop the engines that keep models in memory.

    The first program that needs a model starts an engine process; others with the same model and options share it. The
    model stays in memory for the time of the setting `keep_alive`. With EDGECHAT_ENGINE=private in the environment, a
    program starts an engine of its own, which ends with it and is not listed here.
    """


@engine.command()
@click.option("--json", "as_json", is_flag=True, help="Print the engines as one JSON object.")
def status(*, as_json: bool) -> None:
    """Show the running engines.

    Prints model, memory, programs, speed of the last reply and idle time of each.
    """
    rows = _list_rows()
    if as_json:
        echo_json({"engines": [_make_object(row) for row in rows]})
        return
    if not rows:
        click.echo("No engine is running.")
    for index, row in enumerate(rows):
        click.echo(("\n" if index else "") + escape_controls("\n".join(_format_row(row))))


@engine.command()
@click.argument("pid", type=IntRange(min=1), required=False)
@click.option("--all", "stops_all", is_flag=True, help="Also stop engines that programs use.")
@click.option("--json", "as_json", is_flag=True, help="Print the process ids of the stopped engines as JSON.")
def stop(pid: int | None, *, stops_all: bool, as_json: bool) -> None:
    """Stop unused engines, or the engine PID.

    Without PID, stops the engines that no program uses. A program whose engine is stopped loads the model again for its
    next reply; a reply in progress ends.
    """
    from edgechat.engine.resident_client import stop_engine

    if pid is not None and stops_all:
        raise UsageError("Give a process id or --all, not both.")
    rows = _list_rows()
    if pid is not None:
        chosen = [row for row in rows if row.record.pid == pid]
        if not chosen:
            raise NotFoundError(f"No engine has the process id {pid}. `edgechat engine status` lists the engines.")
    else:
        chosen = [row for row in rows if stops_all or (row.status is not None and not row.status.clients)]
    stopped_pids = [row.record.pid for row in chosen if stop_engine(row.record)]
    if as_json:
        echo_json({"stopped": stopped_pids})
    elif stopped_pids:
        click.echo(f"Stopped: {', '.join(str(stopped_pid) for stopped_pid in stopped_pids)}")
    else:
        click.echo("No engine was stopped.")
    for row in rows if pid is None and not stops_all else ():
        if row.status is None:
            echo_note(f"Engine {row.record.pid} does not answer. To end it: edgechat engine stop {row.record.pid}")
        elif row.status.clients:
            echo_note(f"Engine {row.record.pid} is in use. To stop it, too: edgechat engine stop --all")


def _list_rows() -> list[_Row]:
    from edgechat.engine.resident_client import read_status
    from edgechat.engine.resident_files import list_records

    return [_Row(record, read_status(record)) for record in list_records()]


def _make_object(row: _Row) -> dict[str, Any]:
    from edgechat.hardware.memory import read_rss_bytes, read_tree_pss_bytes

    record, status = row
    loaded = status.loaded if status is not None else None
    return {
        "pid": record.pid,
        "model": record.model_path,
        "version": record.version.partition(" ")[0],
        "state": _find_state(record, status),
        "memory_bytes": read_tree_pss_bytes(record.pid) or read_rss_bytes(record.pid),
        "n_ctx": loaded.n_ctx if loaded is not None else None,
        **make_drafter_object(status, record.model_path),
        "clients": [
            {"name": c.name, "pid": c.pid, "n_requests": c.n_requests} for c in (status.clients if status else [])
        ],
        "decode_tps": status.decode_tps if status is not None else None,
        "prompt_cache": make_cache_object(status.cache_use) if status is not None else None,
        "idle_s": round(status.idle_s, 3) if status is not None else None,
        "keep_alive_s": status.keep_alive_s if status is not None else None,
    }


def _find_state(record: EngineRecord, status: EngineStatus | None) -> str:
    if status is None:
        return "unknown" if record.total_bytes else "loading"
    if status.loaded is None:
        return "loading" if status.clients else "idle"
    return "busy" if any(client.n_requests for client in status.clients) else "idle"


def _is_own(record: EngineRecord) -> bool:
    """Return whether the engine is of this installation of edgechat."""
    from edgechat.engine.resident_client import read_installation

    return record.version == read_installation()


def _format_row(row: _Row) -> list[str]:
    record, status = row
    values = _make_object(row)
    origin = "" if _is_own(record) else f" (of another edgechat installation, version {values['version']})"
    lines = [f"engine {record.pid}: {record.model_path}{origin}"]
    if status is None:
        reason = "loading" if values["state"] == "loading" else "does not answer"
        return [*lines, f"  {reason}, {format_size(values['memory_bytes'])} of memory"]
    memory = f"{format_size(values['memory_bytes'])} of memory"
    speed = f", last reply {status.decode_tps:.1f} tokens/s" if status.decode_tps else ""
    context = f", context up to {values['n_ctx']:,} tokens" if values["n_ctx"] else ""
    lines.append(f"  {values['state']}, {memory}{context}{speed}")
    lines += [f"  {line}" for line in (*format_drafter(values), *format_cache_use(values["prompt_cache"]))]
    clients = [f"{client.name} (process {client.pid})" for client in status.clients]
    lines.append(f"  used by {', '.join(clients)}" if clients else f"  used by no program; {_format_end(status)}")
    return lines


def _format_end(status: EngineStatus) -> str:
    if status.loaded is None:
        return "has no model and ends soon"
    if status.keep_alive_s < 0:
        return "stays until `edgechat engine stop`"
    return f"ends in {format_duration(max(0.0, status.keep_alive_s - status.idle_s))}"
