"""Reads this machine's properties: processor, memory, GPUs and disk."""
