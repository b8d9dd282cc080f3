"""Topics of the help."""

from __future__ import annotations

from edgechat.chat.commands import COMMANDS
from edgechat.tui.app import ChatApp
from edgechat.tui.help_topics import TOPICS


def test_every_key_binding_and_command_has_one_topic() -> None:
    bindings = [name for topic in TOPICS for name in topic.bindings]
    commands = [name for topic in TOPICS for name in topic.commands]
    assert sorted(bindings) == sorted(key.id for key in ChatApp.list_key_bindings())
    assert sorted(commands) == sorted(command.name for command in COMMANDS)
