"""Grammars of tool calls, which begin to constrain the output when a tool call begins."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgechat.runtime.grammar import Grammar
from edgechat.runtime.tool_grammar import ToolGrammar, TriggerDetector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgechat.runtime.model import Model


def convert_tool_grammar(grammar: ToolGrammar) -> str:
    """Return the grammar of tool calls in llguidance's variant of Lark. Raises GrammarError if it is not valid GBNF.

    Without triggers, the result also allows reasoning before the calls, and content instead of calls if `grammar` has a
    rule for it.
    """
    from edgechat.runtime.gbnf import convert_to_lark  # imports llguidance, which is optional

    lark = convert_to_lark(
        grammar.gbnf, grammar.delimiters, call_starts=grammar.call_starts, allow_parallel=grammar.allow_parallel
    )
    if grammar.triggers or not (grammar.thinking_ends or grammar.content_rule or grammar.call_starts):
        return lark
    return _add_output_rules(lark, grammar)


def start_tool_grammar(
    model: Model, compiled: Grammar, grammar: ToolGrammar, text_tokens: Sequence[str]
) -> Grammar | TriggeredGrammar:
    """Return the state of a new output. `compiled` is the compiled result of `convert_tool_grammar`.

    The control tokens in `text_tokens` are treated as ordinary text. Raises GrammarError if the state becomes too
    complex.
    """
    if grammar.triggers:
        return TriggeredGrammar(model, compiled, grammar, text_tokens)
    if not (grammar.thinking_ends or grammar.call_starts):
        compiled.accept_text(grammar.prompt_end)
    return compiled


def _add_output_rules(lark: str, grammar: ToolGrammar) -> str:
    """Return a grammar for a whole output: reasoning (free text), then calls as `lark` describes, or content."""
    # The grammars of several families also allow an empty text, or white space.
    starts = [(text, f"after_{i}") for i, text in enumerate(grammar.call_starts) if f"\nafter_{i}:" in lark]
    calls = " | ".join(f"{json.dumps(text)} {rest}" for text, rest in starts) or "root"
    rules = [re.sub(r"(?m)^start:", "root:", lark, count=1), f"calls: {calls}\n"]
    thoughts, calls_in_thoughts = "", ""
    if grammar.thinking_ends:
        is_open = TriggerDetector(grammar).is_thinking
        start_tag = "" if is_open else json.dumps(grammar.thinking_start)
        thoughts = "thoughts" if is_open else f"({start_tag} thoughts)?" if grammar.thinking_start else ""
        for text, rest in starts:  # the beginning of a call can be an end tag
            if any(map(text.startswith, grammar.thinking_ends)):
                calls_in_thoughts += f" | {start_tag} up_to_{rest} {rest}"
                rules.append(f"up_to_{rest}[lazy]: /(.|\\n)*/ {json.dumps(text)}\n")
        tags = [tag for tag in grammar.thinking_ends if not any(text.startswith(tag) for text, _ in starts)]
        rules.append(f"thoughts[lazy]: /(.|\\n)*/ ({' | '.join(map(json.dumps, tags))})\n")
    if grammar.content_rule:
        rules.append(f"content: {grammar.content_rule}\n")
    output = "(calls | content)" if grammar.content_rule else "calls"
    return f"start: {thoughts} /\\s{{0,4}}/ {output}{calls_in_thoughts}\n" + "".join(rules)


class TriggeredGrammar:
    """State of one output: free text until a tool call begins, then only text that a grammar allows.

    The token that completes a trigger may contain more than the beginning of a call. If the grammar does not allow the
    additional text, the output stays free.
    """

    def __init__(self, model: Model, compiled: Grammar, grammar: ToolGrammar, text_tokens: Sequence[str]) -> None:
        """Start an output. `compiled` is the grammar of the calls; `text_tokens` are control tokens in the output."""
        self._model = model
        self._compiled = compiled
        self._detector: TriggerDetector | None = TriggerDetector(grammar)
        self._active: Grammar | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        control_tokens = model.control_tokens
        self._visible_tokens = frozenset(control_tokens[text] for text in text_tokens if text in control_tokens)

    def copy(self) -> TriggeredGrammar:
        """Return an independent copy in the same state."""
        copied = object.__new__(TriggeredGrammar)
        copied.__dict__.update(self.__dict__)
        copied._active = self._active.copy() if self._active is not None else None
        copied._detector = self._detector.copy() if self._detector is not None else None
        copied._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        copied._decoder.setstate(self._decoder.getstate())
        return copied

    @property
    def is_active(self) -> bool:
        """True if a tool call has begun, so that the grammar constrains the output."""
        return self._active is not None

    @property
    def is_complete(self) -> bool:
        """True if the output is complete and no token can follow."""
        return self._active is not None and self._active.is_complete

    @property
    def can_end(self) -> bool:
        """True if the output can end at this point."""
        return self._active is None or self._active.can_end

    def count_allowed(self, tokens: list[int]) -> int:
        """Return the number of tokens at the start of `tokens` that the grammar allows."""
        if self._active is None and self._detector is not None:
            state = self.copy()
            for i, token in enumerate(tokens):
                state.accept(token)
                if state.is_active:
                    return i + 1 + state.count_allowed(tokens[i + 1 :])
        return self._active.count_allowed(tokens) if self._active is not None else len(tokens)

    def accept(self, token: int) -> None:
        """Advance the state by `token`. Raises GrammarError if the state becomes too complex."""
        if self._active is not None:
            self._active.accept(token)
        elif self._detector is not None:
            piece = self._model.token_to_piece(token, special=token in self._visible_tokens)
            call_start = self._detector.feed(self._decoder.decode(piece))
            if call_start is not None:
                self._detector = None
                active = self._compiled.copy()
                if active.accept_text(call_start):
                    self._active = active

    @contextlib.contextmanager
    def mask_disallowed(self, logits: NDArray[Any]) -> Iterator[None]:
        """Set the logits of disallowed tokens to -inf in the `with` block.

        Raises GrammarError if the grammar allows no token.
        """
        with self._active.mask_disallowed(logits) if self._active is not None else contextlib.nullcontext():
            yield
