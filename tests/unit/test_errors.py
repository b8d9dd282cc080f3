"""Error classes: exit codes, and names for crossing process boundaries."""

from __future__ import annotations

import contextlib
import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat import errors
from edgechat.cli import root
from edgechat.cli.progress import StderrStatus
from edgechat.errors import EngineError
from edgechat.serve.errors import ApiError


def test_every_error_has_an_exit_code_and_is_found_by_name() -> None:
    classes = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.EdgechatError)]
    assert len(classes) > 8
    for error in classes:
        assert error.exit_code in (1, 2, 3, 4, 5, 6, 127)
        assert errors.find_error_class(error.__name__) is error


ERRORS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.EdgechatError)]
ERRORS.remove(errors.InvalidFileError)  # its constructor takes two texts
LONG_TEXTS = st.builds(lambda text, n: text * n, st.text(min_size=1, max_size=20), st.integers(1, 100_000))


@given(st.sampled_from(ERRORS), LONG_TEXTS)
def test_message_with_any_text_from_outside_is_limited(error_class: type[errors.EdgechatError], text: str) -> None:
    message = f"Cannot read the file: {text}. Download it again."
    error = error_class(message)
    assert len(str(error)) <= error.max_chars <= 4000
    assert str(error).startswith("Cannot read the file: ")
    assert str(error).endswith(". Download it again.")
    if len(message) <= error.max_chars:
        assert str(error) == message
    assert errors.find_error_class(type(error).__name__)(str(error)).args == (str(error),)


@given(LONG_TEXTS, LONG_TEXTS)
def test_error_response_is_limited(message: str, param: str) -> None:
    assert len(json.dumps(ApiError(400, message, param=param).body(), ensure_ascii=False).encode()) < 16_000


@given(LONG_TEXTS)
def test_notes_and_usage_errors_are_limited(text: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as output:
        StderrStatus().note(text)
    assert len(output.getvalue()) < 4100
    with (
        pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as output,
    ):  # fmt: skip
        patch.setattr(sys, "argv", ["edgechat", "history", "show", f"a{text}", text])
        assert root.run() == 2
    assert len(output.getvalue()) < 2100


def test_unknown_error_names_become_engine_errors() -> None:
    assert errors.find_error_class("OSError") is errors.find_error_class("find_error_class") is EngineError


def test_text_that_is_not_utf8_is_described_without_the_words_of_python() -> None:
    with pytest.raises(UnicodeEncodeError) as encoding:
        "b\udcffd".encode()
    with pytest.raises(UnicodeDecodeError) as decoding:
        b"b\xffd".decode()
    subject = "An argument, a file name or another text is not valid UTF-8"
    assert errors.describe_failure(encoding.value) == (f"{subject}: its character 2 is the byte 0xff.", 2)
    assert errors.describe_failure(decoding.value) == (f"{subject}: its byte 1 is 0xff.", 2)
