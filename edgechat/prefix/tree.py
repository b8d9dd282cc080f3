"""Prefix tree of token sequences: each path from the root is a prefix of a live sequence or a saved segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgechat.prefix.common_prefix import common_prefix_length


class Node:
    """Node of the prefix tree: tokens after the parent's path, and the sequences and segments that end there."""

    __slots__ = ("children", "end", "n_segments", "parent", "seqs", "tokens")

    def __init__(self, parent: Node | None, tokens: Sequence[int]) -> None:
        self.parent = parent
        self.tokens = tuple(tokens)
        self.end: int = (parent.end if parent is not None else 0) + len(self.tokens)
        """Length of the path from the root, in tokens."""
        self.children: dict[int, Node] = {}
        """Child nodes by their first token."""
        self.seqs: set[int] = set()
        """Ids of the live sequences whose tokens are exactly the path to this node."""
        self.n_segments = 0
        """Number of saved segments that end at this node."""

    @property
    def is_in_use(self) -> bool:
        """True if a sequence or a segment ends at or below this node; always True for the root."""
        return bool(self.seqs or self.n_segments or self.children or self.parent is None)

    def path(self) -> list[int]:
        """Return all tokens from the root to the end of this node."""
        parts: list[tuple[int, ...]] = []
        node: Node | None = self
        while node is not None:
            parts.append(node.tokens)
            node = node.parent
        return [token for part in reversed(parts) for token in part]


class Match:
    """Result of matching a prompt against the tree: the matched path and the number of matched tokens."""

    def __init__(self, nodes: list[Node], n_tokens: int) -> None:
        """Store the matched path of `nodes`, root first; only the first `n_tokens` of the path match the prompt."""
        self.n_tokens = n_tokens
        self._n_shared_by_id = {id(node): min(node.end, n_tokens) for node in nodes}

    def n_shared(self, node: Node) -> int:
        """Return the length of the common prefix of the prompt and the path to `node`."""
        ancestor: Node | None = node
        while ancestor is not None:
            if id(ancestor) in self._n_shared_by_id:
                return self._n_shared_by_id[id(ancestor)]
            ancestor = ancestor.parent
        return 0


class PrefixTree:
    """Token tree of cached prefixes. `insert` adds a path; `prune` removes nodes without sequences and segments."""

    def __init__(self) -> None:
        self.root = Node(None, ())

    def match(self, tokens: Sequence[int]) -> Match:
        """Find the longest prefix of `tokens` that is in the tree."""
        node, nodes, position = self.root, [self.root], 0
        while position < len(tokens) and (child := node.children.get(tokens[position])) is not None:
            nodes.append(child)
            n_equal = common_prefix_length(child.tokens, tokens[position : position + len(child.tokens)])
            position += n_equal
            if n_equal < len(child.tokens):
                break
            node = child
        return Match(nodes, position)

    def insert(self, tokens: Sequence[int]) -> Node:
        """Return the node whose path is exactly `tokens`; if needed, create it or split an existing node."""
        node, position = self.root, 0
        while position < len(tokens):
            child = node.children.get(tokens[position])
            if child is None:
                child = node.children[tokens[position]] = Node(node, tokens[position:])
            n_equal = common_prefix_length(child.tokens, tokens[position : position + len(child.tokens)])
            if n_equal < len(child.tokens):
                child = self._split(child, n_equal)
            node, position = child, position + n_equal
        return node

    def _split(self, node: Node, n_tokens: int) -> Node:
        """Move the first `n_tokens` of `node` to a new node between `node` and its parent; return the new node."""
        parent = node.parent
        if parent is None:
            return node
        new_parent = Node(parent, node.tokens[:n_tokens])
        parent.children[new_parent.tokens[0]] = new_parent
        node.tokens = node.tokens[n_tokens:]
        node.parent = new_parent
        new_parent.children[node.tokens[0]] = node
        return new_parent

    def prune(self, node: Node) -> None:
        """Remove `node` and its ancestors, up to the first node that is still in use."""
        while not node.is_in_use and (parent := node.parent) is not None:
            if parent.children.get(node.tokens[0]) is node:
                del parent.children[node.tokens[0]]
            node = parent

    def nodes(self) -> Iterator[Node]:
        """Iterate over all nodes, parents before children."""
        pending_nodes = [self.root]
        while pending_nodes:
            node = pending_nodes.pop()
            yield node
            pending_nodes.extend(node.children.values())
