"""Brzozowski derivative of a GBNF grammar: the grammar of the texts that can follow a given beginning."""

from __future__ import annotations

import json
from collections.abc import Mapping

from llguidance.gbnf_to_lark import (
    AlternativeNode,
    ASTNode,
    LiteralNode,
    RepetitionNode,
    RuleNode,
    RuleRefNode,
    SequenceNode,
)

_Sequence = list[ASTNode]


class Derivative:
    """Computes derivatives of a grammar by texts that the grammar spells out in literals."""

    def __init__(self, rules: Mapping[str, RuleNode]) -> None:
        self._rules = rules
        self._nullable_rules: set[str] = set()
        """Names of the rules that allow an empty text."""
        while new := {name for name in rules.keys() - self._nullable_rules if self._is_nullable(rules[name])}:
            self._nullable_rules |= new

    def find_rest(self, start: str) -> ASTNode | None:
        """Return a node for the texts that the rule `root` allows after `start`; None if there are none."""
        rests: list[_Sequence] = [[RuleRefNode("root")]]
        for character in start:
            rests = [rest for nodes in rests for rest in self._derive_all(nodes, character, frozenset())]
        return AlternativeNode([SequenceNode(rest) for rest in rests]) if rests else None

    def _is_nullable(self, node: ASTNode) -> bool:
        if isinstance(node, RuleRefNode):
            return node.name in self._nullable_rules
        if isinstance(node, LiteralNode):
            return not node.value
        if isinstance(node, RepetitionNode) and node.min_times == 0:
            return True
        if isinstance(node, AlternativeNode):
            return any(map(self._is_nullable, node.alternatives))
        return isinstance(node, (SequenceNode, RepetitionNode, RuleNode)) and all(
            map(self._is_nullable, node.children())
        )

    def _derive_all(self, nodes: _Sequence, character: str, open_rules: frozenset[str]) -> list[_Sequence]:
        """Return the sequences that may follow `character` in a sequence of nodes."""
        rests: list[_Sequence] = []
        for i, node in enumerate(nodes):
            rests += [[*rest, *nodes[i + 1 :]] for rest in self._derive(node, character, open_rules)]
            if not self._is_nullable(node):
                break
        return rests

    def _derive(self, node: ASTNode, character: str, open_rules: frozenset[str]) -> list[_Sequence]:
        if isinstance(node, LiteralNode):
            text = _read_literal(node)
            rest: _Sequence = [LiteralNode(json.dumps(text[1:])[1:-1])] if text[1:] else []
            return [rest] if text[:1] == character else []
        if isinstance(node, RuleRefNode) and node.name in self._rules.keys() - open_rules:
            return self._derive(self._rules[node.name].alternatives, character, open_rules | {node.name})
        if isinstance(node, SequenceNode):
            return self._derive_all(node.nodes, character, open_rules)
        if isinstance(node, AlternativeNode):
            return [rest for child in node.alternatives for rest in self._derive(child, character, open_rules)]
        if isinstance(node, RepetitionNode):
            max_times = None if node.max_times is None else node.max_times - 1
            more: _Sequence = [] if max_times == 0 else [
                RepetitionNode(node.node, max(0, node.min_times - 1), max_times)
            ]  # fmt: skip
            return [[*rest, *more] for rest in self._derive(node.node, character, open_rules)]
        return []  # a character class, or a rule that begins with itself


def _read_literal(node: LiteralNode) -> str:
    try:
        return str(json.loads(f'"{node.value}"'))
    except ValueError:  # an escape sequence of GBNF that JSON does not have
        return ""
