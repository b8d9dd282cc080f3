"""`edgechat history`: list, search, export, import and manage conversations."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import click

from edgechat.cli.confirmation import confirm_deletion
from edgechat.cli.history_files import export, import_
from edgechat.cli.history_store import format_one_line, open_readable_store
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import MAX_ROWS, IntRange, complete_conversation, json_option
from edgechat.cli.progress import echo_note
from edgechat.humanize import format_count, shorten
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgechat.chat.messages import Message
    from edgechat.store.sqlite import SqliteStore

# Maximum length of a title in characters; a longer title is cut at a word boundary.
MAX_TITLE_CHARS: Final = 200


@click.group()
def history() -> None:
    """List, search, export, import and manage conversations.

    ID is a conversation ID from `list`, or a unique prefix of one.
    """


@history.command("list")
@click.option(
    "-n",
    "--limit",
    type=IntRange(1, MAX_ROWS),
    default=20,
    show_default=True,
    metavar="N",
    help="Maximum number of results.",
)
@click.option("--offset", type=IntRange(0, MAX_ROWS), default=0, metavar="N", help="Skip the first N results.")
@click.option("--all", "with_archived", is_flag=True, help="Include archived conversations.")
@click.option("--tag", default="", metavar="TAG", help="List only conversations with this tag.")
@click.option("--folder", default="", metavar="NAME", help="List only conversations in this folder.")
@json_option
def list_(*, limit: int, offset: int, with_archived: bool, tag: str, folder: str, as_json: bool) -> None:
    """List conversations, pinned first, then newest first."""
    from edgechat.chat.messages import format_title
    from edgechat.store.formats.markdown import format_time

    with open_readable_store() as store:
        summaries = store.list_conversations(
            archived=None if with_archived else False, tag=tag, folder=folder, limit=limit, offset=offset
        )
        n_total = store.count_conversations(archived=None if with_archived else False, tag=tag, folder=folder)
    if as_json:
        echo_json(summaries)
        return
    if not summaries:
        echo_note("edgechat: No conversations match." if offset or tag or folder else "edgechat: No conversations yet.")
    for summary in summaries:
        c = summary.conversation
        marks = [*(["pinned"] if c.pinned else []), *(["archived"] if c.archived else []), *(f"#{t}" for t in c.tags)]
        extra = f"  [{format_one_line(' '.join(marks))}]" if marks else ""
        title = format_title(c.title, 100)
        changed_at = format_time(c.updated_at_ms)
        click.echo(f"{escape_controls(c.id[:8])}  {changed_at:16}  {summary.n_messages:4}  {title}{extra}")
    if sys.stderr.isatty() and offset + len(summaries) < n_total and summaries:
        echo_note(f"edgechat: {len(summaries)} of {n_total} conversations; --limit and --offset show more.")


@history.command()
@click.argument("query")
@click.option(
    "-n",
    "--limit",
    type=IntRange(1, MAX_ROWS),
    default=20,
    show_default=True,
    metavar="N",
    help="Maximum number of results.",
)
@click.option("--offset", type=IntRange(0, MAX_ROWS), default=0, metavar="N", help="Skip the first N results.")
@click.option("--rank", is_flag=True, help="Sort the newest 1000 matches by relevance.")
@json_option
def search(*, query: str, limit: int, offset: int, rank: bool, as_json: bool) -> None:
    """Search messages and titles for every word of QUERY.

    Words of QUERY also match inside longer words. "Words in double quotes" match as a phrase. If nothing matches,
    prints a note on standard error; the exit code is 0.
    """
    from edgechat.errors import UsageError
    from edgechat.store.formats.markdown import format_time

    if not query.strip(' "'):
        raise UsageError("The query is empty. Give at least one word.")
    with open_readable_store() as store:
        hits = store.search(query, order="rank" if rank else "newest", limit=limit, offset=offset)
    if as_json:
        echo_json(hits)
        return
    if not hits:
        echo_note(f"edgechat: No message or title contains {format_one_line(shorten(query, 100))}.")
    for hit in hits:
        matched_part = hit.role or "title"
        short_id, created_at = escape_controls(hit.conversation_id[:8]), format_time(hit.created_at_ms)
        click.echo(f"{short_id}  {created_at:16}  {matched_part:9}  {format_one_line(hit.title)[:60]}")
        click.echo(f"          {_highlight(hit.snippet, hit.marks)}")


def _highlight(snippet: str, marks: Sequence[tuple[int, int]]) -> str:
    """Return `snippet` with the character ranges in `marks` in bold."""
    text, position = "", 0
    for start, end in marks:
        text += escape_controls(snippet[position:start]) + click.style(escape_controls(snippet[start:end]), bold=True)
        position = end
    return text + escape_controls(snippet[position:])


@history.command()
@click.argument("conversation_id", metavar="ID", shell_complete=complete_conversation)
@json_option
def show(conversation_id: str, *, as_json: bool) -> None:
    """Print the active branch of a conversation.

    With --json, prints all branches.
    """
    from edgechat.store.formats import edgechat_json, markdown

    with open_readable_store() as store:
        record = edgechat_json.load_record(store, store.resolve_id(conversation_id))
    if as_json:
        echo_json(record)
        return
    click.echo(f"# {format_one_line(record.conversation.title)}")
    positions, n_alternatives = _count_alternatives(record.messages)
    for message in markdown.active_path(record):
        n, position = n_alternatives[message.parent_id], positions[message.id]
        alternative_mark = f" ‹{position}/{n}›" if n > 1 else ""  # noqa: RUF001
        details = [message.model, "interrupted" if message.is_interrupted else ""]
        extra = "".join(f" · {escape_controls(d)}" for d in details if d)
        if message.context_start_id is not None:
            click.echo("\n(The context was full: the prompt of this reply lacks the beginning of the conversation.)")
        click.echo(f"\n## {markdown.ROLE_LABELS[message.role]}{alternative_mark}{extra}\n")
        for file in message.attachments:
            click.echo(f"[{escape_controls(file.name)}, {format_count(file.size_bytes, 'byte')}]")
        click.echo(escape_controls(message.text))


def _count_alternatives(messages: Sequence[Message]) -> tuple[dict[str, int], Counter[str | None]]:
    """Return the position of each message among its alternatives, by message ID, and their number, by parent ID."""
    n_alternatives: Counter[str | None] = Counter()
    positions: dict[str, int] = {}
    for message in messages:
        n_alternatives[message.parent_id] += 1
        positions[message.id] = n_alternatives[message.parent_id]
    return positions, n_alternatives


@history.command()
@click.argument("conversation_id", metavar="ID", shell_complete=complete_conversation)
@click.argument("title")
@json_option
def rename(conversation_id: str, title: str, *, as_json: bool) -> None:
    """Change the title of a conversation."""
    from edgechat.chat.messages import first_line
    from edgechat.errors import UsageError

    new_title = first_line(" ".join(title.split()), MAX_TITLE_CHARS)
    if not new_title:
        raise UsageError("The title is empty. Give at least one word.")
    with open_readable_store() as store:
        _update_conversation(store, store.resolve_id(conversation_id), as_json=as_json, title=new_title)


@history.command()
@click.argument("conversation_id", metavar="ID", shell_complete=complete_conversation)
@click.option("--pin/--no-pin", "pinned", default=None, help="List the conversation before all others.")
@click.option("--archive/--no-archive", "archived", default=None, help="Hide the conversation from lists.")
@click.option("--folder", metavar="NAME", help='Move the conversation to a folder; "" removes it from its folder.')
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Add a tag; may be repeated.")
@click.option("--untag", "removed_tags", multiple=True, metavar="TAG", help="Remove a tag; may be repeated.")
@json_option
def mark(
    conversation_id: str, *, pinned: bool | None, archived: bool | None, folder: str | None, tags: tuple[str, ...],
    removed_tags: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Pin, archive or tag a conversation, or put it in a folder."""
    from edgechat.errors import UsageError

    invalid_tag = next((t for t in tags if not t or t != "".join(t.split())), None)
    if invalid_tag is not None:
        raise UsageError(f"{invalid_tag!r} is not a valid tag. A tag is one word.")
    new_values = {"pinned": pinned, "archived": archived, "folder": folder}
    changes: dict[str, object] = {name: value for name, value in new_values.items() if value is not None}
    if not changes and not tags and not removed_tags:
        raise UsageError("Nothing to change. See `edgechat history mark --help`.")
    with open_readable_store() as store:
        full_id = store.resolve_id(conversation_id)
        remaining_tags = [t for t in store.conversation(full_id).tags if t not in removed_tags]
        changes["tags"] = tuple(dict.fromkeys([*remaining_tags, *tags]))
        _update_conversation(store, full_id, as_json=as_json, **changes)


def _update_conversation(store: SqliteStore, full_id: str, *, as_json: bool, **changes: object) -> None:
    store.update_conversation(full_id, **changes)
    if as_json:
        echo_json(store.conversation(full_id))


@history.command()
@click.argument("conversation_ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_conversation)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def delete(*, conversation_ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete one or more conversations permanently."""
    with open_readable_store() as store:
        ids = [store.resolve_id(i) for i in conversation_ids]
        if not yes:
            titles = "\n".join(
                f"  {i[:8]}  {shorten(format_one_line(store.conversation(i).title), MAX_TITLE_CHARS)}" for i in ids
            )
            confirm_deletion(f"{titles}\nDelete permanently?", err=True)
        for conversation_id in ids:
            store.delete_conversation(conversation_id)
    if as_json:
        echo_json(ids)


@history.command()
@json_option
def path(*, as_json: bool) -> None:
    """Print the path of the conversation database."""
    from edgechat.paths import history_file

    if as_json:
        echo_json({"path": str(history_file())})
    else:
        click.echo(history_file())


@history.command()
@json_option
def recover(*, as_json: bool) -> None:
    """Recover a damaged database; the damaged file is kept.

    A database that cannot be opened is recovered automatically. Run this command if an error message recommends it.
    """
    from edgechat import paths
    from edgechat.cli.history_store import delete_conversation_files
    from edgechat.errors import StoreError
    from edgechat.store import recovery

    file = paths.history_file()
    if recovery.is_intact(file):
        note = f"{file} is intact or does not exist, so there is nothing to recover."
        echo_json({"notes": [note]}) if as_json else click.echo(note)
        return
    store = recovery.recover(file, on_deleted=[delete_conversation_files])
    if store.read_only_reason:
        raise StoreError(store.read_only_reason)
    if as_json:
        echo_json({"notes": store.notices})
    else:
        for note in store.notices:
            click.echo(escape_controls(note))


history.add_command(export)
history.add_command(import_)
