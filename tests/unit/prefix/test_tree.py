"""Prefix tree: insertion, matching and pruning."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.prefix.tree import PrefixTree

token_lists = st.lists(st.integers(0, 2), max_size=12)


@given(st.lists(token_lists, min_size=1, max_size=12), st.lists(st.integers(0, 2)))
def test_match_returns_common_prefix_with_every_path(paths: list[list[int]], prompt: list[int]) -> None:
    tree = PrefixTree()
    nodes = [tree.insert(path) for path in paths]
    match = tree.match(prompt)
    for path, node in zip(paths, nodes, strict=True):
        assert node.path() == path
        n_common = next((i for i, (a, b) in enumerate(zip(path, prompt, strict=False)) if a != b), None)
        assert match.n_shared(node) == (min(len(path), len(prompt)) if n_common is None else n_common)
    for node in nodes:
        tree.prune(node)
    for node in [n for n in tree.nodes() if n.parent is not None]:
        tree.prune(node)
    assert list(tree.nodes()) == [tree.root]
