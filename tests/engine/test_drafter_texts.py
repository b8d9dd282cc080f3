"""Model drafters of the runtime follow the text of their target: window, changes, restarts, copies, resizes, aborts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from edgechat.draft_request import DraftRequest, TextWindow
from edgechat.planner.drafter_plan import DRAFTER_CELLS, DrafterKind
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import DecodeAborted
from tests.draft_models import CYCLE, follow_chain, make_llama, turn_into_chain
from tests.draft_runs import N_DRAFT, DraftRun, open_run
from tests.engine.test_model_drafter import DRAFTERS, HEADS, PROMPT, order_pair, write_pair
from tests.models import Kind, growth, write_tiny


@pytest.fixture(params=DRAFTERS)
def kind(request: pytest.FixtureRequest) -> DrafterKind:
    kind: DrafterKind = request.param
    return kind


def test_window_moves_with_the_text(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    """The text is several times as long as the drafter's memory, both the prompt and the reply."""
    prompt = [1, *CYCLE * 7][:1300]
    with open_run(native, *order_pair(write_pair(kind, tmp_path), kind), n_ctx=4096) as run:
        run.prefill(prompt)
        assert run.drafter.find_window(0).n_pending <= DRAFTER_CELLS // 2
        assert run.generate(1300) == follow_chain(prompt[-1], 1300)
        assert run.acceptance > 0.95


@pytest.mark.parametrize("architecture", ["mamba", "hybrid", "sliding"])
def test_window_of_a_draft_model_with_a_state(architecture: Kind, native: Bindings, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", architecture)
    target = turn_into_chain(make_llama()).write(tmp_path / "target.gguf")
    with open_run(native, target, "draft-model", path, n_ctx=4096) as run:
        run.prefill(PROMPT)
        assert run.generate(1000) == follow_chain(PROMPT[-1], 1000)
        assert run.n_drafted > 500


def test_text_that_changes_is_computed_again_from_the_change(native: Bindings, tmp_path: Path) -> None:
    target, draft = write_pair("draft-model", tmp_path)
    with open_run(native, target, "draft-model", draft) as run:
        run.prefill(PROMPT)
        run.generate(20)
        run.context.rewind(30)
        run.prefill([CYCLE[5]])
        assert run.drafter.find_window(0).n_pending == 2  # the other token and the next one
        assert run.draft() == {0: follow_chain(CYCLE[6], N_DRAFT)}


def test_few_pending_tokens_start_a_new_window(native: Bindings, tmp_path: Path) -> None:
    target, draft = write_pair("draft-model", tmp_path)
    with open_run(native, target, "draft-model", draft) as run:
        run.prefill(PROMPT)
        assert run.drafter.find_window(0).n_pending == len(PROMPT) + 1
        assert run.draft(max_pending=3) == {0: follow_chain(run.next_tokens[0], N_DRAFT)}
        assert run.drafter.find_window(0).n_pending == 1


@pytest.mark.parametrize("architecture", ["llama", "mamba", "hybrid", "sliding"])
def test_restart_and_reading_of_a_text(architecture: Kind, native: Bindings, tmp_path: Path) -> None:
    """A drafter with a state keeps what it has read, too, because the text goes on after it."""
    draft = write_tiny(tmp_path / "draft.gguf", architecture)
    target = turn_into_chain(make_llama()).write(tmp_path / "target.gguf")
    with open_run(native, target, "draft-model", draft) as run:
        run.prefill(PROMPT)
        n_text = len(PROMPT) + 1
        assert run.drafter.find_window(0) == TextWindow(n_text, 0, n_text)
        expected = run.draft()
        run.draft(max_pending=3, must_restart=True)
        if architecture in ("llama", "sliding"):  # others cannot draft a second time from the same text
            assert run.drafter.find_window(0) == TextWindow(1, 2, n_text)
        assert run.draft(max_pending=n_text, must_restart=True) == expected
        assert run.drafter.find_window(0).size == n_text
        run.drafter.draft({0: DraftRequest(None, 1, must_restart=True)})
        assert run.drafter.find_window(0) == TextWindow(1, n_text - 1, n_text)
        assert run.draft() == expected
        run.drafter.draft({1: DraftRequest(None, 1)})  # an empty sequence
        assert run.generate(50) == follow_chain(PROMPT[-1], 50)


@pytest.mark.parametrize("kind", HEADS)
def test_heads_need_the_row_of_the_last_token(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    """A restored sequence has no rows until its next step."""
    with open_run(native, *order_pair(write_pair(kind, tmp_path), kind)) as run:
        run.prefill(PROMPT)
        run.generate(20)
        tokens = list(run.context.tokens(0))
        data = run.context.save(0, 0, len(tokens))
        run.context.drop(0)
        assert run.context.restore(0, 0, tokens, data)
        assert run.drafter.find_window(0).n_pending == 0
        assert run.draft() == {}
        run.verify([])
        assert run.draft() == {0: follow_chain(run.next_tokens[0], N_DRAFT)}


def test_copied_sequence(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    with open_run(native, *order_pair(write_pair(kind, tmp_path), kind)) as run:
        run.prefill(PROMPT)
        run.context.copy(0, 1, len(PROMPT))
        run.next_tokens[1] = run.next_tokens[0]
        assert run.draft(0, 1) == dict.fromkeys((0, 1), follow_chain(run.next_tokens[0], N_DRAFT))


def test_resized_and_reopened_context(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    options: dict[str, Any] = {"growth": growth(256, 2048), "n_ctx": 2048}
    with open_run(native, *order_pair(write_pair(kind, tmp_path), kind), **options) as run:
        run.prefill(PROMPT)
        run.generate(30)
        run.context.resize(1024)
        last_token = run.context.tokens(0)[-1]
        assert run.generate(30) == follow_chain(last_token, 30)
        run.context._close_context()
        run.context._clear_token_lists()
        assert run.draft() == {}
        run.context.reopen()
        run.prefill(PROMPT)
        assert run.generate(30) == follow_chain(PROMPT[-1], 30)
        assert run.acceptance > 0.95


def test_abort_leaves_a_valid_state(kind: DrafterKind, native: Bindings, tmp_path: Path) -> None:
    with open_run(native, *order_pair(write_pair(kind, tmp_path), kind)) as run:
        run.prefill(PROMPT)
        run.context.abort()
        with pytest.raises(DecodeAborted):
            run.draft()
        run.context.clear_abort()
        _abort_while_drafting(run)
        assert run.draft() == {0: follow_chain(run.next_tokens[0], N_DRAFT)}
        assert run.generate(30) == follow_chain(PROMPT[-1], 30)


def _abort_while_drafting(run: DraftRun) -> None:
    """Set only llama.cpp's flag, so that the abort happens within the native call."""
    native, flag = run.context.model.bindings.edgechat, run.context._abort_flag
    native.edgechat_abort_flag_set(flag, 1)
    with pytest.raises(DecodeAborted):
        run.draft()
    native.edgechat_abort_flag_set(flag, 0)


def test_abort_while_rows_are_converted(
    native: Bindings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The window describes the cells of the drafter also after an abort in the encoder of EAGLE-3."""

    def abort(*_arguments: Any) -> bytes:
        raise DecodeAborted

    with open_run(native, *order_pair(write_pair("eagle3", tmp_path), "eagle3")) as run:
        run.prefill(PROMPT)
        run.generate(30)
        run.context.drop(0)
        other = [1, *CYCLE[80:120]]
        run.prefill(other)
        with monkeypatch.context() as patch:
            patch.setattr(run.drafter._source, "encode", abort)
            with pytest.raises(DecodeAborted):
                run.draft()
        context, window = run.drafter.context, run.drafter._windows[0]
        assert context is not None
        n_positions = native.llama.llama_memory_seq_pos_max(context._memory, 0) + 1
        assert n_positions == window._start + len(window._tokens) - window._origin
        assert run.generate(30) == follow_chain(other[-1], 30)


@pytest.mark.parametrize("architecture", ["mamba", "hybrid"])
def test_abort_of_a_draft_model_with_a_state(architecture: Kind, native: Bindings, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", architecture)
    target = make_llama().write(tmp_path / "target.gguf")
    with open_run(native, target, "draft-model", path) as run:
        run.prefill(PROMPT)
        expected = run.draft()
        _abort_while_drafting(run)
        assert run.draft() == expected


def test_other_thread_aborts(native: Bindings, tmp_path: Path) -> None:
    target, draft = write_pair("draft-model", tmp_path)
    with open_run(native, target, "draft-model", draft) as run:
        run.prefill(PROMPT)
        thread = threading.Thread(target=run.context.abort)
        thread.start()
        with pytest.raises(DecodeAborted):
            run.generate(100_000)
        thread.join()
        run.context.clear_abort()
        assert run.draft() == {0: follow_chain(run.next_tokens[0], N_DRAFT)}
