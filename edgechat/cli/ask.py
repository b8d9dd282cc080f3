"""`edgechat ask`: ask one question and print the reply."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from edgechat.cli.cited_sources import make_source_fields, print_sources
from edgechat.cli.interruption import use_session
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import FilePath, IntRange, conversation_options
from edgechat.cli.progress import StderrStatus, echo_note
from edgechat.cli.session_factory import create_session
from edgechat.errors import ContextOverflowError, EngineError, StoreError, UsageError
from edgechat.humanize import format_count, format_size, shorten
from edgechat.terminal import TextEscaper, escape_controls

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from edgechat.chat.events import SessionEvent, TurnFinished, TurnInterrupted
    from edgechat.chat.messages import Message
    from edgechat.chat.reply_source import JsonSchema
    from edgechat.chat.session import Session
    from edgechat.prompt.agreement.picker import PickMethod

# These have the values of `planner.load_variants.MANY_SEQS` and `prompt.agreement.picker.MAX_PICKED_REPLIES`, whose
# modules are slow to import.
MAX_PARALLEL_REPLIES: Final = 8
MAX_PICKED_REPLIES: Final = 64
MAX_STDIN_BYTES: Final = 32 << 20
"""Maximum size of a prompt from standard input, the same as the limit for the attachments of a message."""
# Time after which a notice says that edgechat waits for standard input.
_STDIN_NOTICE_S: Final = 3.0
# Statistics that a server reports for the reply of a remote model, and the times that edgechat measures.
_REMOTE_STATS: Final = (
    "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "ttft_s", "decode_tps", "is_remote",
)  # fmt: skip
# Options that only concern an engine on this machine, by parameter. A limit of --thinking is one, too.
_LOCAL_OPTIONS: Final = {
    "n_ctx": "--ctx", "n_threads": "--threads", "speculation": "--speculation", "draft_model": "--draft-model",
}  # fmt: skip
_MAX_VALUE_CHARS: Final = 20
_STDIN_NOTICE: Final = (
    "edgechat: Waiting for the end of standard input. If there is no input, use --no-stdin or < /dev/null."
)


@click.command()
@click.argument("prompt", required=False)
@conversation_options
@click.option(
    "-a",
    "--attach",
    "attachments",
    multiple=True,
    type=FilePath(),
    metavar="PATH",
    help="Attach a text, PDF or Office file, or search a folder; may be repeated.",
)
@click.option(
    "--answers",
    "n_replies",
    type=IntRange(1, MAX_PICKED_REPLIES),
    default=1,
    show_default=True,
    metavar="N",
    help=f"Generate N alternative replies: up to {MAX_PARALLEL_REPLIES} in parallel, or more with --pick.",
)
@click.option(
    "--pick",
    type=click.Choice(["agree", "likely", "judge"]),
    metavar="METHOD",
    help="Print one of the --answers replies: agree (most frequent answer), likely, or judge.",
)
@click.option("--no-stdin", is_flag=True, help="Do not read standard input.")
@click.option(
    "--schema",
    "schema_file",
    type=FilePath(),
    metavar="FILE",
    help="Make the reply JSON that matches the JSON schema in FILE.",
)
@click.option(
    "--earlier",
    "allows_earlier",
    is_flag=True,
    help="Print the reply of an earlier conversation that began with nearly the same question, if there is one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the reply and its statistics as one JSON object.")
def ask(
    prompt: str | None, no_stdin: bool, as_json: bool, attachments: tuple[Path, ...], n_replies: int,
    pick: PickMethod | None, schema_file: Path | None, allows_earlier: bool, **options: Any,
) -> None:  # fmt: skip
    """Ask one question and print the reply as it is generated.

    Text from standard input is appended to PROMPT. In a loop or a service, whose standard input is not meant for
    edgechat, use --no-stdin or < /dev/null. With --answers and --pick, several replies are generated and the best one
    is printed; notes on standard error say what that costs. The conversation is saved (see `edgechat history`), unless
    --ephemeral is given.
    """
    if pick is not None and n_replies == 1:
        raise UsageError("--pick chooses between several replies. Add --answers 5.")
    if pick is None and n_replies > MAX_PARALLEL_REPLIES:
        raise UsageError(
            f"--answers: must be from 1 to {MAX_PARALLEL_REPLIES}, not {n_replies}. With --pick, up to "
            f"{MAX_PICKED_REPLIES} replies are generated."
        )
    if allows_earlier and (schema_file is not None or n_replies > 1):
        raise UsageError("--earlier cannot be used with --schema or --answers.")
    if prompt:
        _report_mentions(prompt)
    output: tuple[JsonSchema | None, str] = (None, "")
    if schema_file is not None:
        from edgechat.cli.output_schema import read_schema_rule

        output = read_schema_rule(schema_file)
    question = read_question(prompt, no_stdin=no_stdin)
    print_reply(
        question, as_json=as_json, attachments=attachments, n_replies=n_replies, pick=pick, output=output,
        allows_earlier=allows_earlier, **options,
    )  # fmt: skip


def _report_mentions(prompt: str) -> None:
    """Print a note for each `@FILE` in the prompt, because it attaches no file, unlike in the chat."""
    from edgechat.chat import mentions

    status = StderrStatus()
    for path in mentions.find_attached_files(prompt):
        status.note(f"@{path} is sent as plain text. To attach it, add --attach {path}.")
    status.note(mentions.describe_missing_files(prompt))


def ask_stdin(**options: Any) -> None:
    """Read a prompt from standard input and print the reply."""
    print_reply(read_question(None), as_json=False, **options)


def read_question(prompt: str | None, *, no_stdin: bool = False) -> str:
    """Return `prompt`, followed by the text of standard input if it is not a terminal and `no_stdin` is false.

    Raises UsageError if both are empty or standard input is not Unicode text, and ContextOverflowError if standard
    input is too long.
    """
    parts = [prompt] if prompt else []
    if prompt:
        prompt.encode()  # raises UnicodeEncodeError if the argument is not UTF-8
    if not no_stdin and not sys.stdin.isatty():
        data = _read_stdin()
        parts.append(_decode_stdin(data))
    text = "\n\n".join(p for p in parts if p.strip())
    if not text.strip():
        raise UsageError('The question is empty. Example: edgechat ask "What is a GGUF file?"')
    return text


def _decode_stdin(data: bytes) -> str:
    """Decode text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. Raises UsageError."""
    from edgechat.chat.text_files import NotTextError, decode_text

    try:
        return decode_text(data)
    except NotTextError as error:
        raise UsageError(f"Standard input {error}") from error


def _read_stdin() -> bytes:
    """Read standard input to its end. Prints a notice if that takes seconds. Raises ContextOverflowError."""
    notice = threading.Timer(_STDIN_NOTICE_S, echo_note, [_STDIN_NOTICE])
    notice.daemon = True
    notice.start()
    try:
        data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1) or b""  # None from a non-blocking pipe without data
    finally:
        notice.cancel()
    if len(data) > MAX_STDIN_BYTES:
        raise ContextOverflowError(
            f"Standard input is larger than {format_size(MAX_STDIN_BYTES)}, which is more than a context holds. "
            "Send a part of it."
        )
    return data


def print_reply(
    text: str, *, as_json: bool, attachments: tuple[Path, ...] = (), n_replies: int = 1,
    pick: PickMethod | None = None, output: tuple[JsonSchema | None, str] = (None, ""), allows_earlier: bool = False,
    **options: Any,
) -> None:  # fmt: skip
    """Send `text` to the model and print the reply. `output` has its JSON schema and grammar rule, if there are any.

    With `allows_earlier`, the reply of an earlier conversation to nearly the same question is printed instead, if there
    is one.

    A signal during the reply stops the reply and saves it. Raises EdgechatError, KeyboardInterrupt after Ctrl-C, and
    SystemExit after another signal.
    """
    session = create_session(**options)
    output_schema, output_rule = output
    status = StderrStatus()
    if allows_earlier:
        from edgechat.cli.earlier_offer import print_earlier_reply

        with contextlib.ExitStack() as stack:
            stack.callback(session.close)
            if print_earlier_reply(session, text, attachments, status, as_json=as_json):
                return
            stack.pop_all()
    with use_session(session, status) as interruption:
        status.note(_describe_unused_options(session, options))
        with interruption.stop_reply():
            events = session.send(text, attachments, n_replies, pick, output_rule, output_schema)
            final_event = stream_reply(events, status, quiet=as_json or (n_replies > 1 and pick is None))
        status.clear()
        # The doubtful reply of a route is an alternative that is not printed.
        printed_replies = [final_event.reply, *(final_event.alternatives if n_replies > 1 and pick is None else ())]
        if as_json:
            _print_json(session, final_event)
        else:
            if n_replies > 1 and pick is None:
                _print_alternatives(final_event)
            _report_cut_replies(session, printed_replies, final_event.context_tokens, status)
            print_sources(session, final_event.reply, status)
    if output_rule and any(r.finish_reason != "stop" for r in printed_replies):
        raise ContextOverflowError("The reply was cut, so that its JSON is incomplete. Raise --max-tokens or --ctx.")
    if output_rule and session.source.is_remote and not all(_is_json(r.text) for r in printed_replies):
        raise EngineError(
            f"The reply is not JSON: {session.model_name} does not support JSON schemas. Use another model."
        )
    if session.save_error:  # the reply and the reason why it was not saved have been printed
        click.get_current_context().exit(StoreError.exit_code)


def stream_reply(
    events: Iterator[SessionEvent], status: StderrStatus, *, quiet: bool
) -> TurnFinished | TurnInterrupted:
    """Print the reply in `events` as it is generated, unless `quiet`, and return the final event.

    A reply that is picked from several is printed when it is picked, and one that a route checks when it is checked.

    Raises EdgechatError, and OSError if standard output is closed. In both cases, the text so far is saved first.
    """
    from edgechat.chat.events import (
        EscalationStarted,
        PickStarted,
        ReplyPicked,
        ReplyRouted,
        ReplyTextGenerated,
        RouteChosen,
        SecondReplyEnded,
        TurnFinished,
        TurnInterrupted,
        format_notice,
        format_progress,
    )
    from edgechat.chat.thinking_progress import ThinkingProgress

    # Only a terminal interprets control characters; a file or a pipe gets the text unchanged.
    escaper = TextEscaper() if sys.stdout.isatty() else None
    last_text, thinking = "", ThinkingProgress()
    is_held = False
    final_event: TurnFinished | TurnInterrupted | None = None
    # Closing the generator saves the reply.
    with contextlib.closing(cast("Generator[SessionEvent]", events)), contextlib.ExitStack() as stack:
        stack.callback(lambda: _end_line(last_text, escaper))
        for event in events:
            notice = format_notice(event)
            if notice and isinstance(event, (ReplyPicked, ReplyRouted, SecondReplyEnded)):  # the reply is complete
                _end_line(last_text, escaper)
                last_text = ""
            elif notice and last_text and not last_text.endswith("\n") and sys.stdout.isatty() and sys.stderr.isatty():
                echo_note("")
            status.note(notice)
            thinking.add(event)
            status.show(", ".join(filter(None, (thinking.text, thinking.pick_text))) or format_progress(event))
            if isinstance(event, RouteChosen):
                is_held = event.may_escalate
            is_held = (is_held or isinstance(event, PickStarted)) and not isinstance(event, EscalationStarted)
            text = event.text if isinstance(event, ReplyTextGenerated) and not is_held else ""
            if isinstance(event, (TurnFinished, TurnInterrupted)):
                final_event = event
                is_kept = event.routed is not None and bool(event.routed.doubt) and not event.routed.is_escalated
                text = event.reply.text if is_held or is_kept else ""
            if text and not quiet:
                status.clear()
                last_text = text
                click.echo(escaper.feed(text) if escaper is not None else text, nl=False)
    if final_event is None:
        raise EngineError("The reply ended without a final event from the engine. Ask again.")
    return final_event


def _describe_unused_options(session: Session, options: Mapping[str, Any]) -> str:
    """Return a sentence about the options that a remote model ignores; "" if there are none."""
    if not session.source.is_remote:
        return ""
    names = [name for key, name in _LOCAL_OPTIONS.items() if options.get(key) is not None]
    thinking = options.get("thinking")
    if isinstance(thinking, str) and any(char.isdigit() for char in thinking):
        names.append(f"--thinking {shorten(thinking, _MAX_VALUE_CHARS)}")
    verb = "has" if len(names) == 1 else "have"
    return f"{' and '.join(names)} {verb} no effect: the server of a remote model decides." if names else ""


def _end_line(last_text: str, escaper: TextEscaper | None) -> None:
    """Print the text that `escaper` held back, and end the last line of a reply that ends with `last_text`."""
    remaining_text = escaper.finish() if escaper is not None else ""
    if remaining_text or last_text:
        click.echo(remaining_text, nl=bool(remaining_text) or not last_text.endswith("\n"))


def _report_cut_replies(
    session: Session, replies: Sequence[Message], context_tokens: int, status: StderrStatus
) -> None:  # fmt: skip
    """Print notes about replies that were cut: they repeat themselves, or reached a limit, or the context is full."""
    from edgechat.planner.kv_memory import round_up_to_cells

    max_tokens, properties = session.settings.max_tokens, session.model_properties
    for number, reply in enumerate(replies, start=1):
        if reply.finish_reason == "length":
            name = f"Reply {number}" if len(replies) > 1 else "The reply"
            if reply.repeats_itself:
                status.note(f"{name} was stopped, because it repeats itself. --no-stop-repetition prevents this.")
            elif max_tokens is not None and (reply.n_tokens or 0) >= max_tokens:
                status.note(f"{name} was cut after {format_count(max_tokens, 'token')}, the limit of --max-tokens.")
            elif properties is None:  # a remote model
                status.note(f"{name} was cut at a limit of the server.")
            else:
                n_ctx, n_ctx_train = properties.n_ctx, properties.n_ctx_train
                advice = " --ctx sets its length." if n_ctx < n_ctx_train else ""
                used_n_ctx = round_up_to_cells(context_tokens)
                if len(replies) == 1 and used_n_ctx < n_ctx:
                    n_ctx, advice = used_n_ctx, " It could not grow, because memory is short. Close other programs."
                status.note(f"{name} was cut, because the context of {n_ctx} tokens is full.{advice}")


def _print_alternatives(final_event: TurnFinished | TurnInterrupted) -> None:
    format_text = escape_controls if sys.stdout.isatty() else str
    replies = [final_event.reply, *final_event.alternatives]
    for number, reply in enumerate(replies, start=1):
        click.echo(f"{'' if number == 1 else chr(10)}--- {number}/{len(replies)}\n{format_text(reply.text)}")


def _print_json(session: Session, final_event: TurnFinished | TurnInterrupted) -> None:
    import msgspec

    from edgechat.cli.drafter_state import describe_used_drafter
    from edgechat.hardware.memory import read_peak_rss_bytes

    model_properties, reply = session.model_properties, final_event.reply
    stats = msgspec.to_builtins(reply.stats) if reply.stats is not None else {}
    stats.pop("context_hash", None)  # used by edgechat itself
    drafter: str | None = None
    drafter_refusal = ""
    is_remote = session.source.is_remote or (reply.stats is not None and reply.stats.is_remote is True)
    if is_remote or not session.model.is_open:
        # The other statistics are those of an engine, or the server did not report them.
        stats = {name: stats[name] for name in _REMOTE_STATS if stats.get(name)}
        stats["peak_rss_bytes"] = {"client": read_peak_rss_bytes()}
    else:
        stats["load_s"] = model_properties.load_s if model_properties else 0.0
        engine_stats = session.model.engine.stats()
        stats["peak_rss_bytes"] = {"engine": engine_stats.peak_rss_bytes, "client": read_peak_rss_bytes()}
        drafter, drafter_refusal = describe_used_drafter(session.model, engine_stats.drafter)
    result: dict[str, Any] = {
        "text": reply.text,
        "reasoning": reply.reasoning,
        "finish_reason": reply.finish_reason,
        "conversation_id": session.conversation.id,
        "message_id": reply.id,
        "model": session.reply_model if session.source.is_remote else str(session.model_path),
        "backend": model_properties.backend if model_properties and not is_remote else "",
        "drafter": drafter,
        "drafter_refusal": drafter_refusal,
        "stats": stats,
    }
    result |= make_source_fields(session, reply)
    if final_event.alternatives:
        result["others"] = [
            {"text": o.text, "reasoning": o.reasoning, "finish_reason": o.finish_reason, "message_id": o.id}
            | _make_pick_fields(final_event, o)
            for o in final_event.alternatives
        ]
    if final_event.routed is not None:
        result["model"] = reply.model
        result["route"] = msgspec.to_builtins(final_event.routed)
    if final_event.picked is not None:
        pick = final_event.picked.pick
        result |= _make_pick_fields(final_event, reply)
        result["pick"] = {
            "method": pick.method, "result": pick.describe(), "n_agreeing": pick.n_agreeing,
            "n_counted": pick.n_counted, "n_started": pick.n_started, "n_requested": pick.n_requested,
            "votes": Counter(final_event.picked.answers.values()), "n_tokens": final_event.picked.n_tokens,
            "elapsed_s": final_event.picked.elapsed_s,
        }  # fmt: skip
    echo_json(result)


def _is_json(text: str) -> bool:
    """Return whether the reply of a remote model, which may ignore its schema, is JSON."""
    import msgspec

    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def _make_pick_fields(final_event: TurnFinished | TurnInterrupted, reply: Message) -> dict[str, Any]:
    """Return the answer and the mean logprob of a reply if one was picked from several; else no fields."""
    if final_event.picked is None:
        return {}
    mean_logprob = reply.stats.mean_logprob if reply.stats is not None else None
    return {
        "answer": final_event.picked.answers.get(reply.id),
        "mean_logprob": mean_logprob if isinstance(mean_logprob, float) else None,
    }
