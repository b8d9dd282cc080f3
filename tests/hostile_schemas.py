"""Random JSON schemas with extreme numbers, expensive patterns, references, and combinations of all keywords."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

_NUMBERS = (
    0, 1, -1, 2, 3, 7, 97, 9973, 9967, 9949, 9941, 65537, 1000003, 1048573, 99999989, 999999937, 0.5, 0.1, 1e-7, 1e-10,
    0.3333333333, 12345.678901, 5e-324, 1e308, -1e308, 1.7976931348623157e308, 1e22, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
    2**53 - 1, 2**53, -(2**53), 2**53 + 1, 2**63 - 1, 2**64 - 1, 2**64, 10**18, 10**400,
)  # fmt: skip
_COUNTS = (0, 1, 2, 5, 63, 1000, 10_000, 1_000_000, 2**31 - 1, 2**32, 2**53, 2**64 - 1, 10**30)
# %d is replaced by a random number of repetitions.
_PATTERNS = (
    "^(a{1,1000}){1,1000}$", "(.*a.{%d}|x)", "^(.*a.{%d}.*b.{30}c)+$", r"^(\w{1,%d}\s?)+$", r"^\p{L}{1,%d}$",
    r"^[\p{L}\p{N}_]+(\.\p{Lu}\p{Ll}{0,%d})*$", "(a|aa|aaa|aaaa)*b{%d}", "(x+x+)+y", "^(([a-z])+.)+[A-Z]([a-z])+$",
    "^.{%d,}$", "^.{0,%d}$", "(?i)^straße{1,%d}$", "^(a?){%d}a{%d}$", "^([^x]*x){%d}$", "(.*)(.*)(.*)(.*)[^a-z]{%d}",
    "^((ab){0,%d}(ba){0,%d}){0,%d}$", r"^\w+([\.-]?\w+)*@\w+([\.-]?\w+)*(\.\w{2,})+$", r"^\d{%d}$",
    r"^[^\x00-\x{10FFFF}]$", r"\b\w", "(?P<a>b)(?P=a)", "^(?!a)b$", r"[\x00-\x{10FFFF}]{%d}\p{Greek}",
    "(" * 200 + "a" + ")" * 200, "(" * 300 + "a" + ")" * 300, "|".join(f"w{i}" for i in range(3000)),
    "^(a|b|ab)*c(.{%d})d$", "(0|1(01*0)*1)+", "(?s).*a(?s).{%d}b.*c(?s).{%d}d.*", "(unclosed", "[z-a]", "a{5,2}",
)  # fmt: skip
_REPETITIONS = (0, 1, 2, 8, 20, 50, 100, 500, 1000, 5000, 65535, 10**6, 2**31, 2**33)
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
_NUMBER_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_N_DEFINITIONS = 4


def make_schema(seed: int) -> Schema:
    """Return a random schema; the same seed gives the same schema. A quarter of them have numbers beyond 2**53."""
    return _Generator(random.Random(seed), has_huge_numbers=seed % 4 == 0).make_document()


class _Generator:
    def __init__(self, rng: random.Random, *, has_huge_numbers: bool) -> None:
        self._rng = rng
        self._numbers = [n for n in _NUMBERS if has_huge_numbers or abs(n) <= 2**53]

    def make_document(self) -> Schema:
        rng, kind = self._rng, self._rng.random()
        if kind < 0.04:
            multiples = [{"multipleOf": abs(self._number()) or 1} for _ in range(rng.randint(1, 6))]
            return {"type": rng.choice(["integer", "number"]), "allOf": multiples}
        if kind < 0.08:
            return self._make_chain()
        definitions = {f"d{i}": self._schema(2) for i in range(_N_DEFINITIONS)}
        return self._schema(0) | {"$defs": definitions}

    def _make_chain(self) -> Schema:
        """Return a long chain of references, in which each step may double the number of paths."""
        rng = self._rng
        n_steps = rng.choice([3, 30, 300, 3000, 6000])
        definitions: dict[str, Any] = {f"d{n_steps}": self._schema(2)}
        for i in range(n_steps):
            reference = {"$ref": f"#/$defs/d{rng.choice([i + 1, i + 1, i + 1, n_steps, 0])}"}
            definitions[f"d{i}"] = rng.choice([
                reference, {"anyOf": [reference, reference]}, {"allOf": [reference, reference]},
                {"type": "array", "items": reference}, {"anyOf": [reference, {"properties": {"x": reference}}]},
            ])  # fmt: skip
        return {"$ref": "#/$defs/d0", "$defs": definitions}

    def _number(self) -> float:
        rng, kind = self._rng, self._rng.random()
        if kind < 0.6:
            return rng.choice(self._numbers)
        return rng.randint(-(10**15), 10**15) if kind < 0.8 else rng.uniform(-1, 1) * 10 ** rng.randint(-20, 15)

    def _pattern(self) -> str:
        pattern = self._rng.choice(_PATTERNS)
        while "%d" in pattern:
            pattern = pattern.replace("%d", str(self._rng.choice(_REPETITIONS)), 1)
        return pattern

    def _schema(self, depth: int) -> Schema:
        rng = self._rng
        is_leaf = depth > rng.choice([2, 3, 4, 6])
        kind = rng.random() * (0.5 if is_leaf else 1)
        if kind < 0.25:
            return self._number_schema()
        if kind < 0.45:
            return self._string_schema()
        if kind < 0.6:
            return self._array_schema(depth) if kind > 0.5 else self._enumeration()
        if kind < 0.8:
            return self._object_schema(depth)
        if kind < 0.94:
            parts = [self._schema(depth + 1) for _ in range(rng.choice([1, 2, 2, 3, 4, 8]))]
            return {rng.choice(["anyOf", "allOf", "allOf", "oneOf"]): parts}
        return {"$ref": f"#/$defs/d{rng.randrange(_N_DEFINITIONS)}"}

    def _enumeration(self) -> Schema:
        return {"enum": [self._value(i) for i in range(self._rng.choice([1, 3, 30, 1000]))]}

    def _value(self, i: int) -> Any:
        return self._rng.choice([i, f"v{i}", "x" * self._rng.randint(0, 20) + str(i), [i], {"a": i}, self._number()])

    def _number_schema(self) -> Schema:
        rng = self._rng
        schema: Schema = {"type": rng.choice(["integer", "number", "number", ["integer", "string"]])}
        schema |= {name: self._number() for name in _NUMBER_LIMITS if rng.random() < 0.3}
        if rng.random() < 0.5:
            schema["multipleOf"] = abs(self._number()) or 1
        return schema

    def _string_schema(self) -> Schema:
        rng = self._rng
        schema: Schema = {"type": "string"}
        schema |= {name: rng.choice(_COUNTS) for name in ("minLength", "maxLength") if rng.random() < 0.3}
        if rng.random() < 0.6:
            schema["pattern"] = self._pattern()
        if rng.random() < 0.2:
            schema["format"] = rng.choice(_FORMATS)
        return schema

    def _array_schema(self, depth: int) -> Schema:
        rng = self._rng
        schema: Schema = {"type": "array", "items": self._schema(depth + 1)}
        schema |= {name: rng.choice(_COUNTS) for name in ("minItems", "maxItems") if rng.random() < 0.4}
        if rng.random() < 0.3:
            schema["prefixItems"] = [self._schema(depth + 1) for _ in range(rng.choice([1, 3, 20]))]
        return schema

    def _object_schema(self, depth: int) -> Schema:
        rng = self._rng
        n_properties = rng.choice([0, 1, 3, 8]) if depth else rng.choice([0, 1, 3, 30, 200, 2000, 5000])
        schemas = [self._schema(depth + (2 if n_properties > 8 else 1)) for _ in range(max(1, min(n_properties, 8)))]
        names = [f"p{i}" for i in range(n_properties)]
        schema: Schema = {"type": "object", "properties": {n: schemas[i % len(schemas)] for i, n in enumerate(names)}}
        if rng.random() < 0.5:
            schema["required"] = [name for name in names if rng.random() < 0.5]
        if rng.random() < 0.3:
            schema["additionalProperties"] = rng.choice([False, True, self._schema(depth + 1)])
        if rng.random() < 0.2:
            schema["patternProperties"] = {self._pattern(): self._schema(depth + 1) for _ in range(rng.randint(1, 4))}
        if rng.random() < 0.1:
            schema["maxProperties"] = rng.choice(_COUNTS)
        return schema
