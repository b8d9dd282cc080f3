"""A tree over tokens: every path from the root is a prefix of which something is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgechat.prefix.common_prefix import common_prefix_length

if TYPE_CHECKING:
    from edgechat.prefix.segment import KvSegment


class Node:
    """Some tokens after those of its parent, and what is kept of the path that ends with them."""

    __slots__ = ("children", "end", "parent", "segments", "seqs", "tokens")

    def __init__(self, parent: Node | None, tokens: Sequence[int]) -> None:
        self.parent = parent
        self.tokens = tuple(tokens)
        self.end: int = (parent.end if parent is not None else 0) + len(self.tokens)
        """Length of the path, in tokens."""
        self.children: dict[int, Node] = {}
        """By their first token; no two begin with the same."""
        self.seqs: set[int] = set()
        """Live sequences that end here; they hold the whole path."""
        self.segments: list[KvSegment] = []
        """Saved memory of a part of the path that ends here, in RAM or on disk."""

    @property
    def is_in_use(self) -> bool:
        """True if something is kept here or below."""
        return bool(self.seqs or self.segments or self.children or self.parent is None)

    def path(self) -> list[int]:
        """All tokens from the root."""
        parts: list[tuple[int, ...]] = []
        node: Node | None = self
        while node is not None:
            parts.append(node.tokens)
            node = node.parent
        return [token for part in reversed(parts) for token in part]


class Match:
    """How far a prompt goes along the tree, and with that what any node shares with it."""

    def __init__(self, nodes: list[Node], n_tokens: int) -> None:
        """`nodes` from the root on are matched whole, except that the last may be left after `n_tokens` of the path."""
        self.n_tokens = n_tokens
        self._shared = {id(node): min(node.end, n_tokens) for node in nodes}

    def n_shared(self, node: Node) -> int:
        """How many tokens from the root the prompt shares with the path to `node`."""
        at: Node | None = node
        while at is not None:
            if id(at) in self._shared:
                return self._shared[id(at)]
            at = at.parent
        return 0


class PrefixTree:
    """Grows with `insert`; what nothing is kept of goes with `prune`."""

    def __init__(self) -> None:
        self.root = Node(None, ())

    def match(self, tokens: Sequence[int]) -> Match:
        """Follow `tokens` as far as the tree goes."""
        node, nodes, done = self.root, [self.root], 0
        while done < len(tokens) and (child := node.children.get(tokens[done])) is not None:
            nodes.append(child)
            same = common_prefix_length(child.tokens, tokens[done : done + len(child.tokens)])
            done += same
            if same < len(child.tokens):
                break
            node = child
        return Match(nodes, done)

    def insert(self, tokens: Sequence[int]) -> Node:
        """The node of exactly these tokens, made if need be; a node in the middle of which they end is split."""
        node, done = self.root, 0
        while done < len(tokens):
            child = node.children.get(tokens[done])
            if child is None:
                child = node.children[tokens[done]] = Node(node, tokens[done:])
            same = common_prefix_length(child.tokens, tokens[done : done + len(child.tokens)])
            if same < len(child.tokens):
                child = self._split(child, same)
            node, done = child, done + same
        return node

    def _split(self, node: Node, n_tokens: int) -> Node:
        """Put a node before this one, which takes its first `n_tokens`."""
        parent = node.parent
        if parent is None:
            return node
        upper = Node(parent, node.tokens[:n_tokens])
        parent.children[upper.tokens[0]] = upper
        node.tokens = node.tokens[n_tokens:]
        node.parent = upper
        upper.children[node.tokens[0]] = node
        return upper

    def prune(self, node: Node) -> None:
        """Remove the node, and those above it, as far as nothing is kept there."""
        while not node.is_in_use and (parent := node.parent) is not None:
            if parent.children.get(node.tokens[0]) is node:
                del parent.children[node.tokens[0]]
            node = parent

    def nodes(self) -> Iterator[Node]:
        """All of them, parents first."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())
