"""Detection of this machine's processor, memory, GPUs and disk."""
