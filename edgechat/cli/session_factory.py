"""Create a session from command-line flags and settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgechat.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.chat.messages import Conversation
    from edgechat.chat.session import Session
    from edgechat.config import Settings, SettingsProblem
    from edgechat.store.sqlite import SqliteStore


def session_maker(
    *,
    continue_last: bool | None = None,
    conversation_id: str | None = None,
    ephemeral: bool | None = None,
    persona: str | None = None,
    **flags: object,
) -> tuple[Callable[[], Session], list[SettingsProblem]]:
    """Return a function that creates the session (not opened yet), and the problems found in the settings.

    Flags and settings are checked at once. Conversations are read only when the function is called, so that a screen
    can be painted before; the function raises StoreError and ModelFileError.

    Raises UsageError for an invalid flag, and EdgechatError for an unknown model.
    """  # fmt: skip
    import msgspec

    from edgechat import config

    overrides = flag_settings(**flags)
    if conversation_id == "":
        raise UsageError("Invalid value for --conversation: the ID is empty.")
    if continue_last and conversation_id:
        raise UsageError("--continue and --conversation exclude each other.")
    settings, problems = config.load()
    if persona is not None:
        from edgechat.chat import personas

        overrides = personas.load_settings(persona) | overrides
    continues = bool(continue_last or conversation_id)
    if not continues and str(overrides.get("model", settings.model)) != config.AUTO:
        from edgechat.catalogue.resolve import find_model

        find_model(str(overrides.get("model", settings.model)))  # reports an unknown name before the first frame

    def make() -> Session:
        from edgechat.chat import personas
        from edgechat.chat.messages import Conversation, new_id, now_ms
        from edgechat.chat.session import Session

        store, conversation = _conversation(conversation_id, continue_last=continues, ephemeral=bool(ephemeral))
        if conversation is None:
            saved = {
                name: value
                for name, value in overrides.items()
                if name in personas.PERSONA_SETTINGS and name != "model"
            }
            conversation = Conversation(id=new_id(), created_at_ms=now_ms(), settings=saved)
        # The conversation's own settings apply unless a flag overrides them.
        of_conversation = {**conversation.settings, **({"model": conversation.model} if conversation.model else {})}
        name, path = chosen_model(config.with_overrides(settings, of_conversation, overrides))
        conversation = msgspec.structs.replace(conversation, model=name)
        session = Session(store, settings, _used(path, is_noted=not ephemeral), conversation, overrides)
        session.warnings.extend(store.notices)
        return session

    return make, problems


def flag_settings(**flags: object) -> dict[str, object]:
    """Return the flags that were given, by the names of their settings. Raises UsageError for an invalid value."""
    from edgechat import config

    overrides = {name: value for name, value in flags.items() if value is not None}
    for name, value in overrides.items():
        wrong = config.check(name, value)
        if wrong:
            raise UsageError(f"Invalid value for {_flag(name)}: {wrong}")
    return overrides


def chosen_model(settings: Settings) -> tuple[str, Path]:
    """Return name and file of the requested model, or of the best installed one. Raises EdgechatError."""
    from edgechat import config
    from edgechat.catalogue.resolve import find_model

    if settings.model == config.AUTO:
        from edgechat.models.selection import choose_installed

        return choose_installed(settings)
    return settings.model, find_model(settings.model)


def _used(path: Path, *, is_noted: bool) -> Path:
    from edgechat.catalogue import registry

    if is_noted:
        registry.record_use(path)
    return path


def _conversation(
    conversation_id: str | None, *, continue_last: bool, ephemeral: bool
) -> tuple[SqliteStore, Conversation | None]:
    """Return the store, and the conversation to continue, or None for a new one."""
    from edgechat.cli.history_store import open_history
    from edgechat.store import ephemeral_store
    from edgechat.store.formats.edgechat_json import copy_conversation

    if ephemeral and not continue_last:
        return ephemeral_store(), None
    store = open_history()
    conversation: Conversation | None = None
    if continue_last:
        saved_id = store.resolve_id(conversation_id) if conversation_id else store.latest_id()
        if saved_id is None:
            raise UsageError("There is no conversation to continue yet.")
        conversation = store.conversation(saved_id)
    if store.read_only_reason or ephemeral:  # continue a copy in memory, which is not saved
        copy = ephemeral_store()
        if store.read_only_reason and not ephemeral:
            copy.notices.append(f"This conversation is not saved: {store.read_only_reason}")
        if conversation is not None:
            copy_conversation(store, copy, conversation.id)
            conversation = copy.conversation(conversation.id)
        store.close()
        store = copy
    return store, conversation


def _flag(name: str) -> str:
    flags = {"n_ctx": "--ctx", "n_threads": "--threads", "system_prompt": "--system"}
    return flags.get(name) or "--" + name.replace("_", "-")
