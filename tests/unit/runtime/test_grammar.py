"""Error messages of llguidance: one sentence, and the right exception class."""

from __future__ import annotations

import pytest

from edgechat.errors import EngineError, GrammarError
from edgechat.runtime.grammar import _convert_error, check_grammar

CANNOT = "The output format cannot be enforced"
FAULT = f"{CANNOT} because of a fault in llguidance"


@pytest.mark.parametrize(
    ("message", "error_class", "text"),
    [
        ('at 1(8): failed to compile JSON schema: Unimplemented keys: ["if"]\n   1 | start: %json {}', GrammarError,
         f'{CANNOT}: Unimplemented keys: ["if"]'),
        ("regex parse error:\n    (a\n    ^\nerror: unclosed group\n  12 | start", GrammarError,
         f"{CANNOT}: regex parse error: (a ^ error: unclosed group"),
        ("NoExtensionBias\n<state>\nTokens: x", GrammarError, f"{CANNOT}: no text matches the grammar"),
        ("lexer error: too many states: 5 >= 5\n<non-verbose/>", GrammarError,
         f"{CANNOT}: it exceeds a limit of llguidance. Simplify it. (lexer error: too many states: 5 >= 5)"),
        ("panic: index out of bounds\n<backtrace>\n   0: std::backtrace\n</backtrace>", EngineError,
         f"{FAULT}: panic: index out of bounds."),
        ("Parser Error: token \" \" doesn't satisfy the grammar; forced bytes: got '{'; applying ' '\n<state>",
         EngineError,
         f"{FAULT}: Parser Error: token \" \" doesn't satisfy the grammar; forced bytes: got '{{'; applying ' '."),
        ('Unimplemented keys: ["panic"]', GrammarError, f'{CANNOT}: Unimplemented keys: ["panic"]'),
    ],
)  # fmt: skip
def test_message_is_one_sentence_without_state_or_backtrace(
    message: str, error_class: type[Exception], text: str
) -> None:
    error = _convert_error(message)
    assert type(error) is error_class
    assert str(error) == text


def test_long_message_is_shortened() -> None:
    with pytest.raises(GrammarError) as caught:
        check_grammar('start: %json {"type": "' + "x" * 10_000 + '"}')
    assert len(str(caught.value)) < 500
