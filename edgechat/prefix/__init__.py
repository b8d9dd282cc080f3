"""Prefix cache: a tree of token sequences, with their KV memory saved in RAM and on disk. Does not import llama.cpp."""
