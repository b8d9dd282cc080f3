"""llama.cpp's own tests of llama-server, run against `edgechat serve`.

`not_applicable.toml` lists the tests that do not apply, with reasons. All others must pass. Of each parametrized test,
`make test-long` runs one case, `make test-exhaustive` all.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzzing import shorten
from tests.serve.llama_cpp_suite import suite

pytestmark = pytest.mark.long
_MAX_CASES = shorten(1000, 1)
# Tests that apply in the pinned version; fewer would mean that the suite was not collected.
_MIN_TESTS = shorten(120, 60)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, warm_verdicts: Path) -> suite.Report:
    return suite.run(tmp_path_factory.mktemp("suite"), warm_verdicts, max_cases=_MAX_CASES)


def test_every_test_that_applies_passes(report: suite.Report) -> None:
    failures = [
        f"{name}: {outcome}\n{text}" for name, (outcome, text) in report.outcomes.items() if outcome != "passed"
    ]
    assert not failures, "\n\n".join(failures)
    assert len(report.outcomes) >= _MIN_TESTS


def test_every_entry_of_the_list_is_a_test(report: suite.Report) -> None:
    assert report.unmatched == []
