"""Description of the grammar of a model's tool calls, and detection of the beginning of a call in an output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

# Number of characters at the end of the output that are searched for triggers. The longest triggers of llama.cpp's
# formats have about 100 characters.
_MAX_TRIGGER_CHARS: Final = 512

MAX_GBNF_CHARS: Final = 1 << 21
"""Maximum number of characters in a grammar before its conversion. The conversion takes 4 s for the longest grammars,
and removes most of the automata."""


class Trigger(msgspec.Struct, frozen=True):
    """Text with which a tool call begins."""

    value: str
    """A word, or a regular expression whose last group, if it has one, is where the tool call begins."""
    is_pattern: bool = False


class ToolGrammar(msgspec.Struct, frozen=True, kw_only=True):
    """Grammar of a model family's tool calls in GBNF, with the triggers that activate it."""

    gbnf: str
    delimiters: dict[str, list[str]] = {}
    """Delimiters of the grammar's automata; see `edgechat.runtime.gbnf.convert_to_lark`."""
    triggers: list[Trigger] = []
    """Texts that activate the grammar, which then applies from the beginning of the text. Without triggers, the output
    must be a tool call: the grammar applies to the whole output, or to the output after the reasoning."""
    call_starts: list[str] = []
    """Texts with which a call can begin, for a grammar without triggers; empty if they are unknown."""
    allow_parallel: bool = True
    """Whether an output may have several calls. Some of the grammars of llama.cpp always allow them."""
    prompt_end: str = ""
    """End of the prompt that belongs to the reply, such as the start tag of the reasoning."""
    thinking_start: str = ""
    thinking_ends: list[str] = []
    """Tags of the reasoning, in which triggers are ignored; empty if `gbnf` describes the reasoning too. A trigger that
    begins with an end tag also ends the reasoning."""
    content_rule: str = ""
    """Rule in llguidance's variant of Lark for outputs without a call; "" if each output must be a call. Used only
    without triggers."""


class TriggerDetector:
    """Finds the beginning of a tool call in a growing output. Ignores reasoning."""

    def __init__(self, grammar: ToolGrammar) -> None:
        """Search an output. Sets `is_thinking` to True if the prompt ends within the reasoning, after its start tag."""
        self._grammar = grammar
        self._patterns = [(re.compile(t.value), t.value.startswith("^")) for t in grammar.triggers if t.is_pattern]
        self._words = [t.value for t in grammar.triggers if not t.is_pattern]
        self._text = ""
        self._is_whole_output = True
        self.is_thinking = False
        if grammar.thinking_start and grammar.thinking_ends:
            last_end = max(grammar.prompt_end.rfind(tag) for tag in grammar.thinking_ends)
            self.is_thinking = grammar.prompt_end.rfind(grammar.thinking_start) > last_end

    def feed(self, text: str) -> str | None:
        """Append generated text; return the output from the beginning of the tool call, or None if none has begun."""
        self._text += text
        grammar = self._grammar
        while True:
            if self.is_thinking:
                if not self._skip_to(grammar.thinking_ends):
                    return None
                self.is_thinking = False
            start = self._find_trigger()
            thinking_start = self._text.find(grammar.thinking_start) if grammar.thinking_start else -1
            if start is not None and not 0 <= thinking_start < start:
                return self._text[start:]
            if thinking_start < 0 or not grammar.thinking_ends or not self._skip_to([grammar.thinking_start]):
                self._truncate()
                return None
            self.is_thinking = True

    def _find_trigger(self) -> int | None:
        starts = [start for word in self._words if (start := self._text.find(word)) >= 0]
        prompt_end = self._grammar.prompt_end if self._is_whole_output else ""
        for pattern, is_anchored in self._patterns:
            if is_anchored and not self._is_whole_output:
                continue
            prefix = "" if is_anchored else prompt_end
            if match := pattern.search(prefix + self._text):
                starts.append(max(0, match.start(pattern.groups) - len(prefix)))
        return min(starts, default=None)

    def _skip_to(self, tags: Sequence[str]) -> bool:
        """Remove the text up to the end of the first of `tags`; return False if the text has none of them.

        An end tag that begins a trigger stays in the text.
        """
        ends = [(start + len(tag), tag) for tag in tags if (start := self._text.find(tag)) >= 0]
        if not ends:
            self._truncate()
            return False
        end, tag = min(ends)
        begins_call = self.is_thinking and any(word.startswith(tag) for word in self._words)
        self._text = self._text[end - len(tag) if begins_call else end :]
        self._is_whole_output = False
        return True

    def _truncate(self) -> None:
        if len(self._text) > _MAX_TRIGGER_CHARS:
            self._text = self._text[-_MAX_TRIGGER_CHARS:]
            self._is_whole_output = False

    def copy(self) -> TriggerDetector:
        """Return an independent copy in the same state."""
        copied = object.__new__(TriggerDetector)
        copied.__dict__.update(self.__dict__)
        return copied
