"""The native bundle: where it is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.errors import RuntimeLoadError
from edgechat.runtime.backends import bundle


def test_error_without_a_bundle_explains_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECHAT_NATIVE_DIR", raising=False)
    monkeypatch.setattr(bundle, "__file__", str(tmp_path / "runtime" / "backends" / "bundle.py"))
    with pytest.raises(RuntimeLoadError, match="Install a wheel") as error:
        bundle.find_bundle()
    assert str(tmp_path / "_native") in str(error.value)
