"""`edgechat history`: list, search, export, import and manage conversations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgechat.cli.output_files import write_private
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgechat.store.sqlite import SqliteStore

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
# Titles are cut at a word boundary before this length.
MAX_TITLE: Final = 200
KINDS: Final = {"md": "md", "markdown": "md", "html": "html", "htm": "html", "json": "json"}
"""Export format by file suffix."""


@click.group()
def history() -> None:
    """List, search, export, import and manage conversations.

    ID is a conversation ID from `list`, or a unique prefix of one.
    """


@contextlib.contextmanager
def _opened() -> Iterator[SqliteStore]:
    """Open the store, print its notes, and close it at the end. Raises StoreError."""
    from edgechat.cli.history_store import open_history
    from edgechat.errors import StoreError

    store = open_history()
    try:
        folder = store.path.parent if store.path is not None else None
        if folder is not None and folder.exists() and not folder.is_dir():
            raise StoreError(store.read_only_reason)
        for note in [*store.notices, *([store.read_only_reason] if store.read_only_reason else [])]:
            click.echo(f"edgechat: {escape_controls(note)}", err=True)
        yield store
    finally:
        store.close()


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value).decode())


def _line(text: str) -> str:
    return escape_controls(" ".join(text.split()))


@history.command("list")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="Maximum number of results.",
)
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="Skip the first N.")
@click.option("--all", "with_archived", is_flag=True, help="Include archived conversations.")
@click.option("--tag", default="", metavar="TAG", help="Only conversations with this tag.")
@click.option("--folder", default="", metavar="NAME", help="Only conversations in this folder.")
@json_option
def list_(*, limit: int, offset: int, with_archived: bool, tag: str, folder: str, as_json: bool) -> None:
    """List conversations, pinned first, then newest first."""
    from edgechat.chat.messages import first_line
    from edgechat.store.formats.markdown import format_time

    with _opened() as store:
        summaries = store.list_conversations(
            archived=None if with_archived else False, tag=tag, folder=folder, limit=limit, offset=offset
        )
    if as_json:
        _print_json(summaries)
        return
    for summary in summaries:
        c = summary.conversation
        marks = [*(["pinned"] if c.pinned else []), *(["archived"] if c.archived else []), *(f"#{t}" for t in c.tags)]
        extra = f"  [{_line(' '.join(marks))}]" if marks else ""
        title = first_line(_line(c.title), 100) or "(no title)"
        changed_at = format_time(c.updated_at_ms)
        click.echo(f"{escape_controls(c.id[:8])}  {changed_at:16}  {summary.n_messages:4}  {title}{extra}")


@history.command()
@click.argument("query")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="Maximum number of results.",
)
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="Skip the first N.")
@click.option("--rank", is_flag=True, help="Sort the newest 1000 matches by relevance.")
@json_option
def search(*, query: str, limit: int, offset: int, rank: bool, as_json: bool) -> None:
    """Search messages and titles for every word of QUERY.

    Matches parts of words, too; "quoted words" match as a phrase.
    """
    from edgechat.errors import UsageError
    from edgechat.store.formats.markdown import format_time

    if not query.strip(' "'):
        raise UsageError("The query is empty. Give at least one word.")
    with _opened() as store:
        hits = store.search(query, order="rank" if rank else "newest", limit=limit, offset=offset)
    if as_json:
        _print_json(hits)
        return
    for hit in hits:
        where = hit.role or "title"
        short_id, created_at = escape_controls(hit.conversation_id[:8]), format_time(hit.created_at_ms)
        click.echo(f"{short_id}  {created_at:16}  {where:9}  {_line(hit.title)[:60]}")
        click.echo(f"          {_marked(hit.snippet, hit.marks)}")


def _marked(snippet: str, marks: Sequence[tuple[int, int]]) -> str:
    """Return the snippet with its matches in bold."""
    out, at = "", 0
    for start, end in marks:
        out += escape_controls(snippet[at:start]) + click.style(escape_controls(snippet[start:end]), bold=True)
        at = end
    return out + escape_controls(snippet[at:])


@history.command()
@click.argument("conversation_id", metavar="ID")
@json_option
def show(conversation_id: str, *, as_json: bool) -> None:
    """Print a conversation's current branch.

    With --json, prints all branches.
    """
    from edgechat.store.formats import edgechat_json, markdown

    with _opened() as store:
        record = edgechat_json.load_record(store, store.resolve_id(conversation_id))
    if as_json:
        _print_json(record)
        return
    click.echo(f"# {_line(record.conversation.title)}")
    for message in markdown.active_path(record):
        alternatives = [m.id for m in record.messages if m.parent_id == message.parent_id]
        position = f"{alternatives.index(message.id) + 1}/{len(alternatives)}"
        alternative_mark = f" ‹{position}›" if len(alternatives) > 1 else ""  # noqa: RUF001
        details = [message.model, "interrupted" if message.is_interrupted else ""]
        extra = "".join(f" · {escape_controls(d)}" for d in details if d)
        if message.context_start_id is not None:
            click.echo("\n(From here on the prompt no longer contained the beginning of the conversation.)")
        click.echo(f"\n## {markdown.ROLE_LABELS[message.role]}{alternative_mark}{extra}\n")
        for file in message.attachments:
            click.echo(f"[{escape_controls(file.name)}, {file.size_bytes} bytes]")
        click.echo(escape_controls(message.text))


@history.command()
@click.argument("conversation_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All conversations (JSON only).")
@click.option(
    "--format", "kind", type=click.Choice(["md", "json", "html"]), help="Default: by the file's suffix, or md."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Output file instead of standard output.",
)
@json_option
def export(
    *, conversation_ids: tuple[str, ...], everything: bool, kind: str | None, output: Path | None, as_json: bool
) -> None:
    """Export conversations as Markdown, HTML or JSON.

    JSON contains all branches and attachments.
    """
    from edgechat.errors import UsageError

    if as_json and output is None:  # --json selects the export format
        kind = kind or "json"
    if everything == bool(conversation_ids):
        raise UsageError("Give conversation IDs or --all" + (", not both." if everything else "."))
    with _opened() as store:
        ids = store.conversation_ids() if everything else [store.resolve_id(i) for i in conversation_ids]
        suffix = output.suffix.lower().lstrip(".") if output is not None else ""
        kind = kind or KINDS.get(suffix) or ("json" if everything or len(ids) > 1 else "md")
        if kind != "json" and len(ids) != 1:
            raise UsageError(f"The format {kind} holds one conversation. Export {len(ids)} conversations as JSON.")
        text = export_text(store, ids, kind)
    if output is None:
        import sys

        # A terminal would interpret escape sequences from a model; a file or a pipe gets every byte.
        click.echo(escape_controls(text) if sys.stdout.isatty() else text, nl=False, color=True)
    else:
        write_private(output, text)
        if as_json:
            _print_json({"file": str(output), "format": kind, "conversations": ids})


def export_text(store: SqliteStore, conversation_ids: Sequence[str], kind: str) -> str:
    """Return conversations as JSON, or a single one as Markdown or HTML. Raises StoreError."""
    import msgspec

    from edgechat.store.formats import edgechat_json, html, markdown

    if kind == "json":
        data = msgspec.json.encode(edgechat_json.export(store, list(conversation_ids)))
        return msgspec.json.format(data, indent=1).decode() + "\n"
    record = edgechat_json.load_record(store, conversation_ids[0])
    return html.render(record) if kind == "html" else markdown.render(record)


@history.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--dry-run", is_flag=True, help="Show what would be imported.")
@json_option
def import_(*, files: tuple[Path, ...], dry_run: bool, as_json: bool) -> None:
    """Import conversations from files.

    Reads edgechat's JSON or Markdown, ChatGPT exports (JSON or ZIP), and the logs.db of llm. Importing a file twice
    changes nothing.
    """
    from edgechat.store import importing
    from edgechat.store.formats import edgechat_json

    with _opened() as store:
        for file in files:
            merged = edgechat_json.merge(store, importing.read_file(file), dry_run=dry_run)
            if as_json:
                _print_json(merged)
                continue
            for problem in merged.problems:
                click.echo(f"edgechat: {_line(problem)}", err=True)
            verb = "would be added" if dry_run else "added"
            click.echo(
                f"{escape_controls(str(file))}: {_count(merged.n_conversations, 'conversation')} and "
                f"{_count(merged.n_messages, 'message')} {verb}, {merged.n_existing} already present"
            )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@history.command()
@click.argument("conversation_id", metavar="ID")
@click.argument("title")
@json_option
def rename(conversation_id: str, title: str, *, as_json: bool) -> None:
    """Change the title of a conversation."""
    from edgechat.chat.messages import first_line
    from edgechat.errors import UsageError

    new = first_line(" ".join(title.split()), MAX_TITLE)
    if not new:
        raise UsageError("The title is empty.")
    with _opened() as store:
        _update(store, store.resolve_id(conversation_id), as_json=as_json, title=new)


@history.command()
@click.argument("conversation_id", metavar="ID")
@click.option("--pin/--no-pin", "pinned", default=None, help="List the conversation first.")
@click.option("--archive/--no-archive", "archived", default=None, help="Hide the conversation from lists.")
@click.option("--folder", metavar="NAME", help='Move the conversation to a folder; "" removes it from its folder.')
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Add a tag.")
@click.option("--untag", multiple=True, metavar="TAG", help="Remove a tag.")
@json_option
def mark(
    conversation_id: str, *, pinned: bool | None, archived: bool | None, folder: str | None, tags: tuple[str, ...],
    untag: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Pin, archive, tag or file a conversation."""
    from edgechat.errors import UsageError

    wrong = next((t for t in tags if not t or t != "".join(t.split())), None)
    if wrong is not None:
        raise UsageError(f"{wrong!r} is not a valid tag. A tag is one word.")
    selected = {"pinned": pinned, "archived": archived, "folder": folder}
    changes: dict[str, object] = {name: value for name, value in selected.items() if value is not None}
    if not changes and not tags and not untag:
        raise UsageError("Nothing to change. See `edgechat history mark --help`.")
    with _opened() as store:
        full_id = store.resolve_id(conversation_id)
        remaining = [t for t in store.conversation(full_id).tags if t not in untag]
        changes["tags"] = tuple(dict.fromkeys([*remaining, *tags]))
        _update(store, full_id, as_json=as_json, **changes)


def _update(store: SqliteStore, full_id: str, *, as_json: bool, **changes: object) -> None:
    store.update_conversation(full_id, **changes)
    if as_json:
        _print_json(store.conversation(full_id))


@history.command()
@click.argument("conversation_ids", metavar="ID...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def delete(*, conversation_ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete the given conversations permanently."""
    with _opened() as store:
        ids = [store.resolve_id(i) for i in conversation_ids]
        if not yes:
            titles = "\n".join(f"  {i[:8]}  {_line(store.conversation(i).title)}" for i in ids)
            click.confirm(f"{titles}\nDelete permanently?", abort=True, err=True)
        for conversation_id in ids:
            store.delete_conversation(conversation_id)
    if as_json:
        _print_json(ids)


@history.command()
@json_option
def path(*, as_json: bool) -> None:
    """Print the path of the database."""
    from edgechat.paths import history_file

    if as_json:
        _print_json({"path": str(history_file())})
    else:
        click.echo(history_file())


@history.command()
@json_option
def recover(*, as_json: bool) -> None:
    """Recover a damaged database; the damaged file stays.

    Needed only when an error message recommends it; a database that cannot be opened is recovered automatically.
    """
    from edgechat import paths
    from edgechat.cli.history_store import delete_conversation_files
    from edgechat.store import recovery

    file = paths.history_file()
    if recovery.is_intact(file):
        note = f"{file} is intact or does not exist: nothing to recover."
        _print_json({"notes": [note]}) if as_json else click.echo(note)
        return
    store = recovery.recover(file, on_deleted=[delete_conversation_files])
    if as_json:
        _print_json({"notes": store.notices})
    else:
        for note in store.notices:
            click.echo(escape_controls(note))
