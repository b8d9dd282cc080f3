"""Create chat applications with a real or a scripted model, operate them, and read their screen and store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

from textual.widgets import OptionList, Static

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.session import Session
from edgechat.chat.store import Store
from edgechat.cli.chat import export
from edgechat.config import Settings
from edgechat.store import open_ephemeral_store
from edgechat.tui.app import ChatApp
from edgechat.tui.render.entries import MessageEntry
from edgechat.tui.widgets.completion_popup import CompletionPopup
from tests.tui.drawing import until_async, wait_until_drawn

_open_apps: list[ChatApp] = []


def make_settings(**options: object) -> Settings:
    return Settings(**({"temperature": 0.0, "titles": False} | options))  # type: ignore[arg-type]


def make_app(model: Path, problems: Sequence[str] = (), store: Store | None = None, **options: object) -> ChatApp:
    """Create an application with a real model, a context of 2048 tokens and a store in memory."""
    settings = make_settings(**({"n_ctx": 2048} | options))
    store = store or open_ephemeral_store()
    return _registered(ChatApp(lambda: Session(store, settings, model), problems, settings, export))


def make_scripted_app(
    *answers: str,
    store: Store | None = None,
    conversation: Conversation | None = None,
    script: Script | None = None,
    problems: Sequence[str] = (),
    **options: object,
) -> ChatApp:
    """Create an application whose model gives these answers in turn."""
    settings = make_settings(**options)
    store, script = store or open_ephemeral_store(), script or Script(answers or ("An answer.",))
    return _registered(
        ChatApp(lambda: ScriptedSession(store, settings, script, conversation), problems, settings, export)
    )


def _registered(app: ChatApp) -> ChatApp:
    _open_apps.append(app)
    return app


def close_apps() -> None:
    """Close the session of every application that the test created."""
    while _open_apps:
        _open_apps.pop().worker.close()


async def wait_until_ready(app: ChatApp) -> None:
    """Wait until a model is loaded and no reply is generated."""
    await until_async(
        lambda: (
            not app.pane.is_busy and app.worker.session is not None and app.worker.session.model_properties is not None
        )
    )


async def wait_for_jobs(app: ChatApp) -> None:
    """Wait until the session worker has done all jobs that were requested so far, and their results are drawn."""
    worker = app.worker
    for _ in range(2):  # the end of a job can request another one
        await wait_until_drawn()
        barrier = threading.Barrier(2)
        jobs = [thread.submit(int) for thread in (worker._turn_thread, worker._side_thread, worker._unsent_thread)]
        jobs += [worker._idle_threads.submit(barrier.wait) for _ in range(2)]  # one for each of the two threads
        await asyncio.gather(*map(asyncio.wrap_future, jobs))
    await wait_until_drawn()


async def ask(app: ChatApp, text: str) -> None:
    """Send a message and wait for the complete reply."""
    session_ = session(app)
    n_before = len(session_.tree)
    app.pane.prompt.load(text)
    app.pane.prompt.action_send()
    await until_async(lambda: len(session_.tree) > n_before and not app.pane.is_busy)


def session(app: ChatApp) -> Session:
    assert app.worker.session is not None
    return app.worker.session


def status_text(app: ChatApp) -> str:
    return str(app.chat.query_one("#live", Static).content)


def title_text(app: ChatApp) -> str:
    """Return the text of the title line; "" while it is hidden."""
    line = app.pane.title_line
    return str(line.content) if line.display else ""


def footer_text(app: ChatApp) -> str:
    """Return the text of the footer, keys or a notice; "" while it is hidden."""
    footer = app.pane.footer
    return str(footer.content) if footer.display else ""


def shown_texts(app: ChatApp, kind: str) -> list[str]:
    """Return the texts of all transcript entries of one kind: user, assistant, note or error."""
    return [entry.text for entry in app.pane.transcript.entries if entry.kind == kind]


def problem_text(app: ChatApp) -> str:
    """Return the error in the footer, or else the last one in the transcript; "" if there is none."""
    footer = app.pane.footer
    return footer.notice if footer.notice and footer.severity == "error" else "".join(shown_texts(app, "error")[-1:])


def shown_messages(app: ChatApp) -> list[MessageEntry]:
    return [entry for entry in app.pane.transcript.entries if isinstance(entry, MessageEntry)]


def saved_texts(app: ChatApp) -> list[str]:
    """Read the conversation from the store and return the texts of its current path."""
    conversation = session(app).store.conversation(session(app).conversation.id)
    by_id = {message.id: message for message in session(app).store.messages(conversation.id)}
    path: list[str] = []
    message_id = conversation.head_id
    while message_id is not None:
        path.insert(0, by_id[message_id].text)
        message_id = by_id[message_id].parent_id
    return path


async def wait_for_completions(app: ChatApp) -> OptionList:
    """Wait until the completions of the text before the cursor are shown, and return their list."""
    prompt = app.pane.prompt
    await until_async(lambda: prompt.shows_completions and prompt._completion_text == prompt._text_before_cursor)
    return app.pane.query_one(CompletionPopup)


def screen_text(app: ChatApp) -> str:
    """Return every row of the screen as plain text."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


def is_open(app: ChatApp, screen: str) -> bool:
    """Return True if a screen of this class is in front and mounted."""
    return type(app.screen).__name__ == screen and app.screen.is_mounted


def option_list(app: ChatApp, selector: str = "OptionList") -> OptionList:
    return app.screen.query(selector).first(OptionList)


def option_texts(app: ChatApp, selector: str = "OptionList") -> list[str]:
    return [str(option.prompt) for option in option_list(app, selector).options]


def save_conversation(
    store: Store, turns: Sequence[tuple[str, str]], title: str = "Old", at_ms: int = 1
) -> Conversation:
    """Save a conversation of (question, answer) pairs, and return it as the store has it."""
    conversation = Conversation(id=new_id(), title=title, model="starter", created_at_ms=at_ms)
    path: list[Message] = []
    for question, answer in turns:
        parent_id = path[-1].id if path else None
        path.append(Message(id=new_id(), parent_id=parent_id, role="user", text=question, created_at_ms=at_ms))
        reply = Message(
            id=new_id(), parent_id=path[-1].id, role="assistant", text=answer, finish_reason="stop", created_at_ms=at_ms
        )
        path.append(reply)
    store.append(conversation, path)
    return store.conversation(conversation.id)
