"""Models of the tests: the starter, also with other chat templates, and tiny random embedding models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf

from edgechat.catalogue.library import starter_model
from tests.models import copy_metadata, write_tiny_bert, write_tiny_llama


class TestModels:
    """Model files in a directory, named as the tests want the models to be called."""

    __test__ = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def chat(self, name: str | None, template: str | None) -> Path:
        """Return the starter with a name, and with another chat template unless it is None."""
        key = hashlib.sha256(template.encode()).hexdigest()[:8] if template is not None else "starter"
        path = self._directory / key / f"{(name or 'starter').replace(',', '-')}.gguf"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            if template is None:
                path.symlink_to(starter_model())
            else:
                _copy_with_template(starter_model(), path, template)
        return path

    def infill(self, name: str) -> Path:
        """Return a tiny model for infilling."""
        path = self._directory / f"{name}.gguf"
        return path if path.exists() else write_tiny_llama(path, can_infill=True, n_ctx=1024)

    def encoder(self, name: str | None, n_ctx: int, *, reranks: bool) -> Path:
        """Return a tiny embedding model, or a reranker, for texts of at most `n_ctx` tokens."""
        path = self._directory / f"{'reranker' if reranks else 'encoder'}-{n_ctx}" / f"{name}.gguf"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_tiny_bert(path, is_reranker=reranks, n_ctx=n_ctx)
        return path


def _copy_with_template(source: Path, target: Path, template: str) -> None:
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    copy_metadata(reader, writer)
    writer.kv_data[0].pop("tokenizer.chat_template", None)
    writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
