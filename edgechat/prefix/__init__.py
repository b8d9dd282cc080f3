"""Prefixes that were computed once: a tree of tokens, and where their memory is. Integers and bytes only."""
