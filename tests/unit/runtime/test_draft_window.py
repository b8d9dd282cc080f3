"""The window of a drafter over the end of a text: what it computes, keeps and removes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.runtime.draft_window import N_SINK_TOKENS, DraftWindow, WindowUpdate

N_CELLS = 32


class FakeMemory:
    """Cells of a sequence, by position, which a window changes as a drafter would change those of llama.cpp."""

    def __init__(self, window: DraftWindow) -> None:
        self.window = window
        self.cells: dict[int, int] = {}

    def update(self, update: WindowUpdate, chain: list[int]) -> None:
        if update.is_restart:
            self.cells.clear()
        else:
            self._remove(update.position, 1 << 30)
            if update.n_dropped:
                self._remove(*self.window.get_dropped_positions(update))
        self.window.apply(update)
        computed = update.pending + chain
        self.cells |= {update.position + i: token for i, token in enumerate(computed)}
        self.window.extend(computed)

    def _remove(self, start: int, end: int) -> None:
        self.cells = {p: token for p, token in self.cells.items() if not start <= p < end}


def test_first_draft_computes_the_last_half_of_the_window() -> None:
    window = DraftWindow(N_CELLS)
    update = window.plan(list(range(100)), 100, 4)
    assert update == WindowUpdate(True, 0, 0, 85, 0, list(range(85, 101)))


def test_accepted_tokens_are_not_computed_again() -> None:
    window = DraftWindow(N_CELLS)
    memory = FakeMemory(window)
    update = window.plan([1, 2], 3, 4)
    assert update is not None
    memory.update(update, [4, 5, 6])
    assert window.plan([1, 2, 3, 4, 5], 9, 4) == WindowUpdate(False, 5, 0, 5, 5, [9])
    assert window.plan([1, 2, 3, 4, 5, 6], 7, 4) == WindowUpdate(False, 6, 0, 6, 6, [7])
    rejected = DraftWindow(N_CELLS, can_truncate=False)
    rejected.extend([1, 2, 3, 4])
    assert rejected.plan([1, 2, 3], 9, 4) == WindowUpdate(True, 0, 0, 0, 0, [1, 2, 3, 9])


def test_the_next_token_is_computed_even_if_it_was_before() -> None:
    window = DraftWindow(N_CELLS)
    window.extend([1, 2, 3])
    update = window.plan([1, 2], 3, 4)
    assert update is not None
    assert update.pending == [3]


def test_limits_of_pending_tokens_and_of_rows() -> None:
    window, text = DraftWindow(N_CELLS), list(range(20))
    assert window.plan(text, 20, 4, max_pending=2) == WindowUpdate(True, 0, 0, 19, 0, [19, 20])
    assert window.plan(text, 20, 4, first_index=18) == WindowUpdate(True, 0, 0, 18, 0, [18, 19, 20])
    assert window.plan(text, 20, 4, first_index=21) is None


def test_restart_discards_what_was_computed() -> None:
    window, text = DraftWindow(N_CELLS), list(range(20))
    window.extend(text)
    assert window.plan(text, 20, 4, max_pending=8) == WindowUpdate(False, 20, 0, 20, 20, [20])
    assert window.plan(text, 20, 4, max_pending=8, must_restart=True) == WindowUpdate(
        True, 0, 0, 13, 0, list(range(13, 21))
    )


def test_positions_stay_below_their_limit() -> None:
    memory = FakeMemory(DraftWindow(N_CELLS, max_position=64))
    for n_tokens in range(1, 500):
        update = memory.window.plan(list(range(n_tokens)), n_tokens, 4)
        assert update is not None
        memory.update(update, [])
        assert max(memory.cells) + 4 < 64


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5), st.booleans()), max_size=60))
def test_cells_are_those_of_the_text_and_never_too_many(steps: list[tuple[int, int, bool]]) -> None:
    """The text grows, and is sometimes undone; some draft tokens are wrong."""
    window = DraftWindow(N_CELLS)
    memory, text = FakeMemory(window), [0]
    for n_added, n_drafted, is_undone in steps:
        if is_undone:
            del text[max(1, len(text) - n_added) :]
            text.append(-len(text))
        else:
            text += [len(text) + i for i in range(n_added)]
        next_token = len(text)
        update = window.plan(text, next_token, 5)
        assert update is not None
        memory.update(update, [next_token + 1 + i for i in range(n_drafted)])
        assert len(memory.cells) == len(window) <= N_CELLS
        assert update.pending == [*text, next_token][update.start :]
        # The cells are the sinks, and then tokens up to the end of the text.
        end = update.position + len(update.pending)
        full_text = [*text, next_token]
        newest = [memory.cells[p] for p in sorted(memory.cells) if N_SINK_TOKENS <= p < end]
        assert newest == full_text[len(full_text) - len(newest) :]
