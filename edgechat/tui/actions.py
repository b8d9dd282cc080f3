"""What can be done, by a slash command, a key, or the palette."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from edgechat.chat import commands
from edgechat.errors import EdgechatError, UsageError
from edgechat.tui.confirm import Confirmation
from edgechat.tui.render.markdown_blocks import code_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgechat.chat.messages import Conversation
    from edgechat.chat.session import Session
    from edgechat.tui.app import ChatApp
    from edgechat.tui.render.entries import MessageEntry
    from edgechat.tui.screens.chat import ChatScreen

T = TypeVar("T")


class Actions:
    """One method for each command, and those for keys. Whatever takes time is left to the talker."""

    def __init__(self, app: ChatApp) -> None:
        self._app = app
        self._twice = Confirmation()

    @property
    def _chat(self) -> ChatScreen:
        return self._app.chat

    def run(self, name: str, argument: str) -> None:
        """Do what a command says; what is wrong with it is said."""
        self.attempt(getattr(self, f"do_{name}"), argument)

    def attempt(self, do: Callable[[T], object], argument: T) -> None:
        """Do something; what is wrong with it is said."""
        try:
            do(argument)
        except EdgechatError as problem:
            self._chat.add_error(str(problem))

    def _change(self, job: Callable[[Session], object], said: str = "") -> None:
        """Have the conversation changed, between turns, and show it then."""

        def run(session: Session) -> None:
            job(session)
            self._app.worker.show(session)
            if said:
                self._app.call_later(self._app.notify, said)

        self._refuse_while_answering()
        self._app.worker.do(run)

    def _refuse_while_answering(self) -> None:
        if self._chat.is_generating:
            raise UsageError("an answer is coming: Esc stops it first")

    # Conversations

    def do_new(self, persona: str) -> None:
        """Begin a new one; with a persona, if one is named."""
        values = _persona(persona) if persona else {}
        model = str(values.pop("model", ""))
        self._leave_conversation()

        def run(session: Session) -> None:
            session.switch_conversation()
            if values:
                session.override_settings(**values)
            self._app.worker.show(session)

        self._app.worker.do(run)
        if model:
            self._app.use_model(model)
        self._chat.prompt.focus()

    def go_to(self, conversation_id: str, message_id: str | None = None) -> None:
        """Go to another conversation, and to a message of it."""
        if self._chat.view is None or self._chat.view.conversation.id != conversation_id:
            self._leave_conversation()
        elif message_id is None:
            return

        def run(session: Session) -> None:
            if session.conversation.id != conversation_id:
                session.switch_conversation(session.store.conversation(conversation_id))
            if message_id is not None and message_id in session.tree:
                if all(m.id != message_id for m in session.tree.path):
                    session.select_alternative(message_id)
                self._app.worker.show(session, message_id)
            else:
                self._app.worker.show(session)

        self._app.worker.do(run)

    def _leave_conversation(self) -> None:
        """An answer that is coming stays as it is, what waits is not sent, and what is typed stays here."""
        self._chat.composer.put_aside()
        self._chat.composer.put_text_aside()
        if self._chat.is_generating:
            self._app.worker.stop()

    def do_open(self, words: str) -> None:
        """Show the list, or go to the newest conversation with these words in its title."""
        if not words:
            self._app.toggle_sidebar()
            return

        def look(session: Session) -> None:
            try:
                found = commands.find_by_title(session.store, words)
            except EdgechatError as problem:
                self._app.call_later(self._chat.add_error, str(problem))
            else:
                self._app.call_later(self.go_to, found)

        self._app.worker.aside(look)

    def toggle_pin(self, conversation: Conversation) -> None:
        """Pin or unpin any conversation of the list."""

        def job(session: Session) -> None:
            if session.conversation.id == conversation.id:
                session.pin(on=not conversation.pinned)
            else:
                session.store.update_conversation(conversation.id, pinned=not conversation.pinned)
            self._app.call_later(self._chat.refresh_list)

        self._app.worker.do(job)

    def delete_conversation(self, conversation: Conversation) -> None:
        """Delete any conversation of the list; start a new one if it is on the screen."""

        def job(session: Session) -> None:
            session.store.delete_conversation(conversation.id)
            self._app.call_later(self._chat.refresh_list)

        if self._chat.conversation_id == conversation.id:
            self.run("new", "")
        self._app.worker.do(job)

    def search(self, words: str) -> None:
        """Look for words everywhere."""
        from edgechat.tui.screens.search import SearchScreen

        def go(found: tuple[str, str | None] | None) -> None:
            if found is not None:
                self.go_to(*found)

        self._app.push_screen(SearchScreen(words), go)

    do_search = search

    def do_rename(self, title: str) -> None:
        """Another title."""
        self._change(lambda session: session.rename(title))

    def do_pin(self, _argument: str) -> None:
        """First in the list, or no longer."""
        view = self._chat.view
        if view is not None and view.path:
            on = not view.conversation.pinned
            self._change(lambda session: session.pin(on=on), "pinned" if on else "not pinned any more")

    def do_export(self, name: str) -> None:
        """Write the conversation to a file."""
        view = self._chat.view
        if view is None or not view.path:
            raise UsageError("nothing was said in this conversation yet")

        def run(session: Session) -> None:
            file = commands.export_path(name, session.conversation.title)
            self._app.export(session.store, session.conversation.id, file)
            self._app.worker.note(f"written to {file}")

        self._app.worker.do(run)

    # Messages

    def step(self, step: int) -> None:
        """Another alternative: of the message with the cursor, or of the last that has any."""
        transcript = self._chat.transcript
        current = transcript.current_message
        entries = [current] if transcript.cursor is not None and current is not None else self._chat.messages[::-1]
        entry = next((e for e in entries if e.alternative[1] > 1), None)
        if entry is not None:
            number, count = entry.alternative
            self._switch(entry, (number - 1 + step) % count)

    def _switch(self, entry: MessageEntry, at: int) -> None:
        message_id = entry.message.id
        stays = self._chat.transcript.has_focus

        def run(session: Session) -> None:
            other_id = session.tree.alternatives(message_id)[at]
            session.select_alternative(other_id)
            self._app.worker.show(session, other_id if stays else None)

        self._refuse_while_answering()
        self._app.worker.do(run)

    def do_switch(self, argument: str) -> None:
        """Another alternative of the last message that has any: the next one, or number N."""
        entry = next((e for e in reversed(self._chat.messages) if e.alternative[1] > 1), None)
        if entry is None:
            raise UsageError("nothing here has alternatives; /retry and /edit make some")
        self._switch(entry, commands.alternative_index(argument, *entry.alternative))

    def retry_message(self, entry: MessageEntry | None) -> None:
        """Another answer beside this one, or to this message."""
        if entry is not None and self._is_free():
            message_id = entry.message.id
            self._chat.begin_answer()
            self._app.worker.answer(lambda session: session.regenerate(message_id))

    def do_retry(self, _argument: str) -> None:
        """Another answer beside the last."""
        self.retry_message(self._chat.last_message)

    def continue_message(self, entry: MessageEntry | None) -> None:
        """Go on with an answer."""
        if entry is not None and self._is_free():
            message_id = entry.message.id
            self._chat.begin_answer()
            self._app.worker.answer(lambda session: session.continue_reply(message_id))

    def do_continue(self, _argument: str) -> None:
        """Go on with the last answer."""
        self.continue_message(self._chat.last_message)

    def edit_message(self, entry: MessageEntry | None) -> None:
        """Put what was said into the input, to be said differently; of an answer, what it answers."""
        if entry is not None and entry.kind == "assistant":
            messages = self._chat.messages
            before = messages[: messages.index(entry)]
            entry = next((e for e in reversed(before) if e.kind == "user"), None)
        if entry is not None and self._is_free():
            self._chat.composer.edit(entry)
            self._chat.status_line.redraw()

    def do_edit(self, text: str) -> None:
        """Say the last message differently: in the input, or as given."""
        self.edit_message(self._chat.last_message)
        if text and self._chat.composer.editing is not None:
            self._chat.prompt.load("")
            self._chat.ask(text)

    def delete_message(self, entry: MessageEntry | None) -> None:
        """Delete a message and all after it, when asked twice."""
        if entry is None:
            return
        message_id = entry.message.id
        if not self._twice.confirm(message_id):
            self._app.notify("The same key again deletes this message and all after it")
        else:
            self._change(lambda session: session.delete(message_id), "deleted; /undo brings it back")

    def do_delete(self, _argument: str) -> None:
        """Delete the last message and its answer."""
        view = self._chat.view
        last = next((m for m, _ in reversed(view.path) if m.role == "user"), None) if view is not None else None
        if last is not None:
            self._change(lambda session: session.delete(last.id), "deleted; /undo brings it back")

    def do_undo(self, _argument: str) -> None:
        """Bring back what was deleted last."""

        def job(session: Session) -> None:
            if not session.undo_delete():
                raise UsageError("nothing was deleted that could be brought back")

        self._change(job)

    def branch(self, entry: MessageEntry | None) -> None:
        """Go on from this answer: what came after it stays beside."""
        if entry is not None and entry.kind == "user":
            raise UsageError("branch after an answer; `e` says this message differently")
        if entry is not None:
            message_id = entry.message.id
            self._change(lambda session: session.branch_from(message_id), "the next message follows this one")
            self._chat.prompt.focus()

    def _is_free(self) -> bool:
        """True if something can be asked now; else it is said why not."""
        if self._chat.is_busy:
            raise UsageError(
                "wait for the answer, or stop it with Esc" if self._chat.is_generating else "the model loads"
            )
        return True

    # Copying

    def copy_message(self, entry: MessageEntry | None) -> None:
        """To the clipboard."""
        if entry is not None:
            self._app.copy(entry.text, "the message")

    def copy_code(self, entry: MessageEntry | None) -> None:
        """The last block of code."""
        found = code_blocks(entry.text) if entry is not None else []
        if not found:
            raise UsageError("there is no code in this message")
        self._app.copy(found[-1], "the code")

    def do_copy(self, what: str) -> None:
        """The last answer, or its code."""
        entry = next((e for e in reversed(self._chat.messages) if e.kind == "assistant"), None)
        self.copy_code(entry) if commands.code_wanted(what) else self.copy_message(entry)

    # How it is answered

    def do_attach(self, name: str) -> None:
        """Send a file along with the next message."""
        from edgechat.chat.attachments import load_attachments

        file = commands.path_of(name)
        load_attachments([file], "the model")
        self._chat.composer.attached.append(file)
        self._chat.status_line.redraw()

    def do_model(self, name: str) -> None:
        """Another model, by its name or from a list."""
        if name:
            self._app.use_model(name)
        else:
            from edgechat.tui.screens.models import ModelsScreen

            self._app.push_screen(ModelsScreen())

    def do_persona(self, name: str) -> None:
        """A persona for this conversation."""
        from edgechat.chat import personas
        from edgechat.paths import personas_dir

        if not name:
            found = personas.list_names()
            if not found:
                raise UsageError(f"there are no personas yet; make one: {personas_dir() / 'NAME.toml'}")
            self._app.pick("Personas", [(n, n) for n in found], lambda chosen: self.run("persona", chosen))
            return
        values = _persona(name)
        model = str(values.pop("model", ""))
        self._change(lambda session: session.override_settings(**values), f"answers as {name} from here on")
        if model:
            self._app.use_model(model)

    def do_system(self, text: str) -> None:
        """What the model is told first."""
        self._change(lambda session: session.override_settings(system_prompt=text), "the model is told so from here on")

    def do_reasoning(self, word: str) -> None:
        """Think first, or not."""
        wanted = commands.parse_reasoning(word)
        self._change(
            lambda session: session.override_settings(reasoning=wanted), f"reasoning is {word.lower()} from here on"
        )

    def do_set(self, argument: str) -> None:
        """One of the settings of a conversation."""
        name, value = commands.parse_setting(argument)
        self._change(lambda session: session.override_settings(**{name: value}), f"{name} is {value} from here on")

    # Screens

    def do_settings(self, _argument: str) -> None:
        """All settings."""
        from edgechat.tui.screens.settings import SettingsScreen

        self._app.push_screen(SettingsScreen())

    def do_plan(self, _argument: str) -> None:
        """Why this model."""
        from edgechat.tui.screens.plan import PlanScreen

        self._app.push_screen(PlanScreen())

    def do_figures(self, _argument: str) -> None:
        """Show or hide how fast answers came."""
        self._app.shows_figures = not self._app.shows_figures
        self._app.worker.do(self._app.worker.show)

    def do_help(self, _argument: str) -> None:
        """Keys and commands."""
        from edgechat.tui.screens.help import HelpScreen

        self._app.push_screen(HelpScreen())

    def do_suspend(self, _argument: str) -> None:
        """Back to the shell for a while."""
        self._app.action_suspend_process()

    def do_quit(self, _argument: str) -> None:
        """Leave."""
        self._app.run_worker(self._app.action_quit())


def _persona(name: str) -> dict[str, object]:
    """What a persona chooses. Raises SettingsError."""
    from edgechat.chat import personas

    return dict(personas.load_settings(name))
