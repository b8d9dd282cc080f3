"""Speculation in an engine: what is kept of it between answers, and what is learned while nothing is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgechat.engine.protocol import Generate, Load
from edgechat.errors import EngineError
from edgechat.prefix.disk import folder_name
from edgechat.runtime.context import Context, DecodeAborted, NoRoom
from edgechat.runtime.suffix import SuffixIndex
from edgechat.speculation import profile
from edgechat.speculation.controller import Controller
from edgechat.speculation.corpus import Corpus
from edgechat.speculation.cost import ENOUGH, SIZES
from edgechat.speculation.drafter import LiveDrafter
from edgechat.speculation.speculator import Speculator

# What is measured in idle moments is measured again after the first answer that ends so much later.
_REHEARSE_AGAIN_S: Final = 60.0
# Steps of one token before and after each measured one; a graph that is built anew is a part of what a draft costs.
_SINGLES: Final = 2


class Speculation:
    """Owns the indices and the profile of a loaded model. All methods are for the thread that decodes."""

    def __init__(self, context: Context, request: Load, backend: str) -> None:
        """Nothing is written if `request` names no directory. Raises MemoryError."""
        library = context.model.bindings.edgechat
        vocabulary = context.model.vocabulary_hash()
        folder = (
            Path(request.prefix_dir) / f"drafts-{vocabulary}"
            if request.prefix_dir and request.prefix_disk_bytes > 0
            else None
        )
        name = f"{folder_name(str(context.model.path))}-{backend}-{context.n_threads}.json"
        self._profile_path = folder / name if folder is not None else None
        self._profile = profile.load(self._profile_path) if self._profile_path is not None else profile.Profile()
        self._context = context
        self._live = LiveDrafter(SuffixIndex(library, context.n_ctx))
        self._corpus = Corpus(
            lambda capacity: SuffixIndex(library, capacity), request.draft_tokens, context.model.n_vocab, folder
        )
        self._corpus.load()
        self._is_changed = False
        self._has_heard = True
        self._heard: list[tuple[Generate, Sequence[Sequence[int]]]] = []
        self._rehearsed_s = float("-inf")
        self._rehearsal: list[int] = []

    def for_request(self, request: Generate) -> Speculator | None:
        """What drafts for this answer; None if it is to be decoded plainly."""
        if not request.speculate or request.n_samples > 1 or not self._context.max_undo:
            return None
        is_end = self._context.model.is_eog if not request.ignore_eog else lambda _token: False
        drawn = request.sampling.temperature > 0
        acceptance = self._profile.drawn if drawn else self._profile.greedy
        self._is_changed = True
        return Speculator([self._live, self._corpus], Controller(acceptance, self._profile.costs), is_end)

    def heard(self, request: Generate, texts: Sequence[Sequence[int]]) -> None:
        """This was answered."""
        self._has_heard = True
        if request.conversation and not request.is_aside:
            self._heard.append((request, texts))

    def step_costs(self) -> dict[int, float]:
        """What was measured of steps at the depth of the longest sequence, in steps of one token."""
        costs, depth = self._profile.costs, self._depth()
        return {n: costs.ratio(n, depth) for n in SIZES if costs.is_known(n, depth)}

    # In idle moments

    def _begin_idle(self) -> None:
        """An answer ended: there is something to keep, and perhaps to measure."""
        self._keep_heard()
        self._corpus.forget_deleted()
        if self._context.max_undo and time.monotonic() - self._rehearsed_s >= _REHEARSE_AGAIN_S:
            self._rehearsal = [size for size in SIZES if size <= 1 + self._context.max_undo] * self._repeats()

    def _keep_heard(self) -> None:
        for request, texts in self._heard:
            conversation = folder_name(request.conversation)
            for quoted in request.quoted:
                self._corpus.add(
                    conversation, self._context.model.tokenize(quoted, add_special=False, parse_special=False)
                )
            for text in texts:
                self._corpus.add(conversation, text)
        self._heard = []

    def _repeats(self) -> int:
        """What was never measured is measured until it can be trusted."""
        depth, costs = self._depth(), self._profile.costs
        return 1 if all(costs.is_known(n, depth) for n in SIZES if n <= 1 + self._context.max_undo) else ENOUGH

    def _deepest(self) -> int:
        return max(range(self._context.n_seqs), key=lambda seq: len(self._context.tokens(seq)))

    def _depth(self) -> int:
        return len(self._context.tokens(self._deepest()))

    def idle_step(self, allowed: Callable[[bool], None]) -> bool:
        """Do a little of what is to be done; False if there is nothing.

        `allowed` is told when `Context.abort` may end what is computed, and when no longer.
        """
        if self._has_heard:
            self._has_heard = False
            self._begin_idle()
            return True
        if self._corpus.save_some():
            return True
        if self._rehearsal:
            allowed(True)
            try:
                self._rehearse(self._rehearsal[-1])
                self._rehearsal.pop()
            except DecodeAborted:
                return False  # there is something to do; the rest waits
            except (NoRoom, EngineError):
                self._rehearsal = []
            finally:
                allowed(False)
            if not self._rehearsal:
                self._rehearsed_s = time.monotonic()
            return True
        if self._is_changed and self._profile_path is not None:
            self._is_changed = False
            profile.save(self._profile, self._profile_path)
        return False

    def _rehearse(self, size: int) -> None:
        """Measure a step of this size, as if it came after what the longest sequence holds."""
        context, costs, seq = self._context, self._profile.costs, self._deepest()
        depth = len(context.tokens(seq))
        if depth + size + 1 > context.n_ctx:
            return
        tokens = [*context.tokens(seq)[-size:]] or [0]
        tokens = (tokens * size)[:size]
        for _ in range(_SINGLES):
            seconds = context.rehearse(tokens[:1], seq if depth else None)
        costs.measured(1, depth, seconds)
        costs.measured(size, depth, context.rehearse(tokens, seq if depth else None))
        self._is_changed = True

    def finish(self) -> None:
        """Save what is not saved yet."""
        self._keep_heard()
        while self._corpus.save_some():
            pass
        if self._is_changed and self._profile_path is not None:
            profile.save(self._profile, self._profile_path)
