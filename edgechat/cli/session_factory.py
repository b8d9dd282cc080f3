"""From flags and settings to a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgechat.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.chat.messages import Conversation
    from edgechat.chat.session import Session
    from edgechat.config import Problem, Settings
    from edgechat.store.sqlite import SqliteStore


def session_maker(
    *,
    go_on: bool | None = None,
    conversation_id: str | None = None,
    ephemeral: bool | None = None,
    persona: str | None = None,
    **flags: object,
) -> tuple[Callable[[], Session], list[Problem]]:
    """What makes the session (not opened yet), and what is wrong with the settings.

    Checks flags and settings first; what a session stands on, the conversations among it, is only read when it is
    made, so that a screen can be painted before. Then it may raise StoreError and ModelFileError.

    Raises UsageError for a flag that cannot be used, and EdgechatError if there is no such model.
    """  # fmt: skip
    import msgspec

    from edgechat import config

    given = given_flags(**flags)
    if conversation_id == "":
        raise UsageError("invalid value for --conversation: an ID is missing")
    if go_on and conversation_id:
        raise UsageError("--continue and --conversation name two conversations")
    settings, problems = config.load()
    if persona is not None:
        from edgechat.chat import personas

        given = personas.usable(persona) | given
    continues = bool(go_on or conversation_id)
    if not continues and str(given.get("model", settings.model)) != config.AUTO:
        from edgechat.catalogue.resolve import find_model

        find_model(str(given.get("model", settings.model)))  # a wrong name is said before anything is painted

    def make() -> Session:
        from edgechat.chat import personas
        from edgechat.chat.messages import Conversation, new_id, now_ms
        from edgechat.chat.session import Session

        store, conversation = _conversation(conversation_id, go_on=continues, ephemeral=bool(ephemeral))
        if conversation is None:
            kept = {name: value for name, value in given.items() if name in personas.FIELDS and name != "model"}
            conversation = Conversation(id=new_id(), created_at_ms=now_ms(), settings=kept)
        # What was chosen for the conversation holds on, under what is chosen now.
        of_conversation = {**conversation.settings, **({"model": conversation.model} if conversation.model else {})}
        name, path = chosen_model(config.merged(settings, of_conversation, given))
        conversation = msgspec.structs.replace(conversation, model=name)
        session = Session(store, settings, _used(path, is_noted=not ephemeral), conversation, given)
        session.warnings.extend(store.notes)
        return session

    return make, problems


def given_flags(**flags: object) -> dict[str, object]:
    """Those that were given, by the names of the settings that they are. Raises UsageError for one that cannot be used."""
    from edgechat import config

    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in given.items():
        wrong = config.check(name, value)
        if wrong:
            raise UsageError(f"invalid value for {_flag(name)}: {wrong}")
    return given


def chosen_model(settings: Settings) -> tuple[str, Path]:
    """Name and file of the model that was asked for, or is the best here. Raises EdgechatError."""
    from edgechat import config
    from edgechat.catalogue.resolve import find_model

    if settings.model == config.AUTO:
        from edgechat.models.selection import choose_local

        return choose_local(settings)
    return settings.model, find_model(settings.model)


def _used(path: Path, *, is_noted: bool) -> Path:
    from edgechat.catalogue import registry

    if is_noted:
        registry.used(path)
    return path


def _conversation(
    conversation_id: str | None, *, go_on: bool, ephemeral: bool
) -> tuple[SqliteStore, Conversation | None]:
    """Where the conversation is kept, and what it is if it goes on."""
    from edgechat.store import ephemeral_store, open_store
    from edgechat.store.formats.edgechat_json import copy_conversation

    if ephemeral and not go_on:
        return ephemeral_store(), None
    store = open_store()
    conversation: Conversation | None = None
    if go_on:
        found = store.resolve(conversation_id) if conversation_id else store.latest()
        if found is None:
            raise UsageError("there is no conversation to go on with yet")
        conversation = store.conversation(found)
    if store.problem or ephemeral:  # a copy in memory, so that it can go on all the same
        copy = ephemeral_store()
        if store.problem and not ephemeral:
            copy.notes.append(f"this conversation is not kept: {store.problem}")
        if conversation is not None:
            copy_conversation(store, copy, conversation.id)
            conversation = copy.conversation(conversation.id)
        store.close()
        store = copy
    return store, conversation


def _flag(name: str) -> str:
    named = {"n_ctx": "--ctx", "n_threads": "--threads", "system_prompt": "--system"}
    return named.get(name) or "--" + name.replace("_", "-")
