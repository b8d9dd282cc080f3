"""`edgechat history`: the conversations that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgechat.cli.output_files import write_private
from edgechat.terminal import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgechat.store.sqlite import SqliteStore

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
# Longer ones are cut, at a word.
MAX_TITLE: Final = 200
KINDS: Final = {"md": "md", "markdown": "md", "html": "html", "htm": "html", "json": "json"}
"""Forms of a conversation, by the suffix of a file."""


@click.group()
def history() -> None:
    """Look through the conversations that are kept, and move them in and out.

    An ID is as `list` shows it, or as much of its beginning as is unique.
    """


def _open() -> SqliteStore:
    from edgechat.store import open_store

    store = open_store()
    for note in [*store.notes, *([store.problem] if store.problem else [])]:
        click.echo(f"edgechat: {visible(note)}", err=True)
    return store


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value).decode())


def _line(text: str) -> str:
    return visible(" ".join(text.split()))


@history.command("list")
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="At most so many."
)
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="Leave out the first N.")
@click.option("--all", "with_archived", is_flag=True, help="Also those that are archived.")
@click.option("--tag", default="", metavar="TAG", help="Only those with this tag.")
@click.option("--folder", default="", metavar="NAME", help="Only those in this folder.")
@json_option
def list_(*, limit: int, offset: int, with_archived: bool, tag: str, folder: str, as_json: bool) -> None:
    """List conversations: pinned ones first, then the last changed."""
    from edgechat.chat.messages import first_line
    from edgechat.store.formats.markdown import format_time

    found = _open().list(archived=None if with_archived else False, tag=tag, folder=folder, limit=limit, offset=offset)
    if as_json:
        _print_json(found)
        return
    for summary in found:
        c = summary.conversation
        marks = [*(["pinned"] if c.pinned else []), *(["archived"] if c.archived else []), *(f"#{t}" for t in c.tags)]
        extra = f"  [{_line(' '.join(marks))}]" if marks else ""
        click.echo(
            f"{visible(c.id[:8])}  {format_time(c.updated_at_ms):16}  {summary.n_messages:4}  {first_line(_line(c.title), 100) or '(no title)'}{extra}"
        )


@history.command()
@click.argument("query")
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="At most so many."
)
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="Leave out the first N.")
@click.option("--rank", is_flag=True, help="The best of the newest 1000 first, instead of the newest.")
@json_option
def search(*, query: str, limit: int, offset: int, rank: bool, as_json: bool) -> None:
    """Find messages and titles that hold every word of QUERY; "quoted words" as they stand.

    Parts of words are found, too.
    """
    from edgechat.errors import UsageError
    from edgechat.store.formats.markdown import format_time

    if not query.strip(' "'):
        raise UsageError("say what to search for")
    hits = _open().search(query, order="rank" if rank else "newest", limit=limit, offset=offset)
    if as_json:
        _print_json(hits)
        return
    for hit in hits:
        where = hit.role or "title"
        click.echo(
            f"{visible(hit.conversation_id[:8])}  {format_time(hit.created_at_ms):16}  {where:9}  {_line(hit.title)[:60]}"
        )
        click.echo(f"          {_marked(hit.snippet, hit.marks)}")


def _marked(snippet: str, marks: Sequence[tuple[int, int]]) -> str:
    """The snippet with its matches in bold, where that is seen."""
    out, at = "", 0
    for start, end in marks:
        out += visible(snippet[at:start]) + click.style(visible(snippet[start:end]), bold=True)
        at = end
    return out + visible(snippet[at:])


@history.command()
@click.argument("conversation_id", metavar="ID")
@json_option
def show(conversation_id: str, *, as_json: bool) -> None:
    """Print a conversation as it stands; with --json all of its branches."""
    from edgechat.store.formats import edgechat_json, markdown

    store = _open()
    record = edgechat_json.load_record(store, store.resolve(conversation_id))
    if as_json:
        _print_json(record)
        return
    click.echo(f"# {_line(record.conversation.title)}")
    for message in markdown.active_path(record):
        alternatives = [m.id for m in record.messages if m.parent_id == message.parent_id]
        place = f" ‹{alternatives.index(message.id) + 1}/{len(alternatives)}›" if len(alternatives) > 1 else ""  # noqa: RUF001
        details = [message.model, "interrupted" if message.interrupted else ""]
        extra = "".join(f" · {visible(d)}" for d in details if d)
        if message.context_start_id is not None:
            click.echo("\n(The model no longer saw the beginning of the conversation from here on.)")
        click.echo(f"\n## {markdown.ROLE_LABELS[message.role]}{place}{extra}\n")
        for file in message.attachments:
            click.echo(f"[{visible(file.name)}, {file.size_bytes} bytes]")
        click.echo(visible(message.text))


@history.command()
@click.argument("conversation_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All conversations (JSON only).")
@click.option(
    "--format", "kind", type=click.Choice(["md", "json", "html"]), help="By default what the file's name says, or md."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Instead of standard output.",
)
@json_option
def export(
    *, conversation_ids: tuple[str, ...], everything: bool, kind: str | None, output: Path | None, as_json: bool
) -> None:
    """Write conversations to a file: Markdown, HTML, or JSON with all branches and attachments."""
    from edgechat.errors import UsageError

    store = _open()
    if as_json and output is None:  # what is written is the JSON
        kind = kind or "json"
    if everything == bool(conversation_ids):
        raise UsageError("name the conversations to export, or --all" + (", not both" if everything else ""))
    ids = store.conversation_ids() if everything else [store.resolve(i) for i in conversation_ids]
    suffix = output.suffix.lower().lstrip(".") if output is not None else ""
    kind = kind or KINDS.get(suffix) or ("json" if everything or len(ids) > 1 else "md")
    if kind != "json" and len(ids) != 1:
        raise UsageError(f"{kind} holds one conversation; {len(ids)} go into a JSON file")
    text = text_of(store, ids, kind)
    if output is None:
        import sys

        # A terminal acts on what a model wrote; a file or a pipe gets every byte of it.
        click.echo(visible(text) if sys.stdout.isatty() else text, nl=False, color=True)
    else:
        write_private(output, text)
        if as_json:
            _print_json({"file": str(output), "format": kind, "conversations": ids})


def text_of(store: SqliteStore, conversation_ids: Sequence[str], kind: str) -> str:
    """Conversations as JSON, or one as Markdown or HTML. Raises StoreError."""
    import msgspec

    from edgechat.store.formats import edgechat_json, html, markdown

    if kind == "json":
        data = msgspec.json.encode(edgechat_json.export(store, list(conversation_ids)))
        return msgspec.json.format(data, indent=1).decode() + "\n"
    record = edgechat_json.load_record(store, conversation_ids[0])
    return html.render(record) if kind == "html" else markdown.render(record)


@history.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--dry-run", is_flag=True, help="Only say what would be imported.")
@json_option
def import_(*, files: tuple[Path, ...], dry_run: bool, as_json: bool) -> None:
    """Add conversations from files: our JSON or Markdown, a ChatGPT export (JSON or ZIP), or logs.db of llm.

    What is here already stays as it is, so importing twice changes nothing.
    """
    from edgechat.store import importing
    from edgechat.store.formats import edgechat_json

    store = _open()
    for file in files:
        merged = edgechat_json.merge(store, importing.read_file(file), dry_run=dry_run)
        if as_json:
            _print_json(merged)
            continue
        for problem in merged.problems:
            click.echo(f"edgechat: {_line(problem)}", err=True)
        verb = "would be added" if dry_run else "added"
        click.echo(
            f"{visible(str(file))}: {_count(merged.conversations, 'conversation')} and "
            f"{_count(merged.messages, 'message')} {verb}, {merged.existing} already here"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@history.command()
@click.argument("conversation_id", metavar="ID")
@click.argument("title")
@json_option
def rename(conversation_id: str, title: str, *, as_json: bool) -> None:
    """Give a conversation another title."""
    from edgechat.chat.messages import first_line
    from edgechat.errors import UsageError

    new = first_line(" ".join(title.split()), MAX_TITLE)
    if not new:
        raise UsageError("a title needs words")
    _change(conversation_id, as_json=as_json, title=new)


@history.command()
@click.argument("conversation_id", metavar="ID")
@click.option("--pin/--no-pin", "pinned", default=None, help="List it first, or not.")
@click.option("--archive/--no-archive", "archived", default=None, help="Leave it out of lists, or not.")
@click.option("--folder", metavar="NAME", help='Put it into a folder; "" takes it out.')
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Add a tag.")
@click.option("--untag", multiple=True, metavar="TAG", help="Take a tag away.")
@json_option
def mark(
    conversation_id: str, *, pinned: bool | None, archived: bool | None, folder: str | None, tags: tuple[str, ...],
    untag: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Pin a conversation, archive it, or put tags and a folder on it."""
    from edgechat.errors import UsageError

    wrong = next((t for t in tags if not t or t != "".join(t.split())), None)
    if wrong is not None:
        raise UsageError(f"{wrong!r} cannot be a tag: a tag is one word")
    given = {"pinned": pinned, "archived": archived, "folder": folder}
    changes: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if not changes and not tags and not untag:
        raise UsageError("say what to change: see `edgechat history mark --help`")
    store = _open()
    kept = [t for t in store.conversation(store.resolve(conversation_id)).tags if t not in untag]
    changes["tags"] = tuple(dict.fromkeys([*kept, *tags]))
    _change(conversation_id, as_json=as_json, **changes)


def _change(conversation_id: str, *, as_json: bool, **changes: object) -> None:

    store = _open()
    found = store.resolve(conversation_id)
    store.update(found, **changes)
    if as_json:
        _print_json(store.conversation(found))


@history.command()
@click.argument("conversation_ids", metavar="ID...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(*, conversation_ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete conversations for good."""
    store = _open()
    ids = [store.resolve(i) for i in conversation_ids]
    if not yes:
        titles = "\n".join(f"  {i[:8]}  {_line(store.conversation(i).title)}" for i in ids)
        click.confirm(f"{titles}\nDelete for good?", abort=True, err=True)
    for conversation_id in ids:
        store.delete(conversation_id)
    if as_json:
        _print_json(ids)


@history.command()
@json_option
def path(*, as_json: bool) -> None:
    """Print where the database is."""
    from edgechat.paths import history_file

    if as_json:
        _print_json({"path": str(history_file())})
    else:
        click.echo(history_file())


@history.command()
@json_option
def recover(*, as_json: bool) -> None:
    """Put a damaged database aside, and get out of it what can be read.

    Needed only when edgechat says so; a database that cannot be opened at all is recovered by itself.
    """
    from edgechat import paths
    from edgechat.store import recovery

    file = paths.history_file()
    if recovery.is_intact(file):
        click.echo(_sound(file, as_json=as_json))
        return
    store = recovery.recover(file)
    if as_json:
        _print_json({"notes": store.notes})
    else:
        for note in store.notes:
            click.echo(visible(note))


def _sound(file: Path, *, as_json: bool) -> str:
    import msgspec

    words = f"{file} is sound, or not there: nothing was done"
    return msgspec.json.encode({"notes": [words]}).decode() if as_json else words
