"""Speculation in an engine: what is kept of it between answers, and what is learned while nothing is asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.engine.protocol import Generate, Load
from edgechat.errors import EngineError
from edgechat.prefix.disk_tier import folder_name
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.runtime.suffix_index import SuffixIndex
from edgechat.speculation import profile
from edgechat.speculation.controller import DraftController
from edgechat.speculation.corpus import Corpus
from edgechat.speculation.drafter import LiveDrafter
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import MIN_SAMPLES, SIZES

# What is measured in idle moments is measured again after the first answer that ends so much later.
_REHEARSE_AGAIN_S: Final = 60.0
# No longer than this at a time: on a slow machine the rest waits for the next idle moment.
_REHEARSAL_S: Final = 10.0
# Steps of one token before each measured one: the first pays for the graph that is built anew.
_SINGLES: Final = 2
# Answers that wait to be kept, where a client leaves no idle moment.
_MAX_HEARD: Final = 16


class _Heard(msgspec.Struct, frozen=True):
    """What was said in a conversation, and waits to be kept."""

    folder: str
    quoted: list[str]
    answers: list[list[int]]


class Drafting:
    """Owns the indices and the profile of a loaded model. All methods are for the thread that decodes."""

    def __init__(self, context: Context, request: Load, backend: str) -> None:
        """Nothing is written if `request` names no directory. Raises MemoryError."""
        library = context.model.bindings.edgechat
        vocabulary = context.model.vocabulary_hash()
        folder = None
        if request.prefix_dir and request.plan.prefix_disk_bytes > 0:
            folder = Path(request.prefix_dir) / f"drafts-{vocabulary}"
        name = f"{folder_name(str(context.model.path))}-{backend}-{context.n_threads}.json"
        self._profile_path = folder / name if folder is not None else None
        self._profile = (
            profile.load_profile(self._profile_path) if self._profile_path is not None else profile.SpeculationProfile()
        )
        self._context = context
        self._sizes = [size for size in SIZES if size <= 1 + context.max_rollback]
        self._live = LiveDrafter(SuffixIndex(library, context.n_ctx))
        self._corpus = Corpus(
            lambda capacity: SuffixIndex(library, capacity), request.plan.draft_tokens, context.model.n_vocab, folder
        )
        self._corpus.load()
        self._is_changed = False
        self._is_idle_new = True
        self._heard: deque[_Heard] = deque(maxlen=_MAX_HEARD)
        self._rehearsed_s = float("-inf")
        self._rehearse_until_s = 0.0
        self._rehearsal: list[int] = []

    def speculator_for(self, request: Generate) -> Speculator | None:
        """What drafts for this answer; None if it is to be decoded plainly."""
        if request.conversation and not request.ephemeral:
            self._corpus.open_conversation(folder_name(request.conversation))
        if not request.speculate or request.n_sequences > 1 or not self._sizes:
            return None
        acceptance = self._profile.sampled if request.sampling.temperature > 0 else self._profile.greedy
        if request.conversation:
            self._is_changed = True
        else:
            acceptance = acceptance.copy()  # what is not kept teaches nothing
        is_end = self._context.model.is_eog if not request.ignore_eog else lambda _token: False
        return Speculator([self._live, self._corpus], DraftController(acceptance, self._profile.costs), is_end)

    def add_outputs(self, request: Generate, answers: Sequence[list[int]]) -> None:
        """These are the answers; what was asked beside a conversation, or only read, leaves nothing to do."""
        if request.ephemeral or not any(answers):
            return
        self._is_idle_new = True
        if request.conversation:
            self._heard.append(_Heard(folder_name(request.conversation), request.attached_texts, list(answers)))

    def step_costs(self) -> dict[int, float]:
        """What was measured of steps at the depth of the longest sequence, in steps of one token."""
        costs, depth = self._profile.costs, self._depth()
        return {n: costs.ratio(n, depth) for n in SIZES if costs.is_measured(n, depth)}

    def _deepest(self) -> int:
        return max(range(self._context.n_seqs), key=lambda seq: len(self._context.tokens(seq)))

    def _depth(self) -> int:
        return len(self._context.tokens(self._deepest()))

    # In idle moments

    def idle_step(self, allow_abort: Callable[[bool], None]) -> bool:
        """Do a little of what is to be done; False if there is nothing. Raises OSError, MemoryError, EdgechatError.

        `allow_abort` is told when `Context.abort` may end what is computed, and when no longer.
        """
        if self._heard:
            self._keep(self._heard.popleft())
            return True
        if self._is_idle_new:
            self._is_idle_new = False
            self._corpus.remove_deleted()
            self._plan_rehearsal()
            return True
        if self._corpus.save_one():
            return True
        if self._rehearsal and time.monotonic() < self._rehearse_until_s:
            return self._rehearse_one(allow_abort)
        if self._is_changed:
            self._is_changed = False
            self._save_profile()
        return False

    def _keep(self, heard: _Heard) -> None:
        for text in heard.quoted:
            self._corpus.add(heard.folder, self._context.model.tokenize(text, add_special=False, parse_special=False))
        for answer in heard.answers:
            self._corpus.add(heard.folder, answer)

    def _save_profile(self) -> None:
        if self._profile_path is not None:
            profile.save_profile(self._profile, self._profile_path)

    def _plan_rehearsal(self) -> None:
        """Measure now and then; what was never measured, until it can be trusted."""
        now_s = time.monotonic()
        self._rehearse_until_s = now_s + _REHEARSAL_S
        if not self._rehearsal and now_s - self._rehearsed_s >= _REHEARSE_AGAIN_S:
            self._rehearsed_s = now_s
            depth = self._depth()
            is_known = all(self._profile.costs.is_measured(n, depth) for n in self._sizes)
            self._rehearsal = self._sizes[::-1] * (1 if is_known else MIN_SAMPLES)

    def _rehearse_one(self, allow_abort: Callable[[bool], None]) -> bool:
        allow_abort(True)
        try:
            self._rehearse(self._rehearsal[-1])
            self._rehearsal.pop()
        except DecodeAborted:
            return False  # there is something to do; the rest waits
        except (NoKvSlotError, EngineError):
            self._rehearsal = []
        finally:
            allow_abort(False)
        return True

    def _rehearse(self, size: int) -> None:
        """Measure a step of this size, as if it came after what the longest sequence holds."""
        context, costs, seq = self._context, self._profile.costs, self._deepest()
        depth = len(context.tokens(seq))
        if depth + size > context.n_ctx:
            return
        tokens = ([*context.tokens(seq)[-size:]] or [0]) * size
        base = seq if depth else None
        for _ in range(_SINGLES):
            seconds = context.time_decode(tokens[:1], base)
        costs.record(1, depth, seconds, is_benchmark=True)
        costs.record(size, depth, context.time_decode(tokens[:size], base), is_benchmark=True)
        self._is_changed = True

    def finish(self, until_s: float) -> None:
        """Save what is not saved yet, as far as there is time. Raises as `idle_step` does."""
        while self._heard and time.monotonic() < until_s:
            self._keep(self._heard.popleft())
        while time.monotonic() < until_s and self._corpus.save_one():
            pass
        if self._is_changed:
            self._save_profile()
