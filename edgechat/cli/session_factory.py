"""Create a chat session from command-line flags and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgechat.errors import EdgechatError, ModelFileError, StoreError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.chat.messages import Conversation
    from edgechat.chat.reply_source import ModelTarget
    from edgechat.chat.session import Session
    from edgechat.cli.progress import StderrStatus
    from edgechat.config import Settings, SettingsProblem
    from edgechat.prompt.renderer import Renderer
    from edgechat.store.sqlite import SqliteStore


def prepare_session(
    *,
    continue_last: bool | None = None,
    conversation_id: str | None = None,
    ephemeral: bool | None = None,
    persona: str | None = None,
    allow_missing_model: bool = False,
    renderer: Renderer | None = None,
    **flags: object,
) -> tuple[Callable[[], Session], list[SettingsProblem]]:
    """Check flags and settings; return a function that creates the session, and the problems in the settings.

    The returned function reads the conversation to continue, so the terminal UI calls it only after the first frame.
    The function does not open the session. It raises StoreError, and ModelFileError for a missing model; with
    `allow_missing_model`, it stores this error in the session instead, so that conversations can be read without a
    model. The session closes `renderer`, a render process that has already been started.

    Raises UsageError for an invalid flag, and EdgechatError for an unknown model.
    """  # fmt: skip
    import msgspec

    from edgechat import config

    overrides = settings_from_flags(**flags)
    if conversation_id == "":
        raise UsageError("Invalid value for --conversation: the ID is empty.")
    if continue_last and conversation_id:
        raise UsageError("--continue and --conversation cannot be used together.")
    settings, problems = config.load()
    if persona is not None:
        from edgechat.chat import personas

        overrides = personas.load_settings(persona) | overrides
    _check_collections(overrides.get("docs"))
    opens_existing_conversation = bool(continue_last or conversation_id)
    if not opens_existing_conversation and ("model" in overrides or not allow_missing_model):
        _check_model_name(str(overrides.get("model", settings.model)), settings)

    def make_session() -> Session:
        from pathlib import Path

        from edgechat.catalogue import registry
        from edgechat.chat.session import Session

        store, conversation = open_conversation(
            conversation_id, continue_last=opens_existing_conversation, ephemeral=bool(ephemeral)
        )
        if conversation is None:
            conversation = _make_conversation(overrides)
        # The conversation's own settings apply unless a flag overrides them.
        conversation_settings = dict(conversation.settings)
        if conversation.model:
            conversation_settings["model"] = conversation.model
        session_settings = config.with_overrides(settings, conversation_settings, overrides)
        name, target, model_error = _try_to_choose_model(session_settings)
        if model_error is not None and not allow_missing_model:
            raise model_error
        conversation = msgspec.structs.replace(conversation, model=name)
        if not ephemeral and model_error is None and isinstance(target, Path):
            registry.record_use(target)
        session = Session(store, settings, target, conversation, overrides, renderer)
        session.model_error = model_error
        session.warnings.extend(store.take_notices())
        return session

    return make_session, problems


def create_session(**options: Any) -> Session:
    """Create the session of a command without the terminal UI, and print the problems in the settings.

    The options and exceptions are those of `prepare_session` and of the function that it returns.
    """
    from edgechat.prompt import early_process
    from edgechat.prompt.renderer import Renderer

    renderer = Renderer(early_process.take())
    renderer.start()  # its process takes as long to start as this process takes for its other imports
    try:
        make_session, problems = prepare_session(renderer=renderer, **options)
        report_problems(problems)
        return make_session()
    except BaseException:
        renderer.close()
        raise


def load_settings() -> Settings:
    """Load the settings for a command without the terminal UI, and print the problems in the settings."""
    from edgechat import config

    settings, problems = config.load()
    report_problems(problems)
    return settings


def report_problems(problems: Sequence[SettingsProblem]) -> None:
    """Print the invalid settings, which are ignored, on standard error."""
    from edgechat.cli.progress import StderrStatus

    for problem in problems:
        StderrStatus().note(f"{problem} (ignored)")


def open_session(session: Session, status: StderrStatus) -> None:
    """Open a session and print its warnings; `status` shows the progress. Raises the exceptions of `Session.open`."""
    session.open(lambda event: status.show(event.message))
    for warning in session.warnings:
        status.note(warning)


def settings_from_flags(**flags: object) -> dict[str, object]:
    """Return the values of the given flags, with setting names as keys. Raises UsageError for an invalid value."""
    from edgechat import config

    overrides = {name: value for name, value in flags.items() if value is not None}
    for name, value in overrides.items():
        problem = config.check(name, value)
        if problem:
            raise UsageError(f"Invalid value for {_format_flag_name(name)}: {problem}.")
    return overrides


def _check_model_name(name: str, settings: Settings) -> None:
    """Raise ModelFileError for an unknown model, so that it is reported before the first frame."""
    import msgspec

    from edgechat import config
    from edgechat.chat.model_targets import find_model_target

    if name != config.AUTO:
        find_model_target(msgspec.structs.replace(settings, model=name))


def _check_collections(names: object) -> None:
    """Raise DocumentError for a collection that does not exist, so that it is reported before the model is loaded."""
    if not isinstance(names, (list, tuple)) or not names:
        return
    from edgechat import paths
    from edgechat.chat.document_search import check_names
    from edgechat.documents.library import DocumentLibrary

    check_names(DocumentLibrary(paths.documents_dir()), names)


def _make_conversation(overrides: Mapping[str, object]) -> Conversation:
    """Create a conversation that saves the flags that a persona can also set, except for the model."""
    from edgechat.chat import personas
    from edgechat.chat.messages import Conversation, new_id, now_ms

    settings = {n: value for n, value in overrides.items() if n in personas.PERSONA_SETTINGS and n != "model"}
    return Conversation(id=new_id(), created_at_ms=now_ms(), settings=settings)


def _try_to_choose_model(settings: Settings) -> tuple[str, ModelTarget, EdgechatError | None]:
    """Return name and target of the chosen model, and None; after an error, the name as a path, and the error."""
    from pathlib import Path

    try:
        return (*choose_target(settings), None)
    except EdgechatError as error:
        return settings.model, Path(settings.model), error


def choose_target(settings: Settings) -> tuple[str, ModelTarget]:
    """Return name and target of the model in `settings`, or of the best installed model. Raises EdgechatError."""
    from edgechat import config
    from edgechat.chat.model_targets import find_model_target

    if settings.model == config.AUTO:
        return choose_model(settings)
    return settings.model, find_model_target(settings)


def choose_model(settings: Settings) -> tuple[str, Path]:
    """Return name and path of the local model in `settings`, or of the best installed one. Raises EdgechatError."""
    from edgechat import config
    from edgechat.catalogue.resolve import find_model
    from edgechat.remote_settings import ROUTE

    if settings.model == config.AUTO:
        from edgechat.models.selection import choose_installed_model

        return choose_installed_model(settings)
    try:
        return settings.model, find_model(settings.model)
    except ModelFileError:
        is_route = settings.model == ROUTE
        if not is_route and settings.model.partition("/")[0] not in settings.remotes:
            raise
        kind = "a route between two models" if is_route else "a remote model"
        raise UsageError(
            f"{settings.model} is {kind}, but this command needs a model on this machine. Choose one with -m NAME."
        ) from None


def open_conversation(
    conversation_id: str | None, *, continue_last: bool, ephemeral: bool
) -> tuple[SqliteStore, Conversation | None]:
    """Open the store; return it, and the conversation to continue (None for a new conversation)."""
    from edgechat.cli.history_store import open_history
    from edgechat.store import open_ephemeral_store
    from edgechat.store.formats.edgechat_json import copy_conversation

    if ephemeral and not continue_last:
        return open_ephemeral_store(), None
    store = open_history()
    conversation: Conversation | None = None
    if continue_last and not store.is_readable:
        raise StoreError(store.read_only_reason)
    if continue_last:
        saved_id = store.resolve_id(conversation_id) if conversation_id else store.latest_id()
        if saved_id is None:
            raise UsageError("There is no conversation to continue yet. Run the command without --continue.")
        conversation = store.conversation(saved_id)
    if store.read_only_reason or ephemeral:  # continue a copy of the conversation in memory
        memory_store = open_ephemeral_store()
        memory_store.notices.extend(store.take_notices())
        if store.read_only_reason and not ephemeral:
            memory_store.notices.append(f"This conversation is not saved: {store.read_only_reason}")
        if conversation is not None:
            copy_conversation(store, memory_store, conversation.id)
            conversation = memory_store.conversation(conversation.id)
            memory_store.notices.extend(store.take_notices())
        store.close()
        store = memory_store
    return store, conversation


def _format_flag_name(setting: str) -> str:
    flags = {"n_ctx": "--ctx", "n_threads": "--threads", "system_prompt": "--system"}
    return flags.get(setting) or "--" + setting.replace("_", "-")
