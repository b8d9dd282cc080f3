"""Numbers in text: thousands separators, decimal commas, fractions, mixed numbers and powers of ten."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Final, NamedTuple

# Numbers with more digits are compared as text. Python's conversion of long numbers takes quadratic time.
_MAX_DIGITS: Final = 60
_MAX_EXPONENT: Final = 100
_SEPARATORS: Final = ",.'\u2019_ \u00a0\u2009\u202f"
_MINUS: Final = "\u2212"
_NUMBER: Final = re.compile(
    rf"(?<![\w.,])(?P<sign>[-+{_MINUS}])?"
    rf"(?P<digits>\d+(?:[{_SEPARATORS}]\d{{3}}(?!\d))*(?:[.,]\d+)?|\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w))?"
    r"(?:(?P<space>\s{1,2})(?P<part>\d{1,9})/(?P<whole>\d{1,9})|\s?/\s?(?P<divisor>\d{1,9}))?"
    r"(?:\s?(?P<unit>thousand|million|billion|trillion)\b)?",
    re.IGNORECASE,
)
_GROUPED: Final = re.compile(r"\d{1,3}(?:,\d{3})+|\d{1,3}(?:\.\d{3}){2,}")
# Text after a number that belongs to a date, a time, a version, a range or a calculation.
_CONTINUATION: Final = re.compile(rf"[:./-]\d|\s?[-+*\u00d7÷^{_MINUS}]\s?[\d(]|\s?\^")
_UNITS: Final = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_FRACTION_SIGNS: Final = re.compile("[¼½¾⅐-⅞]")


class Quantity(NamedTuple):
    """Number in a text, with its position."""

    value: Fraction
    start: int
    end: int


def find_quantities(text: str) -> Iterator[Quantity | None]:
    """Yield the numbers in `text`; None for a number that cannot be compared, such as a part of a date or calculation.

    Units and percent signs are ignored. "1,234" has a thousands separator, "1,5" a decimal comma.
    """
    for match in _NUMBER.finditer(text):
        value = None if _CONTINUATION.match(text, match.end()) else _parse_match(match)
        yield Quantity(value, match.start(), match.end()) if value is not None else None


def replace_fraction_signs(text: str) -> str:
    """Replace signs such as ½ by a space and a fraction with a slash."""
    return _FRACTION_SIGNS.sub(lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/"), text)


def format_quantity(value: Fraction) -> str:
    """Format a number as an integer, as a decimal number of up to 12 places if it is exact, or as a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    for places in range(1, 13):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
            return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return str(value)


def _parse_match(match: re.Match[str]) -> Fraction | None:
    digits = match["digits"]
    if len(digits) > _MAX_DIGITS:
        return None
    value = _parse_digits(digits)
    exponent = int(match["exponent"] or 0)
    if value is None or abs(exponent) > _MAX_EXPONENT:
        return None
    value *= Fraction(10) ** exponent
    whole, divisor = match["whole"], match["divisor"]
    if whole is not None:
        if int(whole) == 0:
            return None
        value += Fraction(int(match["part"]), int(whole))
    elif divisor is not None:
        if int(divisor) == 0:
            return None
        value /= int(divisor)
    value *= _UNITS.get((match["unit"] or "").lower(), 1)
    return -value if match["sign"] in {"-", _MINUS} else value


def _parse_digits(digits: str) -> Fraction | None:
    """Convert digits with separators; the last comma or point can be a decimal separator. None if they are unclear."""
    digits = re.sub(r"[^\d.,]", "", digits)
    comma, point = digits.rfind(","), digits.rfind(".")
    has_both = comma >= 0 and point >= 0
    decimal = max(comma, point) if has_both or not _GROUPED.fullmatch(digits) else -1
    integer = re.sub(r"\D", "", digits[:decimal] if decimal >= 0 else digits)
    places = digits[decimal + 1 :] if decimal >= 0 else ""
    if not (integer + places).isdecimal():
        return None
    return Fraction(int(integer + places), 10 ** len(places))
