"""A session with scripted replies instead of a model, for benchmarks and tests of the terminal interface."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, cast

from edgechat.chat.conversation_prompt import create_prompt_builder
from edgechat.chat.engine_source import EngineSource
from edgechat.chat.messages import Conversation
from edgechat.chat.reply_source import ReplySource, SingleTarget
from edgechat.chat.session import Session
from edgechat.chat.store import Store
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.engine.generation import GenerationStats
from edgechat.errors import EngineDiedError
from edgechat.models.events import LoadCallback
from edgechat.models.loaded_model import LoadedModel

N_CTX: Final = 32768
CHARS_PER_TOKEN: Final = 4
_TEMPLATE: Final = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Script:
    """Scripted replies, generated in order; the last reply repeats."""

    def __init__(
        self,
        replies: Sequence[str],
        token_interval_s: float = 0.0,
        crash_after_tokens: int | None = None,
        n_fast_tokens: int = 0,
        pause_after_tokens: int = 1,
    ) -> None:
        """Generate the first `n_fast_tokens` of a reply without delay, then one token every `token_interval_s` seconds.

        If `crash_after_tokens` is set, the engine dies once, after this number of tokens. After
        `pause_after_tokens` tokens, each reply waits for `may_continue`.
        """
        self.replies = list(replies)
        self.token_interval_s = token_interval_s
        self.crash_after_tokens = crash_after_tokens
        self.n_fast_tokens = n_fast_tokens
        self.pause_after_tokens = pause_after_tokens
        self.n_started = 0
        self.may_continue = threading.Event()
        """Event that each reply waits for after `pause_after_tokens` tokens; set by default."""
        self.draft_gain, self.draft_source = 1.0, ""
        """Gain from drafts and their source, as in `TokensGenerated`, from the first token on."""
        self.may_continue.set()

    def next_reply(self) -> str:
        reply = self.replies[min(self.n_started, len(self.replies) - 1)]
        self.n_started += 1
        return reply


class ScriptedEngine(EngineClient):
    """Engine client that generates scripted events without an engine process."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script
        self._cancelled: set[int] = set()
        self._ended_thoughts: set[int] = set()
        self._cancelled_sequences: set[tuple[int, int]] = set()

    def start(self) -> None:
        """Do nothing, because a scripted session needs no engine process."""

    def load_scripted(self) -> protocol.Loaded:
        """Set `model_properties` to the properties of a fictitious model, and return them."""
        self.model_properties = protocol.Loaded(
            id=1, backend="scripted", n_ctx=N_CTX, n_ctx_train=N_CTX, n_threads=1, n_params=1, n_vocab=1, size_bytes=1,
            chat_template=_TEMPLATE, bos="", eos="", control_tokens=[], can_truncate=True, load_s=0.0,
        )  # fmt: skip
        return self.model_properties

    def tokenize(self, text: str, guard: str = "", **options: object) -> list[int]:  # noqa: ARG002
        return list(range(len(text) // CHARS_PER_TOKEN + 1))

    def cancel(self, target: int) -> None:
        self._cancelled.add(target)

    def end_thinking(self, target_id: int) -> None:
        self._ended_thoughts.add(target_id)

    def close(self, timeout_s: float = 0.0) -> None:  # noqa: ARG002
        self._is_closed = True
        self._script.may_continue.set()

    def generate(self, request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        """Yield the events of the next scripted reply, or of an empty reply if `request.max_tokens` is 0."""
        n_prompt = len(request.tokens or ())
        if not request.max_tokens and request.max_tokens is not None:
            yield self._make_finished_event(request, n_prompt, 0, 0.0)
            return
        yield protocol.PrefillProgressed(id=request.id, done_tokens=n_prompt, total_tokens=n_prompt)
        if request.mean_logprob:
            yield from self._generate_several(request, n_prompt)
            return
        reply, script = self._script.next_reply(), self._script
        tokens = [reply[i : i + CHARS_PER_TOKEN] for i in range(0, len(reply), CHARS_PER_TOKEN)]
        started_at = time.monotonic()
        n_generated = 0
        thought_end = reply.find("</think>")
        for n_generated, token in enumerate(tokens, start=1):
            if request.id in self._ended_thoughts and n_generated * CHARS_PER_TOKEN <= thought_end:
                started_at -= script.token_interval_s
                continue
            if self._is_closed or (script.crash_after_tokens is not None and n_generated > script.crash_after_tokens):
                script.crash_after_tokens = None
                raise EngineDiedError("the engine process died by SIGSEGV (signal 11)")
            if request.id in self._cancelled:
                break
            yield protocol.TokensGenerated(
                id=request.id, tokens=[0], text=token, draft_gain=script.draft_gain, draft_source=script.draft_source
            )
            if n_generated == script.pause_after_tokens:
                script.may_continue.wait()
            if n_generated <= script.n_fast_tokens:
                started_at = time.monotonic()
                continue
            remaining_s = started_at + (n_generated - script.n_fast_tokens) * script.token_interval_s - time.monotonic()
            if remaining_s > 0:
                time.sleep(remaining_s)
        elapsed_s = time.monotonic() - started_at
        decode_tps = n_generated / elapsed_s if script.token_interval_s else 0.0
        yield self._make_finished_event(request, n_prompt, n_generated, decode_tps)

    def cancel_sequences(self, target_id: int, sequences: Collection[int]) -> None:
        self._cancelled_sequences |= {(target_id, sequence) for sequence in sequences}

    def _generate_several(self, request: protocol.Generate, n_prompt: int) -> Iterator[protocol.AnyEvent]:
        """Yield the events of the next scripted replies, one token of each in turn, with a mean logprob of -1."""
        replies = {sequence: self._script.next_reply() for sequence in range(request.n_sequences)}
        n_generated = dict.fromkeys(replies, 0)
        while replies:
            self._script.may_continue.wait()
            for sequence, reply in list(replies.items()):
                reason: protocol.FinishReason = "stop"
                if request.id in self._cancelled or (request.id, sequence) in self._cancelled_sequences:
                    reason = "cancelled"
                elif reply:
                    text, replies[sequence] = reply[:CHARS_PER_TOKEN], reply[CHARS_PER_TOKEN:]
                    n_generated[sequence] += 1
                    yield protocol.TokensGenerated(id=request.id, tokens=[0], text=text, sequence=sequence)
                    continue
                del replies[sequence]
                yield protocol.SequenceFinished(
                    id=request.id, sequence=sequence, finish_reason=reason, completion_tokens=n_generated[sequence],
                    mean_logprob=-1.0,
                )  # fmt: skip
        yield self._make_finished_event(request, n_prompt, sum(n_generated.values()), 0.0)

    def _make_finished_event(
        self, request: protocol.Generate, n_prompt: int, n_generated: int, decode_tps: float
    ) -> protocol.RequestFinished:
        was_cancelled = request.id in self._cancelled
        stats = GenerationStats(
            prompt_tokens=n_prompt, cached_tokens=n_prompt // 2, completion_tokens=n_generated, ttft_s=0.0,
            prefill_tps=0.0, decode_tps=decode_tps,
        )  # fmt: skip
        return protocol.RequestFinished(
            id=request.id, finish_reason="cancelled" if was_cancelled else "stop", stats=stats,
            context_tokens=n_prompt + n_generated,
        )  # fmt: skip


class _ScriptedSource(EngineSource):
    """Source of the scripted replies of a second model."""

    def __init__(self, script: Script, name: str, store: Store, settings: Settings) -> None:
        model = LoadedModel()
        self._scripted_engine = model.engine = ScriptedEngine(script)
        super().__init__(
            model, Path(name), lambda: create_prompt_builder(model.builder, store, settings, name, think=None)
        )

    def open(self, settings: Settings, on_event: LoadCallback) -> None:  # noqa: ARG002
        self.model.set_model_properties(self._scripted_engine.load_scripted())


class _MainSource(EngineSource):
    """Source of the scripted replies of a session."""

    def open(self, settings: Settings, on_event: LoadCallback) -> None:  # noqa: ARG002
        self.model.set_model_properties(cast("ScriptedEngine", self.model.engine).load_scripted())


class ScriptedSession(Session):
    """Session that uses a `ScriptedEngine` instead of an engine process."""

    def __init__(
        self, store: Store, settings: Settings, script: Script, conversation: Conversation | None = None
    ) -> None:
        super().__init__(store, settings, Path("scripted.gguf"), conversation)
        self._scripted_engine = ScriptedEngine(script)
        self.model.engine = self._scripted_engine
        self.source = self._engine_source = _MainSource(self.model, self.model_path, self._create_prompt_builder)
        self.second_script = Script(["Another answer."])
        """Replies of every second model."""
        self.second.create_source = lambda target, store, settings: _ScriptedSource(
            self.second_script, target.name, store, settings
        )

    def _create_source(self, target: SingleTarget) -> ReplySource:
        if isinstance(target, Path):
            return _ScriptedSource(self.second_script, target.name, self.store, self.settings)
        return super()._create_source(target)

    def open(self, on_event: LoadCallback = lambda event: None) -> None:
        """Read the conversation without loading a model."""
        if self.source is not self._engine_source:
            super().open(on_event)
            return
        self.load_messages()
        self.model.set_model_properties(self._scripted_engine.load_scripted())
