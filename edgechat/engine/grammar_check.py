"""Child process that checks grammars: `edgechat _grammar READ_FD WRITE_FD`.

A schema of 40 bytes can take hours and gigabytes to compile, and a chain of references can overflow the stack. The
engine therefore compiles only grammars that this process has compiled before, within the limits of `GrammarChecker`.
"""

from __future__ import annotations

import os
import threading
from typing import Final

import msgspec

from edgechat.engine.pipe import Channel, make_frame, open_inherited_channel
from edgechat.errors import EdgechatError, EngineError
from edgechat.runtime.grammar import check_grammar

CHECK_STACK_BYTES: Final = 8 << 20
"""Size in bytes of the stack for the check. The engine compiles with a larger stack."""
_WARM_UP_GRAMMAR: Final = 'start: %json {"type": "object"}'


class CheckReply(msgspec.Struct, frozen=True):
    """Result of a check."""

    error_type: str = ""
    """Name of the exception class in `edgechat.errors`; "" if the grammar compiles."""
    message: str = ""


def main(arguments: list[str]) -> int:
    """Check grammars until the parent closes the pipe. The first frame is sent when the process is ready."""
    channel = open_inherited_channel(arguments)
    _disable_core_dumps()
    check_grammar(_WARM_UP_GRAMMAR)
    channel.write(_encode(CheckReply()))
    threading.stack_size(CHECK_STACK_BYTES)
    while (body := channel.read()) is not None:
        # This thread continues to read, so that the end of the pipe ends the process during a check.
        threading.Thread(target=_check_and_reply, args=(channel, body.decode("utf-8")), daemon=True).start()
    os._exit(0)


def _check_and_reply(channel: Channel, grammar: str) -> None:
    try:
        check_grammar(grammar)
        reply = CheckReply()
    except (EdgechatError, MemoryError) as error:
        reply = CheckReply(type(error).__name__, str(error))
    except BaseException as error:  # noqa: BLE001  (a panic of llguidance is a BaseException)
        reply = CheckReply(EngineError.__name__, describe_fault(error))
    channel.write(_encode(reply))


def describe_fault(error: BaseException) -> str:
    """Return the message for an unexpected exception of llguidance."""
    return f"The output format cannot be enforced because of a fault in llguidance ({type(error).__name__})."


def _encode(reply: CheckReply) -> bytes:
    return make_frame(msgspec.msgpack.encode(reply))


def _disable_core_dumps() -> None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
