"""Resizes of the context of a model: after a loss, under a refusal, and with saved prefixes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgechat.engine import protocol
from edgechat.errors import EngineError
from edgechat.hardware.free_memory import FreeMemory
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.bindings import Bindings
from tests.engine.text_models import SteppedModel
from tests.models import growth, write_tiny

MIB = 1 << 20


@pytest.fixture
def model(native: Bindings, tmp_path: Path) -> Iterator[SteppedModel]:
    """Open a model whose cells need 64 KiB each."""
    stepped_model = SteppedModel(
        native, write_tiny(tmp_path / "llama.gguf", "llama"), n_ctx=2048, speculation=False,
        prefix_ram_bytes=64 * MIB, growth=growth(256, 2048, 64 << 10),
    )  # fmt: skip
    yield stepped_model
    stepped_model.model.close()


def make_tokens(n_tokens: int, seed: int = 0) -> list[int]:
    return [10 + (seed + i * (seed + 7)) % 300 for i in range(n_tokens)]


def test_model_survives_the_loss_of_a_grown_context(model: SteppedModel) -> None:
    model.ask(make_tokens(400))
    assert model.context.n_ctx > 256
    replace = model.context._replace

    def lose(_n_ctx: int, _data: Any) -> str:
        model.context._close_context()
        return "out of memory"

    model.context._replace = lose  # type: ignore[method-assign, assignment]
    request_id = model.start(make_tokens(1500, seed=1))
    model.finish()
    assert model.final(request_id).error_type == "EngineError"
    model.context._replace = replace  # type: ignore[method-assign]
    model.memory = FreeMemory(1 << 40, 10 * MIB)
    model.now += 400.0
    model.sizer.check_memory(0)
    assert model.sizer.idle_step(301.0) is None
    for _ in range(5):
        model.model.idle_step(lambda _allow: None)
    context = model.context
    for call in (lambda: context.resize(256), lambda: context.save(0, 0, 1)):
        with pytest.raises(EngineError, match="closed"):
            call()
    assert not context.restore(0, 0, [1], bytearray(8))
    assert context.max_rollback >= 0
    model.memory = FreeMemory(1 << 40, 1 << 40)
    assert len(model.ask(make_tokens(400), max_tokens=5)[0]) == 5


def test_refused_prompt_names_the_memory_and_not_the_context_option(model: SteppedModel) -> None:
    model.memory = FreeMemory(1024 * MIB, 65 * MIB)
    _, event = model.ask(make_tokens(700))
    assert event.error_type == "ContextOverflowError"
    assert event.message.startswith("The prompt has 700 tokens, but the context holds 256 tokens. Growing it to 768 ")
    assert "but only 68 MB is free" in event.message
    assert "close other programs" in event.message
    assert "--ctx" not in event.message
    model.now += 4.0
    model.memory = FreeMemory(1 << 40, 1 << 40)
    assert len(model.ask(make_tokens(700), max_tokens=5)[0]) == 5


def test_saved_idle_sequences_are_evicted_before_the_context_grows(model: SteppedModel) -> None:
    cache = model.model._cache
    model.ask(make_tokens(100))
    assert cache._save(0, min_tokens=1) is not None
    model.ask(make_tokens(150, seed=1), max_tokens=80)
    assert model.lengths == [256]
    model.ask([*make_tokens(150, seed=1), 5, *make_tokens(40, seed=2)], max_tokens=100)
    assert model.lengths == [256, 512], "a sequence that is not saved was evicted"


def test_resize_has_an_activity_of_its_own(model: SteppedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    activities = []
    open_native = model.context._open

    def record(*arguments: Any) -> Any:
        activities.append(activity.read_state().activities)
        return open_native(*arguments)

    monkeypatch.setattr(model.context, "_open", record)
    model.ask(make_tokens(400), max_tokens=5)
    assert activities == [{Activity.RESIZING}]
    assert any(isinstance(e, protocol.RequestFinished) for e in model.events)
