"""Detection of messages that a chat template omits from the prompt."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from edgechat.errors import TemplateError
from edgechat.prompt.renderer import PromptMessage

_TEXT_ROLES: Final = ("system", "user", "assistant")
# Minimum length of texts that are searched for in the prompt. Shorter texts may occur in the template's own text.
_MIN_CERTAIN_CHARS: Final = 16
# Four or more repetitions of a pattern of messages. The first three repetitions represent all of them.
_REPEATED_TURNS: Final = re.compile(r"(.{1,6}?)\1{3,}", re.DOTALL)
_N_PROBED_TURNS: Final = 3
# Maximum number of cached results. Conversations with the same kinds of messages share a result.
_MAX_RESULTS: Final = 256
# Conversation that shows whether a template renders tool calls at all.
_SAMPLE_CALL: Final = {"id": "abcdefgh0", "type": "function", "function": {"name": "lookup", "arguments": {}}}
_SAMPLE: Final = (
    PromptMessage("user", "Hello"), PromptMessage("assistant", "", extra_fields={"tool_calls": [_SAMPLE_CALL]}),
    PromptMessage("tool", "Hello", extra_fields={"tool_call_id": "abcdefgh0"}),
)  # fmt: skip


class OmissionFinder:
    """Finds messages and tool calls that a chat template omits. Thread-safe.

    If the prompt contains the texts of all messages in their order, and the texts are long, no message is omitted.
    Otherwise, the conversation is rendered again with a unique text in each message, and the result is cached for all
    conversations with the same kinds of messages.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: dict[tuple[object, str], int | None] = {}
        self._renders_calls_by_key: dict[object, bool] = {}

    def find(
        self, messages: Sequence[PromptMessage], prompt: str, render: Callable[[list[PromptMessage]], str], key: object
    ) -> PromptMessage | None:
        """Return the first message that is missing from `prompt`, wholly or in one of its tool calls.

        Return None if all messages are present. `render` renders other messages with the same options; `key` identifies
        the options that affect the result.
        """
        if _has_all_texts(messages, prompt):
            return None
        kinds, sample_indices = _find_kinds(messages)
        with self._lock:
            is_known, position = (key, kinds) in self._results, self._results.get((key, kinds))
        if not is_known:
            try:
                position = self._probe([messages[i] for i in sample_indices], render, key)
            except TemplateError:  # for example, because the template exceeded the time limit
                return find_omitted(messages, prompt)
            with self._lock:
                if len(self._results) >= _MAX_RESULTS:
                    self._results.pop(next(iter(self._results)))
                self._results[key, kinds] = position
        return None if position is None else messages[sample_indices[position]]

    def _probe(
        self, messages: Sequence[PromptMessage], render: Callable[[list[PromptMessage]], str], key: object
    ) -> int | None:
        """Render `messages` with a unique text in each; return the index of the first message that is omitted."""
        can_check_calls = any("tool_calls" in m.extra_fields for m in messages) and self._find_call_rendering(
            render, key
        )
        probes = [_make_probe(message, i) for i, message in enumerate(messages)]
        prompt = render([message for message, _, _ in probes])
        for i, (_, text, calls) in enumerate(probes):
            if text not in prompt or (can_check_calls and not all(call in prompt for call in calls)):
                return i
        return None

    def _find_call_rendering(self, render: Callable[[list[PromptMessage]], str], key: object) -> bool:
        """Return whether the template renders tool calls. A few templates do not, so their calls cannot be checked."""
        if key not in self._renders_calls_by_key:
            probes = [_make_probe(message, i) for i, message in enumerate(_SAMPLE)]
            try:
                prompt = render([message for message, _, _ in probes])
            except TemplateError:
                prompt = ""
            self._renders_calls_by_key[key] = all(call in prompt for _, _, calls in probes for call in calls)
        return self._renders_calls_by_key[key]


def _has_all_texts(messages: Sequence[PromptMessage], prompt: str) -> bool:
    """Return True if a prompt is certain to contain all messages.

    This can be decided only for messages that have long texts and no tool calls, and whose texts the prompt contains in
    the same order.
    """
    position = 0
    for message in messages:
        content = message.content.strip()
        if message.role not in _TEXT_ROLES or message.extra_fields:
            return False
        if not content:
            continue
        position = prompt.find(content, position)
        if len(content) < _MIN_CERTAIN_CHARS or position < 0:
            return False
        position += len(content)
    return True


def _find_kinds(messages: Sequence[PromptMessage]) -> tuple[str, list[int]]:
    """Return a hash of the kinds of the messages, and the indexes of a sample that has all kinds and patterns."""
    call_ids: set[Any] = set()
    letters = []
    for message in messages:
        calls = message.extra_fields.get("tool_calls", [])
        call_ids = {call.get("id") for call in calls} if message.role != "tool" else call_ids
        letters.append((
            message.role, not message.content.strip(), not message.reasoning, message.has_text_parts, len(calls),
            message.extra_fields.get("tool_call_id") in call_ids,
        ))  # fmt: skip
    alphabet = {letter: chr(i + 1) for i, letter in enumerate(dict.fromkeys(letters))}
    kinds = "".join(alphabet[letter] for letter in letters)
    sample_indices: list[int] = []
    position = 0
    for match in _REPEATED_TURNS.finditer(kinds):
        sample_indices += range(position, match.start() + _N_PROBED_TURNS * len(match[1]))
        position = match.end()
    sample_indices += range(position, len(messages))
    description = repr([letters[i] for i in sample_indices]).encode("utf-8", "replace")
    return hashlib.blake2b(description).hexdigest(), sample_indices


def _make_probe(message: PromptMessage, position: int) -> tuple[PromptMessage, str, list[str]]:
    """Return a message of the same kind with unique texts, followed by its content and the text of each tool call."""
    content = f"probe-{position}-text" if message.content.strip() else ""
    texts: list[str] = []
    fields = dict(message.extra_fields)
    if "tool_calls" in fields:
        calls = fields["tool_calls"]
        texts = [f"probe-{position}-{i}-call" for i in range(len(calls))]
        fields["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": {"text": text}}}
            for call, text in zip(calls, texts, strict=True)
        ]
    reasoning = "thought" if message.reasoning else ""
    probe = msgspec.structs.replace(message, content=content, reasoning=reasoning, extra_fields=fields)
    return probe, content, texts


def find_omitted(messages: Sequence[PromptMessage], prompt: str) -> PromptMessage | None:
    """Return the first message whose content is missing from a rendered prompt; None if the prompt contains all.

    White space around the content may be missing. Tool results are not checked, because templates reformat them.
    """
    for message in messages:
        if message.role in _TEXT_ROLES and message.content.strip() not in prompt:
            return message
    return None
