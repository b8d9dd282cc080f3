"""Times of searches in a generated collection."""

from __future__ import annotations

from pathlib import Path

from edgechat.bench.documents_scale import format_scale, measure_search_times
from edgechat.documents.library import DocumentLibrary
from tests.unit.documents.collections import read_contents


def test_searches_in_a_generated_collection_are_measured(tmp_path: Path) -> None:
    scale = measure_search_times(tmp_path, 120, 1, lambda text: None)
    assert scale.n_chunks == 120
    assert all(times.first_ms > 0 and times.median_ms > 0 for times in scale.times)
    assert "| words of nearly all passages |" in format_scale(scale)
    with DocumentLibrary(tmp_path).open("scale") as collection:
        read_contents(collection)
        info = collection.describe()
        assert (info.n_chunks, info.n_embedded) == (120, 120)
