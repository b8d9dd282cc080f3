r"""The final answer in a reply, in a normal form in which equal answers are equal.

Sources in this order: JSON, `\boxed{…}`, a phrase such as "The answer is", the last line without courtesies. The answer
is a JSON value, a choice letter, a number, or a short phrase. Numbers of the first sentence, which often repeats the
question, count only if there is no other, or directly after "answer is" and "=". Extraction takes linear time.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from fractions import Fraction
from typing import Any, Final, Literal

import msgspec

from edgechat.prompt.agreement.quantities import (
    Quantity,
    find_quantities,
    format_quantity,
    replace_fraction_signs,
)

# The answer is searched in the last characters of a reply. JSON may be longer.
_MAX_CHARS: Final = 20_000
_MAX_JSON_CHARS: Final = 1 << 20
# Longer phrases are free text, which rarely repeats word by word.
_MAX_PHRASE_CHARS: Final = 60
# Longer values are shortened to a prefix and a hash.
_MAX_VALUE_CHARS: Final = 200
_FENCE: Final = "```"

_MARKER: Final = re.compile(
    r"\b(?:answers?|antwort|réponse|respuesta|risposta|resposta)\b[*_`\"')\]]{0,4}\s{0,3}(?::|=|\b(?:is|are|ist|est|es)\b|[èé]\b)"
    r"|^####(?=\s{0,3}[-+$]?\d)",
    re.IGNORECASE | re.MULTILINE,
)
_STATEMENT: Final = re.compile(r"\b(?:is|are|equals?|ist|sind)\b|[=:≈]", re.IGNORECASE)
_LATEX_FRACTION: Final = re.compile(r"\\[dt]?frac\s?\{([^{}]{1,40})\}\s?\{([^{}]{1,40})\}")
_LATEX_TEXT: Final = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s?\{([^{}]{0,200})\}")
_LATEX_SIGNS: Final = re.compile(r"\\(?:left|right|,|!|;|:|\(|\)|\[|\])|\\(?=[$%&#_{}])")
_MARKUP: Final = re.compile(r"\*{2,3}|(?<![\d)\s])\*|\*(?![\d(\s])|[`$]|__|~~")
_CHOICE: Final = re.compile(
    r"(?:(?:option|choice)\s)?[(\[]?([A-Ja-j])[)\]]?[.:]?"  # the whole phrase
    r"|(?:option|choice)\s[(\[]?([A-J])\b.{0,200}"
    r"|[(\[]([A-Ja-j])[)\]]\s.{0,200}"
    r"|([A-J])[).:]\s.{0,200}",
    re.IGNORECASE,
)
_YES_NO: Final = re.compile(r"(yes|no|true|false)\b", re.IGNORECASE)
_ARTICLE: Final = re.compile(r"(?:the|a|an)\s", re.IGNORECASE)
_LETTER: Final = re.compile(r"[^\W\d_]")
_JOINED: Final = re.compile(r"\b(?:and|or|to)\b|[,;]", re.IGNORECASE)
# A line without numbers that ends a reply politely.
_COURTESY: Final = re.compile(
    r"[*_\s]*(?:please )?(?:let me know|feel free|(?:i )?hope (?:this|that)|(?:i(?:'| a)m |i'd be )?happy to|"
    r"is there anything|do you (?:want|need)|would you like|if you (?:want|need|have|would))\b\D*",
    re.IGNORECASE,
)
_SENTENCE_END: Final = re.compile(r"[.!?]\s|\n")
_QUOTES: Final = "\"'“”\u2018\u2019«»"
_EDGES: Final = f" \t\n\r.,;:!?{_QUOTES}()[]{{}}<>|#-\u2013\u2014"

AnswerKind = Literal["number", "choice", "json", "text"]


class Answer(msgspec.Struct, frozen=True, order=True):
    """Final answer of a reply. Equal answers have equal fields."""

    kind: AnswerKind
    value: str


def extract_answer(text: str) -> Answer | None:
    """Return the final answer of a reply; None if it has none, or only free text that cannot be compared."""
    text = text.strip()
    value = _find_json(text)
    if value is not None:
        return Answer("json", value)
    text = text[-_MAX_CHARS:]
    boxed = _find_boxed(text)
    if boxed and (answer := _normalize(boxed, is_statement=False)):
        return answer
    repeated = _list_repeated_numbers(text)
    marker_end = max((marker.end() for marker in _MARKER.finditer(text)), default=None)
    if marker_end is not None and (answer := _normalize(_first_line(text[marker_end:]), repeated, is_statement=False)):
        return answer
    return _normalize(_last_line(text), repeated, is_statement=True)


def _list_repeated_numbers(text: str) -> frozenset[Fraction]:
    """Return the numbers of the first of several sentences."""
    end = _SENTENCE_END.search(text)
    sentence = _strip_markup(text[: end.start()][: 4 * _MAX_VALUE_CHARS]) if end is not None else ""
    return frozenset(quantity.value for quantity in find_quantities(sentence) if quantity is not None)


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip(_EDGES + "*_`$")), "")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip(_EDGES + "*_`$")]
    while len(lines) > 1 and _COURTESY.fullmatch(lines[-1]):
        lines.pop()
    return lines[-1] if lines else ""


def _find_boxed(text: str) -> str:
    r"""Return the content of the last `\boxed{…}`, with balanced braces; "" if there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    start += len("\\boxed{")
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start:index]
    return text[start:]


# JSON


def _find_json(text: str) -> str | None:
    """Return the normal form of a reply that is a JSON object or array, or ends with one or with a block of code."""
    if len(text) > _MAX_JSON_CHARS:
        return None
    candidates = [text]
    end = text.rfind(_FENCE)
    start = text.rfind(_FENCE, 0, max(end, 0))
    if start >= 0:
        candidates.append(text[start + len(_FENCE) : end].strip().removeprefix("json").strip())
    if text.endswith("}") and not text.startswith("{"):
        candidates.append(text[max(text.find("{"), 0) :])
    for candidate in candidates:
        if candidate[:1] + candidate[-1:] in {"{}", "[]"}:
            try:
                value = _normalize_json(msgspec.json.decode(candidate))
                return _shorten(msgspec.json.encode(value, order="sorted").decode())
            except (msgspec.MsgspecError, RecursionError, UnicodeError, ValueError, OverflowError):
                continue
    return None


def _normalize_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normalize_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normalize_json(item) for item in value]
    if isinstance(value, str):
        return " ".join(value.split()).casefold()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shorten(value: str) -> str:
    if len(value) <= _MAX_VALUE_CHARS:
        return value
    return f"{value[:_MAX_VALUE_CHARS]}… {hashlib.sha256(value.encode()).hexdigest()[:16]}"


# Phrases


def _normalize(phrase: str, repeated: frozenset[Fraction] = frozenset(), *, is_statement: bool) -> Answer | None:
    """Return the answer in a phrase. With `is_statement`, the phrase is a sentence, which can end with its answer.

    `repeated` are numbers that are answers only if there is no other number.
    """
    phrase = _strip_markup(phrase[: 4 * _MAX_VALUE_CHARS])
    if not phrase:
        return None
    match = _CHOICE.fullmatch(phrase)
    if match is not None:
        return Answer("choice", next(letter for letter in match.groups() if letter).upper())
    answer = _find_number(phrase, repeated, is_statement=is_statement)
    if answer is not None:
        return answer
    match = _YES_NO.match(phrase)
    if match is not None:
        return Answer("text", match[1].casefold())
    if is_statement:
        ending = phrase[_find_statement_end(phrase) :].strip(_EDGES)
        phrase = ending or phrase
        match = _CHOICE.fullmatch(phrase)
        if match is not None:
            return Answer("choice", next(letter for letter in match.groups() if letter).upper())
    phrase = _ARTICLE.sub("", phrase, count=1) if _ARTICLE.match(phrase) else phrase
    phrase = phrase.strip(_EDGES).casefold()
    return Answer("text", phrase) if 0 < len(phrase) <= _MAX_PHRASE_CHARS else None


def _strip_markup(phrase: str) -> str:
    phrase = _LATEX_TEXT.sub(r"\1", phrase)
    phrase = _LATEX_FRACTION.sub(r"\1/\2", phrase)
    phrase = _MARKUP.sub("", _LATEX_SIGNS.sub("", phrase.replace("{,}", ",")))
    phrase = " ".join(replace_fraction_signs(phrase).split())
    return phrase.strip(" " + _QUOTES)


def _find_statement_end(phrase: str) -> int:
    """Return the position after the last "is", "=" or ":" of a sentence; 0 if it has none."""
    end = 0
    for match in _STATEMENT.finditer(phrase):
        if phrase[match.end() :].strip(_EDGES):
            end = match.end()
    return end


def _find_number(phrase: str, repeated: frozenset[Fraction], *, is_statement: bool) -> Answer | None:
    """Return the number that a phrase gives as its answer.

    That is the first number after the last "=", "is" or ":", or else the last number of a sentence, or the first number
    of another phrase. Several numbers in a list are one answer. Unless it directly follows the mark, a number in
    `repeated` does not count if there is another.
    """
    start = _find_statement_end(phrase) if is_statement else phrase.rfind("=") + 1
    quantities = list(find_quantities(phrase[start:]))
    if start and not quantities and is_statement:
        start, quantities = 0, list(find_quantities(phrase))
    if not quantities or None in quantities:
        return None
    numbers: list[Quantity] = [quantity for quantity in quantities if quantity is not None]
    if (is_statement and start == 0) or _LETTER.search(phrase, start, start + numbers[0].start):
        numbers = [number for number in numbers if number.value not in repeated] or numbers
    if is_statement and start == 0:
        return Answer("number", format_quantity(numbers[-1].value))
    values = [numbers[0].value]
    for previous, number in itertools.pairwise(numbers):
        if not _JOINED.search(phrase, start + previous.end, start + number.start):
            break
        values.append(number.value)
    return Answer("number", _shorten(", ".join(map(format_quantity, values))))
