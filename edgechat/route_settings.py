"""The setting `route`: a small and a large model, the rules that choose between them, and when a reply is escalated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from edgechat.remote_settings import ROUTE

Side = Literal["small", "large"]
"""Which of the two models of a route is meant."""
_MAX_NAME_CHARS: Final = 2000
_MAX_RULES: Final = 100
_EXPECTED: Final = (
    'must be a table such as [route] with small = "NAME" and large = "NAME", and optionally min_logprob, dont_know, '
    "agree and rules"
)


class RouteRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rule that chooses a model. It applies to a message that meets all of its conditions."""

    use: Side
    min_chars: int | None = None
    """Minimum length of the message in characters; None for no minimum."""
    max_chars: int | None = None
    """Maximum length of the message in characters; None for no maximum."""
    attachments: bool | None = None
    """Whether the message has attachments; None if that does not matter."""
    persona: str | None = None
    """Persona of the conversation; None if it does not matter."""


class RouteSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two models, the rules that choose between them, and the doubts for which a reply of the small one is escalated.

    Each model is local, or the model of a remote. If no rule applies, the small model replies, and its reply is
    escalated to the large model if there is a doubt.
    """

    small: str
    large: str
    min_logprob: float | None = None
    """Minimum mean natural logprob of the tokens of a reply; None for no minimum."""
    dont_know: bool = True
    """Escalate a reply that begins with words such as "I don't know"."""
    agree: bool = False
    """Generate two replies, and escalate them if their final answers differ."""
    rules: tuple[RouteRule, ...] = ()
    """Rules in order; the first one that applies decides."""

    @property
    def has_checks(self) -> bool:
        """True if a reply of the small model can be escalated."""
        return self.min_logprob is not None or self.dont_know or self.agree


def parse_route(value: object) -> tuple[RouteSettings | None, str]:
    """Parse the table `route` of a settings file; return the route, or None and a clause with the reason against it."""
    try:
        route = msgspec.convert(value, RouteSettings)
    except (msgspec.ValidationError, RecursionError) as error:
        reason = "" if not isinstance(value, Mapping) else f" ({error})"
        return None, f"{_EXPECTED}{reason}"
    return (None, problem) if (problem := _check_route(route)) else (route, "")


def describe_route(value: object) -> str:
    """Return a text with the two models of the table `route`, such as "starter, or box/llama3"; "" for an invalid one.

    The table is empty if there is no route.
    """
    route = parse_route(value)[0] if value else None
    return f"{route.small}, or {route.large}" if route is not None else ""


def _check_route(route: RouteSettings) -> str:
    """Return the reason why a route is invalid, as a clause; "" if it is valid."""
    problems = [_check_name("small", route.small), _check_name("large", route.large)]
    if route.small == route.large:
        problems.append(f"must name two different models, not {route.small!r} twice")
    if route.min_logprob is not None and not -100 <= route.min_logprob <= 0:  # noqa: PLR2004  (NaN fails, too)
        problems.append(f"must have a min_logprob between -100 and 0, not {route.min_logprob:g}")
    if len(route.rules) > _MAX_RULES:
        problems.append(f"must have at most {_MAX_RULES} rules, not {len(route.rules)}")
    problems += [_check_rule(number, rule) for number, rule in enumerate(route.rules[:_MAX_RULES], 1)]
    return next(filter(None, problems), "")


def _check_name(side: Side, name: str) -> str:
    if name == ROUTE:
        return f"must name a model in {side}, not the route itself, which would never end"
    is_valid = name.strip() == name != "" and len(name) <= _MAX_NAME_CHARS and name.isprintable()
    return "" if is_valid else f"must have the name of a model in {side}"


def _check_rule(number: int, rule: RouteRule) -> str:
    lengths = [n for n in (rule.min_chars, rule.max_chars) if n is not None]
    if any(n < 0 for n in lengths) or lengths != sorted(lengths):
        return f"must have lengths from 0 up in rule {number}, and min_chars at most max_chars"
    if not lengths and rule.attachments is None and rule.persona is None:
        return f"must have a condition in rule {number}: min_chars, max_chars, attachments or persona"
    return ""


class RoutedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a message that rules depend on."""

    n_chars: int
    has_attachments: bool = False
    persona: str = ""
    """Name of the persona of the conversation; "" if it has none."""
    is_hard: bool = False
    """True if the user marked the message with `/hard`."""


class RouteChoice(msgspec.Struct, frozen=True):
    """Model that replies first, and why."""

    side: Side
    reason: str
    """Reason in a few words, such as "rule 2"; "" if no rule applies."""
    is_final: bool
    """True if the reply is not escalated, whatever its doubts are."""


def choose_side(route: RouteSettings, message: RoutedMessage) -> RouteChoice:
    """Choose the model that replies to a message: `/hard`, then the first rule that applies, then the small model."""
    if message.is_hard:
        return RouteChoice("large", "/hard", is_final=True)
    for number, rule in enumerate(route.rules, 1):
        if _applies(rule, message):
            return RouteChoice(rule.use, f"rule {number}", is_final=True)
    return RouteChoice("small", "", is_final=not route.has_checks)


def _applies(rule: RouteRule, message: RoutedMessage) -> bool:
    return (
        (rule.min_chars is None or message.n_chars >= rule.min_chars)
        and (rule.max_chars is None or message.n_chars <= rule.max_chars)
        and rule.attachments in {None, message.has_attachments}
        and rule.persona in {None, message.persona}
    )
