"""Activity of a drafter's context, by which a crash is judged."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.bindings import DraftLayout
from edgechat.runtime.drafter_context import DrafterContext, DrafterShape


@pytest.mark.parametrize(("n_gpu_layers", "expected"), [(9, Activity.DRAFTING_ON_GPU), (0, Activity.DRAFTING)])
def test_drafts_are_marked_as_work_of_the_gpu_exactly_if_it_computes_them(
    n_gpu_layers: int, expected: Activity
) -> None:
    found: list[frozenset[Activity]] = []

    def compute(*_: object) -> int:
        found.append(activity.read_state().activities)
        return 0

    model, target = MagicMock(), MagicMock()
    target.options.n_gpu_layers, target.thread_counts = n_gpu_layers, (1, 1)
    model.bindings.edgechat.edgechat_draft_tokens = model.bindings.edgechat.edgechat_encode_rows = compute
    context = DrafterContext(model, target, DrafterShape(n_ctx=64, n_seqs=1, n_batch=8, n_outputs=1))
    context.draft(DraftLayout(), [])
    context.encode(bytes(16), n_features=4, n_row=4)
    assert found == [{expected}, {expected}]
