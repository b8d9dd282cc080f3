"""The chat line by line: the same conversations and commands, without drawing anything."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.chat import commands
from edgechat.cli.ask import Status, stream
from edgechat.cli.session_factory import session_maker
from edgechat.errors import EdgechatError, UsageError
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from types import FrameType

    from edgechat.chat.events import SessionEvent
    from edgechat.chat.messages import Message
    from edgechat.chat.session import Session

_PROMPT: Final = "> "
_SHOWN: Final = 20


def run_plain(**options: Any) -> int:
    """Read messages and commands from standard input until it ends; returns the exit code. Raises EdgechatError."""
    make_session, problems = session_maker(**options)
    session = make_session()
    for problem in problems:
        click.echo(f"edgechat: {problem} (ignored)", err=True)
    status = Status()
    try:
        session.open(lambda event: status.show(event.message))
        for warning in session.warnings:
            status.note(warning)
        status.clear()
        return PlainChat(session, status).run()
    finally:
        status.clear()
        session.close()


class PlainChat:
    """A conversation, a line at a time."""

    def __init__(self, session: Session, status: Status) -> None:
        self._session = session
        self._status = status
        self._is_terminal = sys.stdin.isatty()
        self._figures = session.settings.figures
        self._files: list[Path] = []
        self._found: list[tuple[str, str | None]] = []
        self._leaving = False
        self._exit_code = 0

    def run(self) -> int:
        """Until there is nothing more to read; the exit code of the last thing that failed if nobody watches."""
        if self._is_terminal:
            with contextlib.suppress(ImportError):  # gives `input` an editor, where there is one
                import readline  # noqa: F401
            click.echo(
                f"{escape_controls(self._session.model_path.stem)} answers. /help shows commands, Ctrl-D leaves."
            )
            self._show_tail()
        while not self._leaving:
            text = self._read()
            if text is None:
                break
            if text.strip():
                self._take(text)
        return self._exit_code

    def _read(self) -> str | None:
        """A message: a line, or several that end with a backslash; None at the end."""
        lines: list[str] = []
        while True:
            try:
                line = input(_PROMPT if self._is_terminal else "")
            except EOFError:
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                click.echo("\n(Ctrl-D or /quit leaves)")
                return ""
            except UnicodeDecodeError as error:
                raise UsageError(f"standard input is not UTF-8 text (byte {error.start})") from error
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _take(self, text: str) -> None:
        try:
            command = commands.parse(text)
            if command is not None:
                getattr(self, f"do_{command[0]}")(command[1])
            else:
                files = [*self._files, *commands.attached_files(text)]
                self._answer(self._session.send(text.strip(), files))
                self._files = []  # only now: what could not be sent can be sent again
        except EdgechatError as error:
            self._status.note(str(error))
            if not self._is_terminal:
                self._exit_code = error.exit_code

    def _answer(self, answering: Iterator[SessionEvent]) -> None:
        from edgechat.chat.messages import performance_summary

        session = self._session

        def interrupt(_signal: int, _frame: FrameType | None) -> None:
            session.stop()

        session.clear_stop()
        before = signal.signal(signal.SIGINT, interrupt)
        try:
            ended = stream(answering, self._status, quiet=False)
        finally:
            signal.signal(signal.SIGINT, before)
            self._status.clear()
        if ended.reply.is_interrupted:
            click.echo("(stopped; /continue goes on)")
        elif ended.reply.finish_reason == "length":
            click.echo("(the answer reached its length limit)")
        if self._figures:
            click.echo(f"({escape_controls(performance_summary(ended.reply))})")

    def _last(self, role: str) -> Message:
        found = next((m for m in reversed(self._session.tree.path) if m.role == role), None)
        if found is None:
            raise UsageError("nothing was said in this conversation yet")
        return found

    def _show_tail(self) -> None:
        """The end of the conversation, if it goes on."""
        for message in self._session.tree.path[-2:]:
            click.echo(f"{_PROMPT if message.role == 'user' else ''}{escape_controls(message.text)}")

    # Conversations

    def do_new(self, persona: str) -> None:
        """Begin a new conversation."""
        from edgechat.chat import personas

        if persona:
            personas.load_settings(persona)  # before anything is left
        self._session.switch_conversation()
        if persona:
            self.do_persona(persona)
        click.echo("(a new conversation)")

    def do_open(self, words: str) -> None:
        """List conversations, or go to the one that is meant: by its number in the last list, or by its title."""
        store = self._session.store
        if not words:
            found = [s.conversation for s in store.list_conversations(limit=_SHOWN)]
            self._found = [(c.id, None) for c in found]
            for number, about in enumerate(found, start=1):
                click.echo(f"{number:3}  {_line(about.title) or '(no title)'}")
            click.echo("(/open NUMBER goes there)")
            return
        if words.isdecimal() and 1 <= int(words) <= len(self._found):
            conversation_id, message_id = self._found[int(words) - 1]
        else:
            conversation_id, message_id = commands.find_by_title(store, words), None
        self._session.switch_conversation(store.conversation(conversation_id))
        if message_id is not None and message_id in self._session.tree:
            self._session.select_alternative(message_id)
        click.echo(f"({_line(self._session.conversation.title)})")
        self._show_tail()

    def do_search(self, words: str) -> None:
        """Find words everywhere."""
        hits = self._session.store.search(words, limit=_SHOWN)
        self._found = [(hit.conversation_id, hit.message_id) for hit in hits]
        for number, hit in enumerate(hits, start=1):
            click.echo(f"{number:3}  {_line(hit.title)[:40]}: {_line(hit.snippet)}")
        click.echo("(/open NUMBER goes there)" if hits else "(nothing was found)")

    def do_rename(self, title: str) -> None:
        """Another title."""
        self._session.rename(title)

    def do_pin(self, _argument: str) -> None:
        """First in the list, or no longer."""
        on = not self._session.conversation.pinned
        self._session.pin(on=on)
        click.echo("(pinned)" if on else "(not pinned any more)")

    def do_export(self, name: str) -> None:
        """Write the conversation to a file."""
        from edgechat.cli.chat import export

        self._last("user")
        file = commands.export_path(name, self._session.conversation.title)
        export(self._session.store, self._session.conversation.id, file)
        click.echo(f"(written to {escape_controls(str(file))})")

    # Messages

    def do_retry(self, _argument: str) -> None:
        """Another answer."""
        self._answer(self._session.regenerate())

    def do_continue(self, _argument: str) -> None:
        """Go on with the answer."""
        self._answer(self._session.continue_reply())

    def do_edit(self, text: str) -> None:
        """Say the last message differently."""
        message = self._last("user")
        if not text:
            raise UsageError("say how: /edit TEXT")
        self._answer(self._session.edit(message.id, text))

    def do_switch(self, argument: str) -> None:
        """Go on with another alternative."""
        tree = self._session.tree
        message = next((m for m in reversed(tree.path) if len(tree.alternatives(m.id)) > 1), None)
        if message is None:
            raise UsageError("nothing here has alternatives; /retry and /edit make some")
        siblings = tree.alternatives(message.id)
        at = commands.alternative_index(argument, siblings.index(message.id) + 1, len(siblings))
        self._session.select_alternative(siblings[at])
        click.echo(f"(alternative {at + 1} of {len(siblings)})")
        self._show_tail()

    def do_delete(self, _argument: str) -> None:
        """Delete the last message and its answer."""
        self._session.delete(self._last("user").id)
        click.echo("(deleted; /undo brings it back)")

    def do_undo(self, _argument: str) -> None:
        """Bring back what was deleted last."""
        if not self._session.undo_delete():
            raise UsageError("nothing was deleted that could be brought back")
        self._show_tail()

    def do_copy(self, what: str) -> None:
        """To the terminal's clipboard."""
        from edgechat.tui import clipboard
        from edgechat.tui.render.markdown_blocks import code_blocks

        text = self._last("assistant").text
        if commands.code_wanted(what):
            found = code_blocks(text)
            if not found:
                raise UsageError("there is no code in the last answer")
            text = found[-1]
        if sys.stdout.isatty():
            click.echo(clipboard.osc52_sequence(text), nl=False)
        file = clipboard.save_copy(text) if self._session.store.is_persistent else None
        click.echo(f"(copied{f'; also in {file}' if file else ''})")

    # How it is answered

    def do_attach(self, name: str) -> None:
        """Send a file along with the next message."""
        from edgechat.chat.attachments import load_attachments

        file = commands.path_of(name)
        load_attachments([file], "the model")
        self._files.append(file)

    def do_model(self, name: str) -> None:
        """List the models here, or let another one answer."""
        from edgechat.catalogue import library
        from edgechat.catalogue.resolve import find_model

        if not name:
            for entry in library.scan():
                if entry.is_usable:
                    click.echo(escape_controls(entry.name))
            return
        self._session.change_model(name, find_model(name), lambda event: self._status.show(event.message))
        self._status.clear()
        click.echo(f"({escape_controls(self._session.model_path.stem)} answers from here on)")

    def do_persona(self, name: str) -> None:
        """List personas, or use one."""
        from edgechat.chat import personas

        if not name:
            click.echo("\n".join(personas.list_names()) or "(there are none)")
            return
        values = dict(personas.load_settings(name))
        model = str(values.pop("model", ""))
        self._session.override_settings(**values)
        if model:
            self.do_model(model)

    def do_system(self, text: str) -> None:
        """What the model is told first."""
        self._session.override_settings(system_prompt=text)

    def do_reasoning(self, word: str) -> None:
        """Think first, or not."""
        self._session.override_settings(reasoning=commands.parse_reasoning(word))

    def do_set(self, argument: str) -> None:
        """One of the settings of a conversation."""
        name, value = commands.parse_setting(argument)
        self._session.override_settings(**{name: value})

    # About it

    def do_settings(self, _argument: str) -> None:
        """All settings."""
        import msgspec

        for name, value in msgspec.structs.asdict(self._session.settings).items():
            click.echo(escape_controls(f"{name} = {'(not set)' if value is None else value}"))

    def do_plan(self, _argument: str) -> None:
        """Why this model, and what it takes."""
        from edgechat.planner.report import plan_lines

        if self._session.model.plan is not None:
            click.echo(escape_controls("\n".join(plan_lines(self._session.model.plan))))

    def do_figures(self, _argument: str) -> None:
        """Show how fast answers came, or not."""
        self._figures = not self._figures
        click.echo("(figures are shown)" if self._figures else "(figures are not shown)")

    def do_help(self, _argument: str) -> None:
        """The commands."""
        for command in commands.COMMANDS:
            click.echo(f"  {f'/{command.name} {command.argument}':<24} {command.summary}")
        click.echo("A line that ends with a backslash goes on in the next one.")

    def do_suspend(self, _argument: str) -> None:
        """Back to the shell for a while."""
        if sys.platform == "win32":
            raise UsageError("this system cannot put programs aside")
        os.kill(os.getpid(), signal.SIGTSTP)

    def do_quit(self, _argument: str) -> None:
        """Leave."""
        self._leaving = True


def _line(text: str) -> str:
    return escape_controls(" ".join(text.split()))
