"""Conversion of llama.cpp's grammars (GBNF) to llguidance's variant of Lark.

This module uses llguidance's GBNF parser, but not its conversion (`llguidance.gbnf_to_lark`), which turns every regular
rule into a terminal. llguidance matches terminals greedily and never backtracks, so such grammars reject texts that the
original allows: after "<parameter=", a terminal that continues with one name excludes the rules that continue with
another. Here, only JSON values become terminals, and llama.cpp's automata for "any text up to a delimiter" become one
lazy terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from llguidance.gbnf_to_lark import (
    AlternativeNode,
    ASTNode,
    GrammarParser,
    LiteralNode,
    RepetitionNode,
    RuleNode,
    RuleRefNode,
    SequenceNode,
)

from edgechat.errors import GrammarError
from edgechat.runtime.gbnf_derivative import Derivative

# Rules of llama.cpp's JSON grammars that may become terminals: none is a prefix of another rule at the same position.
_TERMINAL_RULES: Final = frozenset((
    "boolean", "char", "decimal-part", "integer", "integral-part", "json-bool", "json-null", "json-number",
    "json-string", "null", "number", "space", "string",
))  # fmt: skip
# Names of rules for states of automata: texts without a delimiter ("until"), and texts up to a delimiter ("ac").
_AUTOMATON_RULE: Final = re.compile(r"((?:until|ac)-\d+)(-\d+)?")
# Names of rules for one or more calls, and of the rules for one call that they repeat.
_CALLS_RULE: Final = re.compile(r"tools|tool-calls|(.*-)?tool-call(-root)?")
_CALL_RULE: Final = re.compile(r"(.*-)?tool-(?!.*-arg).*")
# A text is split only after literals of at least this length. Shorter literals, such as quotes, are also the beginning
# of other terminals, so a split there would be ambiguous.
_MIN_SPLIT_CHARS: Final = 4
_ANY_TEXT: Final = r"/(.|\n)*/"


def convert_to_lark(
    gbnf: str, delimiters: Mapping[str, Sequence[str]], *, call_starts: Sequence[str] = (), allow_parallel: bool = True
) -> str:
    """Convert a grammar in GBNF to Lark.

    `delimiters` maps the first rule of each automaton, such as "until-3", to the delimiters of the automaton. For each
    text `call_starts[i]`, the result has a rule "after_i" for the rest of the output; the rule is missing if the
    grammar allows no output that begins with this text. Without `allow_parallel`, calls are not repeated. Raises
    GrammarError if the grammar is not valid GBNF.
    """
    try:
        rules = GrammarParser().parse(gbnf)
    except Exception as error:  # the parser raises its own errors, IndexError and ValueError
        raise GrammarError(f"The grammar of the tool calls cannot be read: {error}.") from error
    return _Converter(rules, delimiters, allow_parallel=allow_parallel).convert(call_starts)


class _Converter:
    def __init__(
        self, rules: dict[str, RuleNode], delimiters: Mapping[str, Sequence[str]], *, allow_parallel: bool
    ) -> None:
        self._rules = rules
        self._allow_parallel = allow_parallel
        self._is_single_call = False
        """True while rewriting a rule that allows several calls, although only one is allowed."""
        self._delimiters = delimiters
        for rule in rules.values():
            rule.alternatives = rule.alternatives.simplify()
        self._terminals = {
            name for name in _TERMINAL_RULES & rules.keys() if _find_references(rules[name]) <= _TERMINAL_RULES
        }  # fmt: skip
        texts = {n.value for rule in rules.values() for n in _iterate(rule) if isinstance(n, LiteralNode)}
        self._texts = sorted((text for text in texts if len(text) >= _MIN_SPLIT_CHARS), key=len)
        self._used_automata: set[str] = set()
        self._terminal_definitions: dict[str, str] = {}

    def convert(self, call_starts: Sequence[str]) -> str:
        """Return the grammar in Lark; see `convert_to_lark`."""
        lines, states = [], []
        for name, rule in self._rules.items():
            self._is_single_call = not self._allow_parallel and _CALLS_RULE.fullmatch(name) is not None
            match = _AUTOMATON_RULE.fullmatch(name)
            if match is not None and match[1] in self._delimiters:
                states.append((match[1], name, rule))
            else:
                lines.append(f"{self._lark_name(name)}: {self._rewrite(rule.alternatives).top_str()}")
        self._is_single_call = not self._allow_parallel
        derivative = Derivative(self._rules) if call_starts else None
        for i, start in enumerate(call_starts):
            rest = derivative.find_rest(start) if derivative is not None else None
            if rest is not None:
                lines.append(f"after_{i}: {self._rewrite(rest).top_str()}")
        for automaton, name, rule in states:
            if automaton in self._used_automata:
                lines.append(f"{_identifier(name)}: {self._rewrite(rule.alternatives).top_str()}")
        return "\n".join([*lines, *self._terminal_definitions.values()]) + "\n"

    def _lark_name(self, name: str) -> str:
        if name == "root":
            return "start"
        if name in self._delimiters:
            if name.startswith("ac-"):
                return self._define_text_up_to(name)
            self._used_automata.add(name)
        return f"T{_identifier(name)[1:]}".upper() if name in self._terminals else _identifier(name)

    def _rewrite(self, node: ASTNode) -> ASTNode:
        """Return a copy of a node with rule names that are valid in Lark, and texts joined with their delimiters."""
        if isinstance(node, RuleRefNode):
            return RuleRefNode(self._lark_name(self._resolve_alias(node.name)))
        if isinstance(node, SequenceNode):
            return SequenceNode(self._rewrite_sequence(node))
        if isinstance(node, AlternativeNode):
            return AlternativeNode([self._rewrite(n) for n in node.alternatives])
        if isinstance(node, RepetitionNode):
            max_times = 1 if self._is_single_call and _repeats_calls(node) else node.max_times
            return RepetitionNode(self._rewrite(node.node), node.min_times, max_times)
        if isinstance(node, LiteralNode) and node.value.startswith("<"):
            return SequenceNode([LiteralNode(part) for part in self._split(node.value)]).simplify()
        return node

    def _split(self, text: str) -> list[str]:
        """Split a text after each literal of the grammar with which it begins.

        llguidance matches the longest text. After "<|channel|>commentary", it does not return to "<|channel|>".
        """
        parts = []
        while prefix := next((t for t in self._texts if text.startswith(t) and t != text), None):
            parts.append(prefix)
            text = text.removeprefix(prefix)
        return [*parts, text]

    def _rewrite_sequence(self, sequence: SequenceNode) -> list[ASTNode]:
        """Rewrite a sequence of nodes, and join each text without a delimiter with the delimiter that follows.

        An optional sequence that ends with such a text is joined too: (a text)? d becomes (a text-d | d).
        """
        nodes = _flatten(sequence)
        rewritten: list[ASTNode] = []
        i = 0
        while i < len(nodes):
            node, following = nodes[i], nodes[i + 1] if i + 1 < len(nodes) else None
            is_optional = isinstance(node, RepetitionNode) and (node.min_times, node.max_times) == (0, 1)
            inner = _flatten(node.node) if isinstance(node, RepetitionNode) and is_optional else [node]
            text = self._text_rule(inner[-1])
            if text and isinstance(following, LiteralNode) and self._is_delimiter(following, text):
                joined = [*map(self._rewrite, inner[:-1]), RuleRefNode(self._define_text_up_to(text))]
                rewritten += [AlternativeNode([SequenceNode(joined), following])] if is_optional else joined
                i += 2
                continue
            if text and isinstance(following, RepetitionNode) and following.min_times == 0:
                # Text after the call may be another call.
                terminal = [] if self._is_single_call else [RuleRefNode(self._define_text_without(text))]
                joined = [*map(self._rewrite, inner[:-1]), *terminal]
                rewritten += [RepetitionNode(SequenceNode(joined), 0, 1)] if is_optional else joined
            else:
                rewritten.append(self._rewrite(node))
            i += 1
        return rewritten

    def _text_rule(self, node: ASTNode) -> str:
        """Return the name of the rule for a text without a delimiter that `node` refers to; "" for other nodes."""
        name = self._resolve_alias(node.name) if isinstance(node, RuleRefNode) else ""
        return name if name.startswith("until-") and name in self._delimiters else ""

    def _is_delimiter(self, literal: LiteralNode, text_rule: str) -> bool:
        return [json.loads(f'"{literal.value}"')] == self._delimiters[text_rule]

    def _define_text_up_to(self, name: str) -> str:
        """Define the terminal for any text up to and including a delimiter, and return its name."""
        identifier = f"up_to_{name.replace('-', '_')}"
        quoted = " | ".join(map(json.dumps, self._delimiters[name]))
        self._terminal_definitions[identifier] = f"{identifier}[lazy]: {_ANY_TEXT} ({quoted})"
        return identifier

    def _define_text_without(self, name: str) -> str:
        """Define the terminal for any text without a delimiter, and return its name."""
        identifier = f"WITHOUT_{name.rpartition('-')[2]}"
        excluded = "".join(rf" & ~/(.|\n)*{_escape_regex(text)}(.|\n)*/" for text in self._delimiters[name])
        self._terminal_definitions[identifier] = f"{identifier}: {_ANY_TEXT}{excluded}"
        return identifier

    def _resolve_alias(self, name: str) -> str:
        """Return the name of the rule at the end of a chain of rules that are only references to the next rule."""
        seen = {name}
        while (rule := self._rules.get(name)) is not None and isinstance(rule.alternatives, RuleRefNode):
            name = rule.alternatives.name
            if name in seen:
                raise GrammarError("The grammar of the tool calls has a rule that refers to itself.")
            seen.add(name)
        return name


def _identifier(name: str) -> str:
    return "r_" + re.sub("[^a-z0-9]", lambda m: "_" if m[0] == "-" else f"_{ord(m[0]):x}", name)


def _flatten(node: ASTNode) -> list[ASTNode]:
    """Return the nodes of a sequence, with each nested sequence replaced by its nodes."""
    return [n for child in node.nodes for n in _flatten(child)] if isinstance(node, SequenceNode) else [node]


def _escape_regex(text: str) -> str:
    return "".join(c if c.isalnum() or not c.isascii() else f"\\x{ord(c):02x}" for c in text)


def _find_references(node: ASTNode) -> set[str]:
    """Return the names of all rules that a node refers to."""
    return {child.name for child in _iterate(node) if isinstance(child, RuleRefNode)}


def _repeats_calls(node: RepetitionNode) -> bool:
    """Return whether the repeated node is a call, or one of several calls, with optional white space."""
    names = _find_references(SequenceNode([node.node])) - {"space"}
    return node.max_times is None and bool(names) and all(map(_CALL_RULE.fullmatch, names))


def _iterate(node: ASTNode) -> Iterator[ASTNode]:
    for child in node.children():
        yield child
        yield from _iterate(child)
