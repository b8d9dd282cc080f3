"""Tiny targets with their model drafters, and comparisons of their replies with those of the target alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from edgechat.config import GREEDY
from edgechat.engine.generation import GenerationStats
from edgechat.engine.protocol import RequestFinished
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.model_drafter import open_model_drafter
from edgechat.speculation.batch_speculator import BatchSpeculator
from edgechat.speculation.calibration import Calibration
from edgechat.speculation.drafter import FROM_MODEL, SOURCE_NAMES
from edgechat.speculation.model_choice import ModelCandidate, ModelChoice
from edgechat.speculation.model_source import ModelSource
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import StepCosts
from tests.draft_models import copy_truth_to_eagle3, copy_truth_to_heads, make_eagle3, make_llama, turn_into_chain
from tests.engine.text_models import ROUNDING, SteppedModel
from tests.gemma_drafts import copy_truth_to_assistant, make_assistant, make_gemma4
from tests.models import write_tiny
from tests.nextn_models import make_nextn
from tests.tiny_files import TinyFile

if TYPE_CHECKING:
    from typing_extensions import Self

# Largest difference of a single logprob: two of 1,000 Gemma 4 with noise had one above `ROUNDING`, of 0.03 at most.
_MAX_SINGLE_ROUNDING: Final = 2.5 * ROUNDING

PairKind = Literal[
    "hybrid with head", "dense with head", "Mamba with head", "three heads", "EAGLE-3", "draft model",
    "recurrent draft model", "hybrid pair", "assistant",
]  # fmt: skip
PAIR_KINDS: Final[tuple[PairKind, ...]] = (
    "hybrid with head", "dense with head", "Mamba with head", "three heads", "EAGLE-3", "draft model",
    "recurrent draft model", "hybrid pair", "assistant",
)  # fmt: skip
# Drafts of these can be made to be always right.
PERFECT_KINDS: Final[tuple[PairKind, ...]] = tuple(
    kind for kind in PAIR_KINDS if kind not in ("recurrent draft model", "hybrid pair")
)
_NEXTN: Final[dict[PairKind, tuple[str, int]]] = {
    "hybrid with head": ("qwen35", 1), "dense with head": ("glm4moe", 1), "Mamba with head": ("nemotron_h_moe", 1),
    "three heads": ("step35", 3),
}  # fmt: skip
# Factor of what random layers add to a chain, so that a part of the drafts of a head that knows the chain is right.
NOISE: Final = 0.2


class DraftedPair:
    """A target and the plan of its drafter."""

    def __init__(self, kind: PairKind, directory: Path, seed: int = 0, noise: float = NOISE) -> None:
        """Write the files. Without `noise`, all drafts are right, if `kind` is one of `PERFECT_KINDS`."""
        self.kind = kind
        self._noise = noise
        self.target = directory / f"target{seed}.gguf"
        self.draft = directory / f"draft{seed}.gguf"
        if kind in _NEXTN:
            architecture, n_heads = _NEXTN[kind]
            copy_truth_to_heads(self._chain(make_nextn(architecture, seed, n_heads=n_heads))).write(self.target)
            self.plan = DrafterPlan(kind="mtp", n_seqs=4)
        elif kind == "EAGLE-3":
            self._chain(make_llama(seed, n_layer=4)).write(self.target)
            copy_truth_to_eagle3(make_eagle3(seed)).write(self.draft)
            self.plan = DrafterPlan(kind="eagle3", model_path=str(self.draft), n_seqs=4)
        elif kind == "assistant":
            self._chain(make_gemma4(seed)).write(self.target)
            copy_truth_to_assistant(make_assistant(seed)).write(self.draft)
            self.plan = DrafterPlan(kind="assistant", model_path=str(self.draft), n_seqs=4)
        else:
            self._write_models(seed)
            self.plan = DrafterPlan(kind="draft-model", model_path=str(self.draft), n_seqs=4)

    def _chain(self, file: TinyFile) -> TinyFile:
        return turn_into_chain(file, noise=self._noise)

    def _write_models(self, seed: int) -> None:
        if self.kind == "hybrid pair":  # the same model: all drafts are right but for rounding
            write_tiny(self.target, "hybrid", seed=seed)
            write_tiny(self.draft, "hybrid", seed=seed)
            return
        self._chain(make_llama(seed)).write(self.target)
        if self.kind == "recurrent draft model":
            write_tiny(self.draft, "mamba", seed=seed)
        else:
            turn_into_chain(make_llama(seed + 1000, n_layer=1)).write(self.draft)

    def open(self, native: Bindings, *, has_drafter: bool = True, **options: Any) -> SteppedModel:
        """Load the target, with its drafter unless `has_drafter` is False."""
        defaults: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "n_rs_seq": 7, "draft_tokens": 1000}
        options = {**defaults, "open_drafter": open_model_drafter} | options
        return SteppedModel(native, self.target, drafter=self.plan if has_drafter else None, **options)


def count_model_drafts(stats: GenerationStats) -> tuple[int, int]:
    """Return how many tokens the model drafted for a reply, and how many of them were accepted."""
    if isinstance(stats.drafts_by_source, msgspec.UnsetType):
        return 0, 0
    counts = stats.drafts_by_source.get(SOURCE_NAMES[FROM_MODEL])
    return (counts.n_drafted, counts.n_accepted) if counts is not None else (0, 0)


class Comparison:
    """The same requests to a target with its drafter, and to the target alone."""

    def __init__(self, native: Bindings, pair: DraftedPair, **options: Any) -> None:
        self._open: Callable[[bool], SteppedModel] = lambda has: pair.open(native, has_drafter=has, **options)
        self.kind = pair.plan.kind
        self.reopen()
        self.n_drafted = self.n_accepted = self.n_replies = 0
        self.n_rounded = 0
        """Number of sampled replies that differ, perhaps because of a rounding difference."""

    def reopen(self) -> None:
        """Load both again, as after a restart of the engine."""
        self.drafted, self.plain = self._open(True), self._open(False)
        assert self.drafted.model.drafter == self.kind, self.drafted.model.drafter_error

    def close(self) -> None:
        assert self.drafted.model.drafter_error == ""
        for model in (self.drafted, self.plain):
            model.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        if kind is None:
            self.close()

    def ask(self, prompt: list[int], **fields: Any) -> list[int]:
        """Generate a reply with both, compare them, and return it."""
        [tokens] = self.ask_all([prompt], **fields)
        return tokens

    def ask_all(self, prompts: Sequence[list[int]], **fields: Any) -> list[list[int]]:
        """Generate replies to several prompts at the same time, compare them, and return those to the last prompt."""
        fields = {"max_tokens": 60, "n_logprobs": 1} | fields
        ids = [[model.start(prompt, **fields) for prompt in prompts] for model in (self.drafted, self.plain)]
        for model in (self.drafted, self.plain):
            model.finish()
        replies: list[list[int]] = []
        for prompt, drafted_id, plain_id in zip(prompts, *ids, strict=True):
            finals = self.drafted.final(drafted_id), self.plain.final(plain_id)
            assert all(isinstance(final, RequestFinished) for final in finals), finals
            n_drafted, n_accepted = count_model_drafts(finals[0].stats)
            self.n_drafted += n_drafted
            self.n_accepted += n_accepted
            assert count_model_drafts(finals[1].stats) == (0, 0)
            replies = []
            for i in range(fields.get("n_sequences", 1)):
                tokens, expected = self.drafted.tokens(drafted_id, i), self.plain.tokens(plain_id, i)
                self._check(prompt, tokens, self.drafted.logprobs(drafted_id, i), expected, fields)
                if tokens == expected and fields.get("n_sequences", 1) == 1:
                    assert finals[0].finish_reason == finals[1].finish_reason
                    assert finals[0].context_tokens == finals[1].context_tokens
                replies.append(tokens)
        return replies

    def _check(
        self, prompt: list[int], tokens: list[int], logprobs: list[float], expected: list[int], fields: dict[str, Any]
    ) -> None:
        """Compare a reply with that of the target alone, `expected`, and its logprobs with those of its tokens there.

        The logprobs show damage to the state of the target, also where it did not change a token. Damage stays until
        the end of the text; a rounding difference above the usual ones does not.
        """
        self.n_replies += 1
        bias = {"logit_bias": fields["logit_bias"]} if "logit_bias" in fields else {}
        forced: dict[str, Any] = {
            "forced_tokens": tokens,
            "max_tokens": len(tokens),
            "n_logprobs": 1,
            "ephemeral": True,
        }
        request_id = self.plain.start(prompt, speculate=False, **forced, **bias)
        self.plain.finish()
        differences = [abs(a - b) for a, b in zip(logprobs, self.plain.logprobs(request_id), strict=True)]
        n_larger = sum(difference >= ROUNDING for difference in differences)
        assert n_larger <= (self.kind == "assistant"), differences
        assert max(differences, default=0.0) < _MAX_SINGLE_ROUNDING, differences
        if tokens == expected:
            return
        is_greedy = fields.get("sampling", GREEDY).temperature == 0 and not fields.get("grammars")
        if is_greedy:  # it differs where two tokens have the same logit but for rounding
            assert self.plain.find_difference(prompt, tokens, speculate=False, **bias) is None
        else:
            self.n_rounded += 1


def make_models_eager(set_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """Let every model drafter draft as much as it can in every step, whatever that costs on this machine."""

    def choose(
        self: ModelSource, candidates: list[ModelCandidate], *_args: object, **_options: object
    ) -> ModelChoice | None:
        return (
            ModelChoice(self._drafter.max_tokens, 1000, 9.0, pays=True)
            if self.is_usable and not self.is_asleep
            else None
        )

    set_attribute(ModelSource, "choose", choose)
    set_attribute(ModelSource, "record_tokens", lambda self, n_tokens: None)
    set_attribute(StepCosts, "ratio", lambda self, size, depth: 1.0)
    set_attribute(StepCosts, "needs_single_step", False)
    set_attribute(Speculator, "compute_draft_cost", lambda self, depth: 0.0)
    set_attribute(BatchSpeculator, "_compute_draft_cost", lambda self, costs, depth: 0.0)
    set_attribute(Calibration, "find_min_probability", lambda self, rate: 0.0)
