"""Sources of drafts: the kinds of model drafters, their files, and the sizes of their contexts."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.errors import ModelFileError, PlanError
from edgechat.modelfile.checks import check_header
from edgechat.modelfile.draft_check import find_draft_problem
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.heads import read_heads
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.drafter_plan import EAGLE3_UBATCH, DrafterKind, DrafterPlan
from edgechat.planner.kv_memory import round_up_to_cells
from edgechat.planner.mapped_file import list_unused_ranges
from edgechat.planner.memory import LoadOptions
from edgechat.runtime.bindings import DraftLayout
from edgechat.runtime.context import Context, DecodeAborted
from edgechat.runtime.drafter_context import DrafterContext, DrafterShape
from edgechat.runtime.hidden_rows import HiddenRows
from edgechat.runtime.model import Model, OnLoadProgress


class DrafterSource:
    """Model of a drafter, and the sizes of its context."""

    shares_weights = False
    """True if the weights are those of the target's model."""
    shares_cells = False
    """True if the drafter reads the cells of the target, and has none of its own."""

    def __init__(self, target: Context, plan: DrafterPlan, on_progress: OnLoadProgress) -> None:
        """Check the file. Raises PlanError and ModelFileError if it cannot be used or does not match the target."""
        self.target = target
        self.plan = plan
        self._on_progress = on_progress
        self._model: Model | None = None
        self.check(read_header(target.model.path))

    def check(self, target_header: ModelHeader) -> None:
        """Raise PlanError or ModelFileError if the file cannot be used or does not match the target."""
        raise NotImplementedError

    def _read_header(self) -> ModelHeader:
        header = read_header(Path(self.plan.model_path))
        check_header(header)
        return header

    @property
    def model(self) -> Model:
        """The loaded model."""
        assert self._model is not None  # noqa: S101  (`load` sets it)
        return self._model

    def load(self) -> None:
        """Load the model of the drafter, unless it is loaded. Raises PlanError, and DecodeAborted after an abort."""
        if self._model is None:
            target_options, path = self.target.options, Path(self.plan.model_path)
            options = LoadOptions(
                n_ctx=0, n_seqs=0, use_mmap=target_options.use_mmap, use_extra_bufts=target_options.use_extra_bufts,
                n_gpu_layers=target_options.n_gpu_layers,
            )  # fmt: skip
            try:
                unused_ranges = list_unused_ranges(ModelProfile.from_header(read_header(path)), options)
                self._model = Model(
                    self.target.model.bindings, path, options, is_drafter=True, unused_ranges=unused_ranges,
                    on_progress=lambda fraction: self._on_progress(fraction) and not self.target.is_aborted,
                )  # fmt: skip
            except ModelFileError as error:
                if self.target.is_aborted:
                    raise DecodeAborted from error
                raise PlanError(str(error)) from error

    def unload(self) -> None:
        """Free the model of the drafter. A second call does nothing."""
        if self._model is not None:
            self._model.close()
        self._model = None

    @property
    def has_state(self) -> bool:
        """True if the drafter has a recurrent state, from which tokens cannot be removed."""
        return False

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens in a draft."""
        return self.plan.max_tokens

    @property
    def shape(self) -> DrafterShape:
        """Sizes of the context."""
        n_seqs = self.plan.n_seqs * (2 if self.has_state else 1)
        return DrafterShape(
            n_ctx=round_up_to_cells(self.plan.n_cells * self.plan.n_seqs), n_seqs=n_seqs,
            n_batch=max(self.plan.n_ubatch, n_seqs), n_outputs=n_seqs,
        )  # fmt: skip

    @property
    def n_row(self) -> int:
        """Width of the hidden rows that come with the tokens; 0 without."""
        return 0

    @property
    def layout(self) -> DraftLayout:
        """Order of the drafter's batches."""
        n_vocab = min(self.model.n_vocab, self.target.model.n_vocab)
        return DraftLayout(n_vocab=n_vocab, n_row=self.n_row, n_heads=1)

    def make_rows(self) -> HiddenRows | None:
        """Return a new store for the hidden rows of the target that the drafter needs."""
        return None

    def encode(self, context: DrafterContext, rows: bytes) -> bytes:
        """Convert hidden rows of the target to those that come with the tokens. Raises as `DrafterContext.draft`."""
        del context
        return rows

    def replace_unknown(self, tokens: list[int]) -> list[int]:
        """Replace tokens that the drafter's vocabulary lacks; vocabularies may differ in some tokens at their end."""
        n_vocab = self.model.n_vocab
        return tokens if max(tokens) < n_vocab else [token if token < n_vocab else 0 for token in tokens]


class DraftModel(DrafterSource):
    """A smaller model with the vocabulary of the target."""

    def check(self, target_header: ModelHeader) -> None:
        header = self._read_header()
        if header.kind != "model":
            raise PlanError(f"{header.path} does not generate text. Choose another draft model.")
        if problem := find_draft_problem(header, target_header):
            raise PlanError(f"{header.path} cannot draft for {target_header.path}: it {problem}.")

    def load(self) -> None:
        super().load()
        llama, pointer = self.model.bindings.llama, self.model.pointer
        if (
            llama.llama_model_has_encoder(pointer) or not llama.llama_model_has_decoder(pointer)
            or llama.llama_model_is_diffusion(pointer)
        ):  # fmt: skip
            raise PlanError(f"{self.plan.model_path} does not generate text. Choose another draft model.")

    @property
    def has_state(self) -> bool:
        llama, pointer = self.model.bindings.llama, self.model.pointer
        return bool(llama.llama_model_is_recurrent(pointer) or llama.llama_model_is_hybrid(pointer))


class PredictionHeads(DrafterSource):
    """Prediction layers (MTP) in the file of the target."""

    shares_weights = True

    def check(self, target_header: ModelHeader) -> None:
        heads, path = read_heads(target_header), target_header.path
        if heads is None:
            raise PlanError(f"{path} has no prediction heads. Choose another drafter, or none.")
        if heads.problem:
            raise PlanError(f"{path} {heads.problem}. Choose another drafter, or none.")
        if not self.target.model.has_mtp:
            raise PlanError(f"{path} was loaded without its prediction heads. Load it again.")

    @property
    def model(self) -> Model:
        return self.target.model

    def load(self) -> None:
        """Do nothing: the heads were loaded with the target."""

    @property
    def _n_heads(self) -> int:
        return int(self.model.bindings.llama.llama_model_n_layer_nextn(self.model.pointer))

    @property
    def max_tokens(self) -> int:
        return self.plan.max_tokens if self._n_heads == 1 else min(self.plan.max_tokens, self._n_heads)

    @property
    def n_row(self) -> int:
        return int(self.model.bindings.llama.llama_model_n_embd_out(self.model.pointer))

    @property
    def shape(self) -> DrafterShape:
        # Each of several heads computes all draft tokens before it again.
        n_outputs = self.plan.n_seqs * (1 if self._n_heads == 1 else 1 + self.max_tokens)
        return msgspec.structs.replace(super().shape, n_outputs=n_outputs, is_mtp=True)

    @property
    def layout(self) -> DraftLayout:
        return DraftLayout(
            n_vocab=self.model.n_vocab, n_row=self.n_row, n_heads=self._n_heads, has_separate_outputs=1
        )  # fmt: skip

    def make_rows(self) -> HiddenRows:
        return HiddenRows(self.model.bindings, self.n_row)


class Eagle3Head(DrafterSource):
    """An EAGLE-3 head, which reads the inputs of three layers of the target."""

    def check(self, target_header: ModelHeader) -> None:
        _check_heads(self._read_header(), target_header, "eagle3")

    @property
    def n_row(self) -> int:
        return self.model.n_embd

    @property
    def _n_features(self) -> int:
        return len(self._layers) * self.target.model.n_embd

    @property
    def _layers(self) -> Sequence[int]:
        layers = (ctypes.c_int32 * 3)()
        count = self.model.bindings.edgechat.edgechat_target_layers(self.model.pointer, layers, len(layers))
        return layers[:count]

    @property
    def shape(self) -> DrafterShape:
        n_batch = max(min(self.plan.n_ubatch, EAGLE3_UBATCH), self.plan.n_seqs)
        return DrafterShape(
            n_ctx=round_up_to_cells(self.plan.n_cells * self.plan.n_seqs), n_seqs=self.plan.n_seqs,
            n_batch=n_batch, n_outputs=n_batch, reads_target=True,
        )  # fmt: skip

    @property
    def layout(self) -> DraftLayout:
        n_vocab = min(self.model.n_vocab, self.target.model.n_vocab)
        return DraftLayout(n_vocab=n_vocab, n_row=self.n_row, n_heads=1, has_separate_outputs=1)

    def make_rows(self) -> HiddenRows:
        return HiddenRows(self.model.bindings, self._n_features, self._layers)

    def encode(self, context: DrafterContext, rows: bytes) -> bytes:
        return context.encode(rows, self._n_features, self.n_row)


class Gemma4Assistant(DrafterSource):
    """The assistant of a Gemma 4 model, which reads the KV cache of the target and has none of its own."""

    shares_cells = True

    def check(self, target_header: ModelHeader) -> None:
        _check_heads(self._read_header(), target_header, "assistant")

    @property
    def n_row(self) -> int:
        return int(self.model.bindings.llama.llama_model_n_embd_out(self.model.pointer))

    @property
    def shape(self) -> DrafterShape:
        n_seqs = self.target.n_seqs + 1
        return DrafterShape(
            n_ctx=self.target.n_ctx, n_seqs=n_seqs, n_batch=max(EAGLE3_UBATCH, n_seqs), n_outputs=n_seqs,
            reads_target=True, shares_cells=True,
        )  # fmt: skip

    @property
    def layout(self) -> DraftLayout:
        n_vocab = min(self.model.n_vocab, self.target.model.n_vocab)
        return DraftLayout(n_vocab=n_vocab, n_row=self.n_row, n_heads=1, has_fixed_position=1)

    def make_rows(self) -> HiddenRows:
        return HiddenRows(self.model.bindings, self.n_row)


_SOURCES: Final[dict[DrafterKind, type[DrafterSource]]] = {
    "draft-model": DraftModel, "mtp": PredictionHeads, "eagle3": Eagle3Head, "assistant": Gemma4Assistant,
}  # fmt: skip


def make_source(target: Context, plan: DrafterPlan, on_progress: OnLoadProgress) -> DrafterSource:
    """Return the source of the drafter of `plan`, whose model is not loaded yet.

    Raises PlanError if its file cannot be used, or does not match the model of `target`.
    """
    try:
        return _SOURCES[plan.kind](target, plan, on_progress)
    except ModelFileError as error:
        raise PlanError(str(error)) from error


def _check_heads(header: ModelHeader, target_header: ModelHeader, kind: str) -> None:
    """Raise PlanError unless `header` is that of a file of heads for the target."""
    heads = read_heads(header)
    if heads is None or heads.kind != kind:
        raise PlanError(f"{header.path} contains no heads of the kind {kind}. Choose another file of heads.")
    if problem := find_draft_problem(header, target_header):
        raise PlanError(f"{header.path} {problem}. Choose another file of heads.")
