"""A session whose model is a script: says what it is told to, at a pace, for measuring and testing a screen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from edgechat.chat.messages import Conversation
from edgechat.chat.session import Session
from edgechat.chat.store import Store
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineDiedError
from edgechat.models.events import LoadCallback

N_CTX: Final = 32768
CHARS_PER_TOKEN: Final = 4
_TEMPLATE: Final = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Script:
    """What is answered, in turn; the last answer again and again."""

    def __init__(
        self, replies: Sequence[str], token_s: float = 0.0, dies_after: int | None = None, n_fast: int = 0
    ) -> None:
        """A token every `token_s`, the first `n_fast` at once; with `dies_after` the engine is gone after so many, once."""
        self.answers = list(replies)
        self.token_s = token_s
        self.dies_after = dies_after
        self.n_fast = n_fast
        self.n_answered = 0
        self.may_continue = threading.Event()
        """Clear: an answer waits after its first token until it is set."""
        self.may_continue.set()

    def next_answer(self) -> str:
        """What is said now."""
        answer = self.answers[min(self.n_answered, len(self.answers) - 1)]
        self.n_answered += 1
        return answer


class ScriptedEngine(EngineClient):
    """Speaks the engine's protocol, without a process."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script
        self._cancelled: set[int] = set()

    def start(self) -> None:
        """Nothing is to be started."""

    def load_scripted(self) -> protocol.Loaded:
        """As if a model had been loaded."""
        self.loaded = protocol.Loaded(
            id=1, backend="scripted", n_ctx=N_CTX, n_ctx_train=N_CTX, n_threads=1, n_params=1, n_vocab=1, size_bytes=1,
            chat_template=_TEMPLATE, bos="", eos="", control_tokens=[], can_truncate=True, load_s=0.0,
        )  # fmt: skip
        return self.loaded

    def tokenize(self, text: str, guard: str = "") -> list[int]:  # noqa: ARG002
        """A token for so many characters."""
        return list(range(len(text) // CHARS_PER_TOKEN + 1))

    def cancel(self, target: int) -> None:
        """End that answer."""
        self._cancelled.add(target)

    def close(self) -> None:
        """Nothing is said any more."""
        self._is_closed = True
        self._script.may_continue.set()

    def generate(self, request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        """The next answer, token by token."""
        n_prompt = len(request.tokens or ())
        if not request.max_tokens and request.max_tokens is not None:
            yield self._finished(request, n_prompt, 0, 0.0)
            return
        yield protocol.PrefillProgressed(id=request.id, done_tokens=n_prompt, total_tokens=n_prompt)
        answer, script = self._script.next_answer(), self._script
        pieces = [answer[i : i + CHARS_PER_TOKEN] for i in range(0, len(answer), CHARS_PER_TOKEN)]
        start_s = time.monotonic()
        n_said = 0
        for n_said, piece in enumerate(pieces, start=1):
            if self._is_closed or (script.dies_after is not None and n_said > script.dies_after):
                script.dies_after = None
                raise EngineDiedError("the engine process died by SIGSEGV (signal 11)")
            if request.id in self._cancelled:
                break
            yield protocol.TokensGenerated(id=request.id, tokens=[0], text=piece)
            if n_said == 1:
                script.may_continue.wait()
            if n_said <= script.n_fast:
                start_s = time.monotonic()
                continue
            late_s = start_s + (n_said - script.n_fast) * script.token_s - time.monotonic()
            if late_s > 0:
                time.sleep(late_s)
        elapsed_s = time.monotonic() - start_s
        yield self._finished(request, n_prompt, n_said, n_said / elapsed_s if script.token_s else 0.0)

    def _finished(self, request: protocol.Generate, n_prompt: int, n_said: int, tps: float) -> protocol.RequestFinished:
        was_cancelled = request.id in self._cancelled
        stats = protocol.GenerationStats(
            prompt_tokens=n_prompt, cached_tokens=n_prompt // 2, completion_tokens=n_said, ttft_s=0.0, prefill_tps=0.0,
            decode_tps=tps,
        )  # fmt: skip
        return protocol.RequestFinished(
            id=request.id, finish_reason="cancelled" if was_cancelled else "stop", stats=stats,
            context_tokens=n_prompt + n_said,
        )  # fmt: skip


class ScriptedSession(Session):
    """A session with a script for a model; all else of it is real."""

    def __init__(
        self, store: Store, settings: Settings, script: Script, conversation: Conversation | None = None
    ) -> None:
        super().__init__(store, settings, Path("scripted.gguf"), conversation)
        self._scripted = ScriptedEngine(script)
        self.model.engine = self._scripted

    def open(self, listen: LoadCallback = lambda event: None) -> protocol.Loaded:  # noqa: ARG002
        """Read the conversation; nothing is loaded."""
        self.load_messages()
        loaded = self._scripted.load_scripted()
        self.model.set_loaded(loaded)
        return loaded
