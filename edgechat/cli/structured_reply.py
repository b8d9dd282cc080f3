"""One reply as JSON, for commands that use its fields. The conversation is not saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from edgechat.cli.interruption import use_session
from edgechat.cli.output_schema import make_schema_rule
from edgechat.cli.progress import StderrStatus
from edgechat.cli.session_factory import create_session
from edgechat.errors import ContextOverflowError, EngineError

if TYPE_CHECKING:
    from edgechat.chat.messages import Message
    from edgechat.chat.reply_source import JsonSchema
    from edgechat.chat.session import Session


def generate_fields(
    texts: Iterable[str], *, schema: dict[str, Any], system_prompt: str, status: StderrStatus, status_text: str,
    **options: Any,
) -> dict[str, str]:  # fmt: skip
    """Send the first of `texts` that fits in the context, and return the fields of the reply.

    `schema` describes an object of strings. The next text is built only if the context is too short for the last one.
    `options` are the options of the command line for the model and the generation. Reasoning is off, unless they turn
    it on. `status` shows the progress, and `status_text` while the reply is generated. Raises EdgechatError,
    KeyboardInterrupt after Ctrl-C, and SystemExit after another signal.
    """
    output_rule = make_schema_rule(schema, "reply")
    if options.get("reasoning") is None and options.get("thinking") is None:
        options["reasoning"] = False
    session = create_session(**options, system_prompt=system_prompt, docs=(), ephemeral=True)
    with use_session(session, status) as interruption, interruption.stop_reply(), status.announce_wait():
        status.show(status_text)
        reply = _send_first(session, texts, (schema, output_rule), lambda text: status.show(text or status_text))
    if reply is None or reply.finish_reason == "length":
        raise ContextOverflowError("The model's reply was cut before its end. Ask for less, or use another model.")
    return parse_fields(reply.text, schema)


def _send_first(
    session: Session, texts: Iterable[str], output: tuple[JsonSchema, str], on_progress: Callable[[str], object]
) -> Message | None:
    """Send the first of `texts` that fits in the context; return the reply, or None if there was none.

    `output` has the JSON schema of the reply and its grammar rule. `on_progress` receives the progress as text; ""
    while the reply is generated.
    """
    from edgechat.chat.events import format_progress

    reply: Message | None = None
    overflow: ContextOverflowError | None = None
    for text in texts:
        try:
            for event in session.send(text, output_rule=output[1], output_schema=output[0]):
                on_progress(format_progress(event))
                reply = getattr(event, "reply", reply)  # the last event has the complete reply
        except ContextOverflowError as error:  # noqa: PERF203  (at most three texts)
            overflow = error
        else:
            return reply
    if overflow is not None:
        raise overflow
    return None


def fill_defaults(options: dict[str, Any], **defaults: object) -> dict[str, Any]:
    """Return `options` with `defaults` in place of the options that were not given."""
    return options | {name: value for name, value in defaults.items() if options.get(name) is None}


def parse_fields(text: str, schema: dict[str, Any]) -> dict[str, str]:
    """Parse a reply, and return the fields that `schema` requires. Raises EngineError if they are not there."""
    import msgspec

    try:
        fields = msgspec.json.decode(text.strip(), type=dict[str, str])
        return {name: fields[name] for name in schema["required"]}
    except (msgspec.MsgspecError, UnicodeError, KeyError) as error:
        raise EngineError("The model's reply does not have the requested format. Try again.") from error
