"""Times to the first token of questions about a document that is in the prompt as a whole.

Each question is asked by a new process of `edgechat ask` with an engine of its own, in a new conversation: the first
one reads the document, and the others should find it in the prompt cache on disk.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edgechat.bench.child_programs import edgechat_command, make_environment
from edgechat.bench.documents_corpus import MAX_DOCUMENTS, make_corpus
from edgechat.bench.documents_report import FirstTokenTimes
from edgechat.documents import indexing
from edgechat.documents.library import DocumentLibrary
from edgechat.engine.resident_client import PRIVATE_MODE
from edgechat.errors import EngineError, UsageError

COLLECTION: Final = "whole"
_MAX_TOKENS: Final = 8
_CHARS_PER_TOKEN: Final = 3.7
_N_WARM: Final = 3


def write_document(path: Path, n_tokens: int, seed: int) -> None:
    """Write a text of about `n_tokens` tokens: reports of the synthetic corpus, one after the other."""
    corpus = make_corpus(n_documents=MAX_DOCUMENTS, n_questions=1, seed=seed)
    parts, n_chars = [], 0
    for name, text in corpus.documents.items():
        if not name.endswith(".md"):
            continue
        parts.append(text[: int(n_tokens * _CHARS_PER_TOKEN) - n_chars])
        n_chars += len(parts[-1])
        if n_chars >= int(n_tokens * _CHARS_PER_TOKEN):
            break
    path.write_text("\n".join(parts), encoding="utf-8")


def measure_first_tokens(
    model: Path, library: DocumentLibrary, home: Path, *, n_tokens: int, seed: int, on_progress: Callable[[str], None]
) -> FirstTokenTimes:
    """Ask about a document of about `n_tokens` tokens in new processes, whose files are in `home`.

    Raises EngineError if a process fails, and UsageError if the document does not fit in the context.
    """
    document, env = home / "document.md", make_environment(home) | {"EDGECHAT_ENGINE": PRIVATE_MODE}
    write_document(document, n_tokens, seed)
    with library.create(COLLECTION) as collection:
        indexing.update(collection, add=[document])
    times_s, n_prompt_tokens = [], 0
    for i in range(1 + _N_WARM):
        on_progress(f"Measuring the first token of question {i + 1} of {1 + _N_WARM} about a document")
        ttft_s, n_tokens_read = _ask(model, f"Which towns does part {i + 1} of the document name?", env)
        times_s.append(ttft_s)
        n_prompt_tokens = n_prompt_tokens or n_tokens_read
    return FirstTokenTimes(model=model.name, n_prompt_tokens=n_prompt_tokens, cold_s=times_s[0], warm_s=times_s[1:])


def _ask(model: Path, question: str, env: Mapping[str, str]) -> tuple[float, int]:
    """Return the time to the first token in seconds, and the length of the prompt in tokens."""
    command = edgechat_command(
        "ask", "-m", str(model), "--docs", COLLECTION, "--temperature", "0", "--max-tokens", str(_MAX_TOKENS), "--json",
        question,
    )  # fmt: skip
    ask = subprocess.run(command, env=env, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    if ask.returncode:
        raise EngineError(f"`edgechat ask` failed: {ask.stderr.decode(errors='replace')}")
    reply = json.loads(ask.stdout)
    if not reply["searched"]["is_whole"]:
        raise UsageError("The document was searched, because it does not fit in the context. Use a smaller --prompt.")
    stats = reply["stats"]
    return float(stats["ttft_s"]), int(stats["prompt_tokens"])
