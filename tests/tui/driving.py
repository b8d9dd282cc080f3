"""Driving the program like a person would: apps over real stores, with a real model or a scripted one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from textual.widgets import Static

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.session import Session
from edgechat.chat.store import Store
from edgechat.cli.chat import export
from edgechat.config import Settings
from edgechat.store import ephemeral_store
from edgechat.tui.app import ChatApp
from edgechat.tui.render.entries import MessageEntry
from tests.waiting import until_async


def settings_of(**options: object) -> Settings:
    return Settings(**({"temperature": 0.0, "titles": False} | options))  # type: ignore[arg-type]


def an_app(model: Path, problems: Sequence[str] = (), store: Store | None = None, **options: object) -> ChatApp:
    """An app on a real model."""
    settings = settings_of(**({"n_ctx": 2048} | options))
    kept = store or ephemeral_store()
    return _noted(ChatApp(lambda: Session(kept, settings, model), problems, settings, export))


def scripted(
    *answers: str,
    store: Store | None = None,
    conversation: Conversation | None = None,
    script: Script | None = None,
    problems: Sequence[str] = (),
    **options: object,
) -> ChatApp:
    """An app on a script."""
    settings = settings_of(**options)
    kept, played = store or ephemeral_store(), script or Script(answers or ("An answer.",))
    return _noted(ChatApp(lambda: ScriptedSession(kept, settings, played, conversation), problems, settings, export))


_made: list[ChatApp] = []


def _noted(app: ChatApp) -> ChatApp:
    _made.append(app)
    return app


def close_all() -> None:
    """End what a test left running, whatever became of it."""
    while _made:
        _made.pop().worker.close()


async def ready(app: ChatApp) -> None:
    """Wait until nothing is loaded or answered any more."""
    await until_async(
        lambda: not app.chat.is_busy and app.worker.session is not None and app.worker.session.loaded is not None
    )


async def ask(app: ChatApp, text: str) -> None:
    """Say something, and wait for the answer."""
    session_ = session(app)
    before = len(session_.tree)
    app.chat.prompt.load(text)
    app.chat.prompt.action_send()
    await until_async(lambda: len(session_.tree) > before and not app.chat.is_busy)


def session(app: ChatApp) -> Session:
    assert app.worker.session is not None
    return app.worker.session


def live(app: ChatApp) -> str:
    return str(app.chat.query_one("#live", Static).content)


def texts(app: ChatApp, kind: str) -> list[str]:
    """What is shown of one kind: user, assistant, note or error."""
    return [entry.text for entry in app.chat.transcript.entries if entry.kind == kind]


def messages(app: ChatApp) -> list[MessageEntry]:
    return [entry for entry in app.chat.transcript.entries if isinstance(entry, MessageEntry)]


def said(app: ChatApp) -> list[str]:
    """The conversation as it is kept, read anew from the store."""
    about = session(app).store.conversation(session(app).conversation.id)
    kept = {m.id: m for m in session(app).store.messages(about.id)}
    path: list[str] = []
    at = about.head_id
    while at is not None:
        path.insert(0, kept[at].text)
        at = kept[at].parent_id
    return path


def screen_text(app: ChatApp) -> str:
    """Every row of the screen, as letters."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


def keep_conversation(
    store: Store, turns: Sequence[tuple[str, str]], title: str = "Old", at_ms: int = 1
) -> Conversation:
    """Put a conversation into a store."""
    about = Conversation(id=new_id(), title=title, model="starter", created_at_ms=at_ms)
    path: list[Message] = []
    for question, answer in turns:
        parent = path[-1].id if path else None
        path.append(Message(id=new_id(), parent_id=parent, role="user", text=question, created_at_ms=at_ms))
        path.append(
            Message(id=new_id(), parent_id=path[-1].id, role="assistant", text=answer, finish_reason="stop", created_at_ms=at_ms)
        )  # fmt: skip
    store.append(about, path)
    return store.conversation(about.id)
