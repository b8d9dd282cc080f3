"""The wrappers of llama.cpp's objects with a tiny random model: ownership, rewinding, sampling."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.config import Sampling
from edgechat.errors import EngineError, ModelFileError, RequestCancelledError, RuntimeLoadError
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.kv_memory import compute_states_bytes, layer_bytes
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.bindings import Bindings, load
from edgechat.runtime.context import Context, DecodeAborted
from edgechat.runtime.embedder import Embedder
from edgechat.runtime.memory_report import read_memory_breakdown
from edgechat.runtime.model import Model
from edgechat.runtime.sampler import Sampler
from tests.conftest import ROOT
from tests.models import CONTROL, KINDS, N_CTX, Kind, open_context, write_tiny, write_tiny_bert, write_tiny_llama


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def model(native: Bindings, tiny_path: Path) -> Model:
    return Model(native, tiny_path)


def small_context(model: Model) -> Context:
    return open_context(model, n_ctx=N_CTX, n_threads=2)


def greedy(context: Context, count: int = 20) -> list[int]:
    sampler = Sampler(context.model, Sampling(temperature=0))
    sampled = []
    for _ in range(count):
        sampled.append(sampler.sample(context))
        context.decode(sampled[-1:])
    return sampled


def test_best_module_is_built_for_this_machine(native: Bindings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "native"))
    import toolchain

    assert native.module.name.removeprefix("cpu-") in toolchain.host_variants().split(";")


class ScriptedThreadCount:
    """Chooses the numbers in `counts`, one after another."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = iter(counts)

    def choose(self) -> int:
        return next(self.counts)


def test_fewer_threads_compute_the_same_logits(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [300 + i for i in range(40)]
    plain, context = small_context(model), open_context(model, n_ctx=N_CTX, n_threads=4, adapts_n_threads=True)
    monkeypatch.setattr(context, "_thread_count", ScriptedThreadCount([2, 2, 3, 4]))
    llama = model.bindings.llama
    for batch, counts in (tokens, (2, 4)), (tokens[:1], (2, 2)), (tokens[1:2], (3, 3)), (tokens[2:3], (4, 4)):
        for each in plain, context:
            each.decode(batch)
        assert np.allclose(plain.logits(), context.logits(), rtol=1e-5, atol=1e-5)
        assert (llama.llama_n_threads(context.pointer), llama.llama_n_threads_batch(context.pointer)) == counts


def test_process_loads_only_one_backend(native: Bindings) -> None:
    bundle = find_bundle()
    assert load(bundle, native.module) is native
    other = next(m for m in bundle.modules if m != native.module)
    with pytest.raises(RuntimeLoadError, match="already uses the backend"):
        load(bundle, other)


def test_model_describes_itself(model: Model) -> None:
    assert model.n_ctx_train == N_CTX
    assert set(CONTROL) < set(model.control_tokens)
    assert model.adds_bos
    assert (model.bos, model.eos) == ("<s>", "</s>")
    assert model.chat_template is not None
    tokens = model.tokenize("the llama é", add_special=True, parse_special=False)
    assert tokens[0] == 1
    assert b"".join(map(model.token_to_piece, tokens)).decode().strip() == "the llama é"
    with_control = model.tokenize("<|user|>x", add_special=False, parse_special=True)
    assert with_control[0] == model.control_tokens["<|user|>"]


def test_rewound_context_repeats_its_output(model: Model) -> None:
    context = small_context(model)
    prompt = model.tokenize("an era in the heather", add_special=True, parse_special=False)
    context.decode(prompt)
    first = greedy(context)
    assert context.rewind(len(prompt) - 1) == len(prompt) - 1
    assert context.tokens() == prompt[:-1]
    context.decode(prompt[-1:])
    assert greedy(context) == first


def test_aborted_decode_leaves_the_context_unchanged(model: Model) -> None:
    context = small_context(model)
    context.decode([1, 300, 301])
    expected = greedy(context)
    context.rewind(0)
    context.decode([1, 300, 301])
    context.abort()
    with pytest.raises(DecodeAborted):
        context.decode([302] * 100)
    assert context.tokens() == [1, 300, 301]
    context.clear_abort()
    context.rewind(2)
    context.decode([301])
    assert greedy(context) == expected


def test_decode_beyond_the_context_is_an_error(model: Model) -> None:
    context = small_context(model)
    for tokens in ([], [5] * (N_CTX + 1)):
        with pytest.raises(EngineError):
            context.decode(tokens)
    context.decode([5] * N_CTX)
    with pytest.raises(EngineError):
        context.decode([5])
    assert len(context.tokens()) == N_CTX


class CallRecorder:
    """Records calls of llama.cpp's functions in order."""

    def __init__(self, native: Bindings, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.called: list[str] = []
        for name in names:
            monkeypatch.setattr(native.llama, name, self._wrap(name, getattr(native.llama, name)))

    def _wrap(self, name: str, function: Callable[[object], None]) -> Callable[[object], None]:
        def call(pointer: object) -> None:
            self.called.append(name)
            function(pointer)

        return call


def test_unreferenced_objects_are_freed_in_order(
    native: Bindings, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()  # frees the objects of other tests
    recorder = CallRecorder(native, monkeypatch, "llama_free", "llama_model_free")
    model = Model(native, tiny_path)
    context = small_context(model)
    del model
    gc.collect()
    assert recorder.called == []  # the context still references the model
    del context
    gc.collect()
    assert recorder.called == ["llama_free", "llama_model_free"]


def test_second_close_does_nothing(native: Bindings, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = CallRecorder(native, monkeypatch, "llama_free", "llama_model_free", "llama_sampler_free")
    model = Model(native, tiny_path)
    context, sampler = small_context(model), Sampler(model, Sampling())
    for owner in (sampler, context, model):
        owner.close()
        owner.close()
    assert recorder.called == ["llama_sampler_free", "llama_free", "llama_model_free"]
    context.abort()  # harmless after close


def test_memory_breakdown_lists_buffers(model: Model) -> None:
    breakdown = read_memory_breakdown(small_context(model))
    assert sum(b["model_bytes"] for b in breakdown.values()) >= model.size_bytes
    assert all(b["compute_bytes"] >= 0 for b in breakdown.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_ctx", "n_seqs", "n_rs_seq"), [(512, 1, 0), (2000, 4, 0), (1024, 3, 3)])
def test_context_memory_equals_the_planners_estimate(
    native: Bindings, tmp_path: Path, kind: Kind, n_ctx: int, n_seqs: int, n_rs_seq: int
) -> None:
    path = write_tiny(tmp_path / "m.gguf", kind)
    context = open_context(
        Model(native, path), n_ctx=n_ctx, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=n_seqs, n_rs_seq=n_rs_seq
    )
    real = sum(buffer["context_bytes"] for buffer in read_memory_breakdown(context).values())
    n_rs_seq = int(native.llama.llama_n_rs_seq(context.pointer))
    profile = ModelProfile.from_header(read_header(path))
    planned = sum(layer_bytes(profile, n_ctx, n_seqs=n_seqs + 1, n_ubatch=64))
    assert planned + n_rs_seq * compute_states_bytes(profile, n_seqs + 1) == real


def test_error_names_an_unknown_architecture(native: Bindings, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "odd.gguf", architecture="flux-capacitor")
    with pytest.raises(ModelFileError, match="flux-capacitor"):
        Model(native, path)


@pytest.mark.parametrize(
    "params",
    [
        Sampling(temperature=0),
        Sampling(top_k=1, temperature=5.0),
        Sampling(top_p=0.0, top_k=0, min_p=0.0),
        Sampling(min_p=1.0, top_k=0, top_p=1.0, temperature=3.0),
    ],
)
def test_sampling_with_one_candidate_is_greedy(model: Model, params: Sampling) -> None:
    context = small_context(model)
    context.decode([1, 300, 301])
    expected = Sampler(model, Sampling(temperature=0)).sample(context)
    assert Sampler(model, params).sample(context) == expected


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=100))
def test_argmax_returns_the_first_largest_logit(native: Bindings, logits: list[float]) -> None:
    array = (ctypes.c_float * len(logits))(*logits)
    assert native.edgechat.edgechat_argmax(array, len(logits)) == logits.index(max(logits))


def test_random_seed_is_chosen_without_a_seed(model: Model) -> None:
    seeds = {Sampler(model, Sampling()).seed for _ in range(5)}
    assert len(seeds) == 5


def test_embedding_can_be_aborted_and_computed_again(native: Bindings, tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(options=SimpleNamespace(n_ctx=64), n_threads=1, n_threads_batch=1)
    embedder = Embedder(Model(native, write_tiny_bert(tmp_path / "bert.gguf")), plan)
    embedding = embedder.embed([[2, 5, 6, 7, 3]])
    embedder.abort()
    with pytest.raises(RequestCancelledError):
        embedder.embed([[2, 5, 6, 7, 3]])
    embedder.clear_abort()
    assert embedder.embed([[2, 5, 6, 7, 3]]) == embedding
    embedder.close()
    embedder.abort()
