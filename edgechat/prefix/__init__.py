"""Prefix cache: a tree over token sequences, and their KV memory saved in RAM and on disk. Imports no llama.cpp."""
