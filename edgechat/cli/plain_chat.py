"""Line-by-line chat (`--plain`): the conversations and commands of the terminal UI, as plain lines of text."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.chat import command_arguments, command_parser, commands
from edgechat.chat.commands import Command, Destination, Outcome, View
from edgechat.cli.ask import MAX_STDIN_BYTES, stream_reply
from edgechat.cli.earlier_offer import offer_earlier_reply
from edgechat.cli.interruption import Interruption
from edgechat.cli.progress import StderrStatus
from edgechat.cli.reply_input import ReplyInput
from edgechat.cli.session_factory import create_session, open_session
from edgechat.cli.unsent_line import UnsentLine
from edgechat.errors import ContextOverflowError, EdgechatError, StoreError, UsageError
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.chat.events import SessionEvent
    from edgechat.chat.session import Session

_PROMPT: Final = "> "
_MAX_LISTED_CONVERSATIONS: Final = 20
_TOO_LONG_MESSAGE: Final = (
    f"A message from standard input has more than {MAX_STDIN_BYTES} characters. Send a part of it."
)
_OPEN_HINT: Final = "/open NUMBER opens a conversation from this list"


def run_plain(**options: Any) -> int:
    """Run the line-by-line chat until standard input ends, and return the exit code. Raises EdgechatError."""
    session = create_session(**options)
    status = StderrStatus()
    interruption = Interruption(session)
    with interruption.handle_signals():
        try:
            open_session(session, status)
            status.clear()
            exit_code = PlainChat(session, status, interruption).run()
        finally:
            interruption.begin_closing()
            session.close()
            status.clear()
    return exit_code or (StoreError.exit_code if session.save_error and not sys.stdin.isatty() else 0)


class PlainChat:
    """Reads messages and commands from standard input, and prints replies and the results of commands."""

    def __init__(self, session: Session, status: StderrStatus, interruption: Interruption) -> None:
        self._session = session
        self._status = status
        self._interruption = interruption
        self._unsent_line = UnsentLine(session, _PROMPT)
        self._is_terminal = sys.stdin.isatty()
        self._reply_input = ReplyInput(session.end_thinking)
        self.has_terminal = sys.stdout.isatty()
        """True if standard output is a terminal, which may be able to copy text to the clipboard."""
        self._show_figures = session.settings.figures
        self._attachments: list[Path] = []
        self._destinations: list[Destination] = []
        """Destinations in the most recently printed list, from which `/open NUMBER` selects."""
        self._is_leaving = False
        self._exit_code = 0
        self.views: dict[View, Callable[[str], None]] = {
            "conversations": self._list_conversations, "search": self._search, "editor": self._refuse_editor,
            "copy": self._copy, "models": self._list_models, "personas": self._list_personas,
            "themes": self._refuse_themes, "settings": self._print_settings, "plan": self._print_plan,
            "documents": self._list_documents, "also": self._list_second_models, "compare": self._compare,
            "figures": self._toggle_figures, "help": self._print_help,
            "suspend": self._suspend, "quit": self._quit,
        }  # fmt: skip

    def run(self) -> int:
        """Handle messages and commands until the input ends or `/quit` is entered, and return the exit code.

        The exit code is 0 if standard input is a terminal; otherwise it is the code of the last error, if any.
        """
        if isinstance(sys.stdin, io.TextIOWrapper):  # one line that is not UTF-8 must not end the chat
            sys.stdin.reconfigure(errors="surrogateescape")
        if self._is_terminal:
            with contextlib.suppress(ImportError):  # `import readline` adds line editing to `input`
                import readline  # noqa: F401
            model_name = escape_controls(self._session.source.description or self._session.model_name)
            click.echo(f"Model: {model_name}. /help lists commands, Ctrl+D quits.")
            self._print_last_messages()
        while not self._is_leaving:
            text = self._read_message()
            if text is None:
                break
            if text.strip() and self._is_text(text):
                self._unsent_line.clear()
                self.handle(text)
        return self._exit_code

    def _read_message(self) -> str | None:
        """Read one message or command; return None at the end of the input.

        A backslash at the end of a line continues the message on the next line. The unsent message of an earlier chat
        is offered for editing, and an incomplete message is saved if a signal ends the program.
        """
        lines = self._unsent_line.offer() if self._is_terminal else []
        while True:
            try:
                line = self._next_line()
            except EOFError:
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                click.echo("\n(Press Ctrl+D or enter /quit to quit)")
                return ""
            except SystemExit:
                self._unsent_line.save(lines)
                raise
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
            if sum(map(len, lines)) > MAX_STDIN_BYTES:
                raise ContextOverflowError(_TOO_LONG_MESSAGE)

    def _next_line(self) -> str:
        """Return the next line, which may have been typed during the last reply. Raises EOFError at the end."""
        if self._reply_input.lines:
            return self._reply_input.lines.pop(0)
        if self._reply_input.is_at_end:
            raise EOFError
        return input(_PROMPT) if self._is_terminal else _read_line()

    def _is_text(self, text: str) -> bool:
        """Return whether a message can be sent; if not, print the reason."""
        try:
            text.encode()
        except UnicodeEncodeError:
            problem = "is not UTF-8 text. Convert it first, for example with iconv"
        else:
            if "\0" not in text:
                return True
            problem = "has a zero byte, so it is not text"
        self._report(UsageError(f"A message from standard input {problem}."))
        return False

    def _report(self, error: EdgechatError) -> None:
        self._status.note(str(error))
        if not self._is_terminal:
            self._exit_code = error.exit_code

    def handle(self, text: str) -> None:
        """Run a command, or send a message and print the reply. An EdgechatError is printed, not raised."""
        from edgechat.chat.mentions import describe_missing_files, find_attached_files

        try:
            command_and_argument = command_parser.parse(text)
            if command_and_argument is not None:
                self._run_command(*command_and_argument)
            else:
                self._status.note(describe_missing_files(text))
                reply = self._session.send(text.strip(), [*self._attachments, *find_attached_files(text)])
                self._print_reply(offer_earlier_reply(self._session, reply, self._status))
                self._attachments = []  # not reached after an error, so that the attachments can be sent again
        except EdgechatError as error:
            self._report(error)
        for notice in self._session.store.take_notices():
            self._status.note(notice)

    # Commands

    def _run_command(self, command: Command, argument: str) -> None:
        if command.name == "open" and argument.isdecimal() and 1 <= int(argument) <= len(self._destinations):
            commands.go_to(self._session, self._destinations[int(argument) - 1])
            self._print_note(f"Opened: {_format_one_line(self._session.conversation.title)}")
            self._print_last_messages()
        elif command.view is not None and command.opens_view(argument):
            self.views[command.view](argument)
        elif command.run is not None:
            self._apply_outcome(command.run(self._session, argument))

    def _apply_outcome(self, outcome: Outcome) -> None:
        if outcome.export_to is not None:
            from edgechat.cli.chat import export

            export(self._session.store, self._session.conversation.id, outcome.export_to)
        if outcome.attachment is not None:
            self._attachments.append(outcome.attachment)
        if outcome.detach is not None:
            self._print_note(commands.remove_attachment(self._attachments, outcome.detach))
        if outcome.destination is not None:
            commands.go_to(self._session, outcome.destination)
        if outcome.text:
            self._print_note(outcome.text)
        if outcome.path_changed or outcome.destination is not None:
            self._print_last_messages()
        if outcome.model:
            text = commands.load_model(self._session, outcome.model, lambda event: self._status.show(event.message))
            self._status.clear()
            self._print_note(text)
        if outcome.start_reply is not None:
            self._print_reply(outcome.start_reply())

    # Output

    def _print_note(self, text: str) -> None:
        click.echo(f"({escape_controls(text)})")

    def _print_reply(self, events: Iterator[SessionEvent]) -> None:
        from edgechat.chat.messages import format_performance

        self._session.clear_stop()
        try:
            with self._interruption.stop_reply(), self._reply_input.watch():
                final_event = stream_reply(events, self._status, quiet=False)
        finally:
            self._status.clear()
        self._interruption.raise_exit()
        is_second = final_event.reply.id != self._session.tree.head_id  # its own notice has been printed
        if final_event.reply.end_notice and not is_second:
            self._print_note(final_event.reply.end_notice)
        if self._show_figures:
            self._print_note(format_performance(final_event.reply))

    def _print_last_messages(self) -> None:
        for message in self._session.tree.path[-2:]:
            click.echo(f"{_PROMPT if message.role == 'user' else ''}{escape_controls(message.text)}")

    # Views

    def _list_conversations(self, _argument: str) -> None:
        from edgechat.chat.messages import format_title

        conversations = [
            s.conversation for s in self._session.store.list_conversations(limit=_MAX_LISTED_CONVERSATIONS)
        ]
        self._destinations = [Destination(c.id) for c in conversations]
        for number, conversation in enumerate(conversations, start=1):
            click.echo(f"{number:3}  {format_title(conversation.title)}")
        self._print_note(_OPEN_HINT if conversations else "No conversations yet")

    def _search(self, query: str) -> None:
        hits = self._session.store.search(query, limit=_MAX_LISTED_CONVERSATIONS)
        self._destinations = [Destination(hit.conversation_id, hit.message_id) for hit in hits]
        for number, hit in enumerate(hits, start=1):
            click.echo(f"{number:3}  {_format_one_line(hit.title)[:40]}: {_format_one_line(hit.snippet)}")
        self._print_note(_OPEN_HINT if hits else "No matches")

    def _refuse_editor(self, _argument: str) -> None:
        raise UsageError("Usage: /edit TEXT")

    def _refuse_themes(self, _argument: str) -> None:
        raise UsageError("The line-by-line chat uses the terminal's colours. Only the full-screen chat has themes.")

    def _copy(self, argument: str) -> None:
        """Copy the last reply or its last code block to the clipboard and to a file."""
        from edgechat.tui import clipboard
        from edgechat.tui.render.markdown_blocks import find_code_blocks

        text, label = command_arguments.select_text_to_copy(
            commands.last_message(self._session, "assistant").text, find_code_blocks, argument
        )
        names = clipboard.run_programs(text) if self.has_terminal else []
        was_sent = self.has_terminal and len(text) <= clipboard.MAX_CHARS
        if was_sent:
            click.echo(clipboard.make_osc52_sequence(text, is_in_tmux=clipboard.TMUX in names), nl=False)
        file = clipboard.save_copy(text) if self._session.store.is_persistent else None
        self._print_note(clipboard.summary(label, names, file, was_sent=was_sent))

    def _list_models(self, _argument: str) -> None:
        from edgechat.catalogue import library

        for entry in library.scan():
            if entry.is_usable:
                click.echo(escape_controls(entry.name))

    def _list_second_models(self, _argument: str) -> None:
        self._list_models("")
        self._print_note("/also MODEL answers the last message with one of them, too")

    def _compare(self, argument: str) -> None:
        """Print two replies one after the other, each below a heading."""
        from edgechat.chat.compared_replies import choose_replies, read_reply

        for reply_id in choose_replies(self._session.tree, argument):
            reply = read_reply(self._session, reply_id)
            if reply is not None:
                click.echo(f"--- {escape_controls(reply.heading)} ---\n{escape_controls(reply.message.text)}")

    def _list_personas(self, _argument: str) -> None:
        from edgechat.chat import personas

        click.echo("\n".join(personas.list_names()) or "(No personas yet)")

    def _list_documents(self, _argument: str) -> None:
        names = self._session.documents.search.library.names()
        for name in names:
            click.echo(escape_controls(f"{name} (used)" if name in self._session.settings.docs else name))
        if not names:
            click.echo("(No documents yet; `edgechat docs add FOLDER` adds some)")

    def _print_settings(self, _argument: str) -> None:
        import msgspec

        for name, value in msgspec.structs.asdict(self._session.settings).items():
            click.echo(escape_controls(f"{name} = {'(not set)' if value is None else value}"))

    def _print_plan(self, _argument: str) -> None:
        from edgechat.chat.reply_source import describe_remote_plan
        from edgechat.planner.report import format_plan_lines

        if self._session.source.is_remote:
            click.echo(escape_controls(describe_remote_plan(self._session.source.description)))
        elif self._session.model.plan is not None:
            click.echo(escape_controls("\n".join(format_plan_lines(self._session.model.plan))))

    def _toggle_figures(self, _argument: str) -> None:
        self._show_figures = not self._show_figures
        self._print_note(f"Speed of replies: {'shown' if self._show_figures else 'hidden'}")

    def _print_help(self, _argument: str) -> None:
        for command in commands.COMMANDS:
            click.echo(f"  {f'/{command.name} {command.argument}':<24} {command.description}")
        click.echo("A backslash at the end of a line continues the message on the next line.")

    def _suspend(self, _argument: str) -> None:
        if sys.platform == "win32":
            raise UsageError("Programs cannot be suspended on Windows")
        os.kill(os.getpid(), signal.SIGTSTP)

    def _quit(self, _argument: str) -> None:
        self._is_leaving = True


def _read_line() -> str:
    """Read a line of standard input without the line break. Raises EOFError, or ContextOverflowError if it is long."""
    line = sys.stdin.readline(MAX_STDIN_BYTES + 1)
    if not line:
        raise EOFError
    if len(line) > MAX_STDIN_BYTES:
        raise ContextOverflowError(_TOO_LONG_MESSAGE)
    return line.removesuffix("\n")


def _format_one_line(text: str) -> str:
    return escape_controls(" ".join(text.split()))
