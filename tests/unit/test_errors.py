"""Error classes: exit codes, and names for crossing process boundaries."""

from __future__ import annotations

from edgechat import errors
from edgechat.errors import EngineError


def test_every_error_has_an_exit_code_and_is_found_by_name() -> None:
    classes = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.EdgechatError)]
    assert len(classes) > 8
    for error in classes:
        assert error.exit_code in (2, 3, 4, 5, 6)
        assert errors.find_error_class(error.__name__) is error


def test_unknown_error_names_become_engine_errors() -> None:
    assert errors.find_error_class("OSError") is errors.find_error_class("find_error_class") is EngineError
