"""One conversation with one model: what the command line and the terminal both stand on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from edgechat.chat import renderer
from edgechat.chat.messages import Message
from edgechat.chat.renderer import Prompt, Renderer
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import GenerationStats
from edgechat.errors import ContextOverflowError, EngineError, TemplateError
from edgechat.hardware.cpu import usable_threads
from edgechat.hardware.memory import read_memory
from edgechat.modelfile.gguf import read_header
from edgechat.planner.plan import LoadPlan, plan


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a user can choose for a conversation."""

    n_ctx: int | None = None
    n_threads: int | None = None
    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    system_prompt: str = ""


class Progressed(msgspec.Struct, frozen=True):
    """Something that takes time goes on."""

    phase: Literal["testing", "loading", "prefill"]
    words: str
    fraction: float | None = None
    context_tokens: int = 0
    """Tokens in the context so far, in the phase `prefill`."""


class TextAdded(msgspec.Struct, frozen=True):
    """More of the answer."""

    text: str
    n_tokens: int


class TurnEnded(msgspec.Struct, frozen=True):
    """The answer is complete, or was stopped."""

    finish_reason: Literal["stop", "length", "cancelled"]
    stats: GenerationStats
    context_tokens: int


SessionEvent = Progressed | TextAdded | TurnEnded
Listener = Callable[[Progressed], None]


class Session:
    """A conversation: call `open` once, then `send` for each turn, and `close` at the end.

    `messages` holds every word that was said, also of answers that were stopped or cut off.
    """

    def __init__(self, model_path: Path, options: Options) -> None:
        self.model_path = model_path
        self.options = options
        self.messages: list[Message] = []
        if options.system_prompt:
            self.messages.append(Message("system", options.system_prompt))
        self.engine = EngineClient()
        self._renderer = Renderer()
        self.plan: LoadPlan | None = None
        self.warnings: list[str] = []
        self._running: int | None = None
        self._stop_asked = False

    @property
    def loaded(self) -> protocol.Loaded | None:
        """What the engine said of the model; None until it is loaded."""
        return self.engine.loaded

    def open(self, listen: Listener = lambda event: None) -> protocol.Loaded:
        """Check the model file, plan, and load it. Raises EdgechatError."""
        header = read_header(self.model_path)
        # Both processes start up while this one reads on.
        self.engine.start()
        self._renderer.start()
        self.plan = plan(
            header,
            available_bytes=read_memory().available_bytes,
            n_threads=self._threads(),
            n_ctx=self.options.n_ctx,
        )
        loaded = self.engine.load(_load_request(self.engine.next_id(), self.plan), lambda e: _tell(e, listen))
        if loaded.chat_template is None:
            self.warnings.append(
                f"{self.model_path.name} has no chat template: using the format {renderer.PLAIN_NAME!r}, "
                "which it may not have been trained for"
            )
        return loaded

    def _threads(self) -> int:
        wanted, most = self.options.n_threads, os.cpu_count() or 1
        if wanted is None:
            return usable_threads()
        if wanted > most:  # threads that wait for each other without a core each take minutes for a word
            self.warnings.append(f"{wanted} threads are more than the {most} of this machine: using {most}")
        return min(wanted, most)

    def send(self, text: str) -> Iterator[SessionEvent]:
        """Say something and yield the answer as it comes; the last event is TurnEnded.

        The message stays in the conversation, and so does what was answered before a stop, an error, or the end
        of the iteration. Only a message that the model cannot be asked (ContextOverflowError, TemplateError) is
        taken back: with it in the conversation, no later one could be asked either. Raises EdgechatError.
        """
        self.messages.append(Message("user", text))
        asked = True
        answer: list[str] = []
        complete = False
        try:
            for event in self._answer():
                if isinstance(event, TextAdded):
                    answer.append(event.text)
                elif isinstance(event, TurnEnded):
                    complete = event.finish_reason != "cancelled"
                yield event
        except (ContextOverflowError, TemplateError):
            asked = False
            self.messages.pop()
            raise
        finally:
            if self._running is not None and not complete:
                self.engine.cancel(self._running)
            self._running = None
            self._stop_asked = False
            if asked:  # even if nothing was said: many templates insist that turns alternate
                self.messages.append(Message("assistant", "".join(answer), interrupted=not complete))

    def stop(self) -> None:
        """Stop the answer that is coming, also before its first word; from any thread."""
        self._stop_asked = True
        running = self._running
        if running is not None:
            self.engine.cancel(running)

    def close(self) -> None:
        """End the processes behind this conversation."""
        self.engine.close()
        self._renderer.close()

    def _answer(self) -> Iterator[SessionEvent]:
        started = time.monotonic()
        loaded = self.loaded
        if loaded is None:
            raise EngineError("the conversation is not open yet")
        if self.engine.needs_revival:
            yield Progressed("loading", "starting a fresh engine")
            self.engine.revive()
        prompt = self._render(loaded)
        request = self._request(prompt)
        self._running = request.id
        if self._stop_asked:
            self.engine.cancel(request.id)
        stop = renderer.PLAIN_STOP if loaded.chat_template is None else ""
        handed_over = 0.0
        for event in _until(self.engine.generate(request), stop, lambda: self.engine.cancel(request.id)):
            if isinstance(event, protocol.PrefillProgressed):
                words = f"reading {event.done_tokens} of {event.total_tokens} tokens"
                fraction = event.done_tokens / event.total_tokens
                yield Progressed("prefill", words, fraction, event.done_tokens)
            elif isinstance(event, protocol.TokensGenerated):
                handed_over = handed_over or time.monotonic()
                yield TextAdded(event.text, len(event.tokens))
            elif isinstance(event, protocol.TurnFinished):
                # As the user sees it: rendering and both pipes included.
                ttft_s = (handed_over or time.monotonic()) - started
                stats = msgspec.structs.replace(event.stats, ttft_s=ttft_s)
                yield TurnEnded(event.finish_reason, stats, event.context_tokens)

    def _render(self, loaded: protocol.Loaded) -> Prompt:
        return self._renderer.render(
            loaded.chat_template or renderer.PLAIN_TEMPLATE, self.messages,
            bos=loaded.bos, eos=loaded.eos, control_tokens=loaded.control_tokens,
        )  # fmt: skip

    def _request(self, prompt: Prompt) -> protocol.Generate:
        options = self.options
        return protocol.Generate(
            id=self.engine.next_id(), text=prompt.text, guard=prompt.guard, max_tokens=options.max_tokens,
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p,
            repeat_penalty=options.repeat_penalty, seed=options.seed,
        )  # fmt: skip


def _load_request(request_id: int, chosen: LoadPlan) -> protocol.Load:
    return protocol.Load(
        id=request_id, path=chosen.model_path, n_ctx=chosen.n_ctx, n_threads=chosen.n_threads,
        n_batch=chosen.n_batch, n_ubatch=chosen.n_ubatch, use_mmap=chosen.use_mmap,
        use_extra_bufts=chosen.use_extra_bufts,
    )  # fmt: skip


def _tell(event: protocol.AnyEvent, listen: Listener) -> None:
    if isinstance(event, protocol.BackendTesting):
        listen(Progressed("testing", event.words))
    elif isinstance(event, protocol.LoadProgressed):
        listen(Progressed("loading", f"loading the model: {event.fraction:.0%}", event.fraction))


def _until(events: Iterator[protocol.AnyEvent], stop: str, cancel: Callable[[], None]) -> Iterator[protocol.AnyEvent]:
    """The events, with the text cut off where `stop` begins; "" cuts nothing."""
    if not stop:
        yield from events
        return
    held, stopped = "", False
    for event in events:
        if isinstance(event, protocol.TokensGenerated):
            if stopped:
                continue
            held += event.text
            found = held.find(stop)
            if found >= 0:
                stopped = True
                cancel()
                keep = found
            else:
                keep = len(held) - _overlap(held, stop)
            text, held = held[:keep], held[keep:]
            if text:
                yield msgspec.structs.replace(event, text=text)
        elif isinstance(event, protocol.TurnFinished):
            if held and not stopped:
                yield protocol.TokensGenerated(id=event.id, text=held, tokens=[])
            yield msgspec.structs.replace(event, finish_reason="stop") if stopped else event
        else:
            yield event


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` could be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
