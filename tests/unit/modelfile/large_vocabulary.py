"""A GGUF file with one of the largest headers: the vocabulary of Gemma with its merges, about 14 MB."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_large_vocabulary(path: Path, n_tokens: int = 262_144, n_merges: int = 514_906) -> Path:
    """Write the file with a single tensor."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(2)
    writer.add_token_list([f"tok{i:05}" for i in range(n_tokens)])
    writer.add_token_scores([0.0] * n_tokens)
    writer.add_token_types([1] * n_tokens)
    writer.add_token_merges([f"a{i % 1000:03} b" for i in range(n_merges)])
    writer.add_tensor("token_embd.weight", np.zeros((4, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
