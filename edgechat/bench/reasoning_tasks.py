"""Tasks with known answers for the reasoning benchmark, made from templates with a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec

from edgechat.prompt.agreement.answers import Answer, extract_answer

TaskKind = Literal["arithmetic", "choice", "json"]
_NAMES: Final = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Ivy", "Jonas", "Kira", "Leo")
_THINGS: Final = ("apples", "books", "pencils", "stamps", "marbles", "eggs", "tickets", "shells")
_CITIES: Final = ("Berlin", "Oslo", "Madrid", "Lyon", "Porto", "Vienna", "Krakow", "Ghent")
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_STEPS: Final = "Solve it step by step. End with a line of the form: The answer is NUMBER."
_OPTIONS: Final = "Think briefly. End with a line of the form: The answer is LETTER."
_JSON: Final = "Reply with one JSON object only, with exactly these keys:"


class Task(NamedTuple):
    """A question and its answer."""

    kind: TaskKind
    question: str
    answer: Answer

    def is_correct(self, reply: str) -> bool:
        """Return whether the final answer of a reply is the answer of the task."""
        return extract_answer(reply) == self.answer


# Arithmetic. Each template returns the question and the number.


def _shopping(rng: random.Random) -> tuple[str, int]:
    n, price, paid = rng.randrange(3, 9), rng.randrange(2, 9), 10 * rng.randrange(8, 12)
    thing = rng.choice(_THINGS)
    text = (
        f"{rng.choice(_NAMES)} buys {n} {thing} for {price} dollars each and pays with {paid} dollars. How many "
        "dollars of change are due?"
    )
    return text, paid - n * price


def _boxes(rng: random.Random) -> tuple[str, int]:
    n, each, removed = rng.randrange(4, 13), rng.randrange(6, 25), rng.randrange(5, 20)
    thing = rng.choice(_THINGS)
    return f"A shop has {n} boxes with {each} {thing} each. It sells {removed} {thing}. How many {thing} are left?", (
        n * each - removed
    )


def _sharing(rng: random.Random) -> tuple[str, int]:
    n, each, own = rng.randrange(3, 8), rng.randrange(4, 12), rng.randrange(2, 9)
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    text = (
        f"{name} has {n * each + own} {thing}, keeps {own} of them, and shares the rest equally among {n} friends. "
        f"How many {thing} does each friend get?"
    )
    return text, each


def _journey(rng: random.Random) -> tuple[str, int]:
    first, speed, second, faster = (
        rng.randrange(2, 6),
        rng.randrange(4, 9) * 10,
        rng.randrange(1, 4),
        rng.choice([10, 20]),
    )
    text = (
        f"A train travels for {first} hours at {speed} km per hour, then for {second} hours at a speed that is "
        f"{faster} km per hour higher. How many kilometres does it travel?"
    )
    return text, first * speed + second * (speed + faster)


def _wages(rng: random.Random) -> tuple[str, int]:
    wage, hours, extra = rng.randrange(9, 20), rng.randrange(20, 38), rng.randrange(2, 8)
    name = rng.choice(_NAMES)
    text = (
        f"{name} earns {wage} dollars per hour, and twice as much for overtime. {name} works {hours} normal hours "
        f"and {extra} hours of overtime. How many dollars does {name} earn?"
    )
    return text, wage * hours + 2 * wage * extra


def _ages(rng: random.Random) -> tuple[str, int]:
    age, factor, years = rng.randrange(5, 12), rng.randrange(3, 5), rng.randrange(3, 10)
    first, second = rng.sample(_NAMES, 2)
    text = (
        f"{first} is {age} years old. {second} is {factor} times as old as {first}. How old will {second} be in "
        f"{years} years?"
    )
    return text, age * factor + years


def _rows(rng: random.Random) -> tuple[str, int]:
    rows, seats, empty = rng.randrange(8, 20), rng.randrange(9, 25), rng.randrange(3, 30)
    text = (
        f"A theatre has {rows} rows of {seats} seats. {empty} seats are empty. Each visitor paid 3 dollars. How many "
        "dollars were paid in all?"
    )
    return text, 3 * (rows * seats - empty)


def _discount(rng: random.Random) -> tuple[str, int]:
    price, percent, shipping = 20 * rng.randrange(2, 12), rng.choice([5, 10, 15, 20, 25]), rng.randrange(3, 9)
    text = (
        f"A coat costs {price} dollars. It is reduced by {percent} percent, and shipping costs {shipping} dollars. "
        "How many dollars does the coat cost with shipping?"
    )
    return text, price - price * percent // 100 + shipping


def _tank(rng: random.Random) -> tuple[str, int]:
    rate, leak, minutes = rng.randrange(9, 16), rng.randrange(2, 6), rng.randrange(6, 20)
    start = 5 * rng.randrange(2, 10)
    text = (
        f"A tank contains {start} litres of water. A tap adds {rate} litres per minute, while {leak} litres per "
        f"minute leak out. How many litres are in the tank after {minutes} minutes?"
    )
    return text, start + (rate - leak) * minutes


def _pages(rng: random.Random) -> tuple[str, int]:
    per_day, days, left = rng.randrange(12, 40), rng.randrange(4, 10), rng.randrange(15, 90)
    name = rng.choice(_NAMES)
    text = (
        f"{name} reads {per_day} pages of a book each day for {days} days, and has {left} pages left to read. How "
        "many pages does the book have?"
    )
    return text, per_day * days + left


def _rectangle(rng: random.Random) -> tuple[str, int]:
    width, more = rng.randrange(5, 20), rng.randrange(2, 12)
    text = (
        f"A garden is {width} metres wide, and its length is {more} metres more than its width. How many metres of "
        "fence are needed to go around it?"
    )
    return text, 2 * (2 * width + more)


def _three_people(rng: random.Random) -> tuple[str, int]:
    base, more, factor = rng.randrange(6, 20), rng.randrange(3, 12), rng.randrange(2, 4)
    first, second, third = rng.sample(_NAMES, 3)
    thing = rng.choice(_THINGS)
    text = (
        f"{first} has {base} {thing}. {second} has {more} more than {first}. {third} has {factor} times as many as "
        f"{second}. How many {thing} do the three have together?"
    )
    return text, base + (base + more) * (1 + factor)


# Multiple choice. Each template returns the question, the right option, and functions or texts for wrong ones.


def _sequence(rng: random.Random) -> tuple[str, str, list[str]]:
    start, step = rng.randrange(2, 30), rng.randrange(3, 14)
    shown = ", ".join(str(start + step * i) for i in range(5))
    right = start + 5 * step
    return f"Which number comes next: {shown}?", str(right), [str(right + d) for d in (-step + 1, step, -1, 2)]


def _doubling(rng: random.Random) -> tuple[str, str, list[str]]:
    start = rng.randrange(2, 9)
    shown = ", ".join(str(start * 2**i) for i in range(4))
    right = start * 16
    return f"Which number comes next: {shown}?", str(right), [str(right + d) for d in (-start, start, 2, -4)]


def _weekday(rng: random.Random) -> tuple[str, str, list[str]]:
    today, days = rng.randrange(7), rng.randrange(8, 30)
    right = _DAYS[(today + days) % 7]
    return (
        f"Today is {_DAYS[today]}. Which day of the week is it in {days} days?",
        right,
        [d for d in _DAYS if d != right],
    )


def _largest(rng: random.Random) -> tuple[str, str, list[str]]:
    values = rng.sample(range(101, 999), 4)
    numbers = [f"{value / 10 ** rng.choice([2, 3]):g}" for value in values]
    right = max(numbers, key=float)
    return "Which of these numbers is the largest?", right, [n for n in numbers if n != right]


def _minutes(rng: random.Random) -> tuple[str, str, list[str]]:
    hours, minutes, duration = rng.randrange(7, 18), 5 * rng.randrange(12), 5 * rng.randrange(15, 40)

    def clock(total: int) -> str:
        return f"{total // 60:02}:{total % 60:02}"

    end = hours * 60 + minutes + duration
    return (
        f"A film starts at {clock(hours * 60 + minutes)} and takes {duration} minutes. When does it end?",
        clock(end),
        [clock(end + d) for d in (-10, 10, 60, -60, 5)],
    )


def _remainder(rng: random.Random) -> tuple[str, str, list[str]]:
    divisor, number = rng.randrange(6, 12), rng.randrange(50, 300)
    right = number % divisor
    return (
        f"What is the remainder of {number} divided by {divisor}?",
        str(right),
        [str(n) for n in range(divisor) if n != right],
    )


def _order(rng: random.Random) -> tuple[str, str, list[str]]:
    names = rng.sample(_NAMES, 4)
    facts = [f"{a} is taller than {b}." for a, b in itertools.pairwise(names)]
    rng.shuffle(facts)
    asked, right = ("shortest", names[3]) if rng.random() < 0.5 else ("second tallest", names[1])  # noqa: PLR2004  (even)
    return f"{' '.join(facts)} Who is the {asked}?", right, [name for name in names if name != right]


def _units(rng: random.Random) -> tuple[str, str, list[str]]:
    metres = rng.randrange(2, 90)
    right = metres * 100 + rng.randrange(1, 99)
    wrong = [right * 10, right // 10, right + 100, right - 100]
    return (
        f"How many centimetres are {right // 100} metres and {right % 100} centimetres?",
        str(right),
        [str(n) for n in wrong],
    )


# JSON. Each template returns a text and the values to extract from it.


def _person(rng: random.Random) -> tuple[str, dict[str, object]]:
    name, age, city, years = rng.choice(_NAMES), rng.randrange(19, 70), rng.choice(_CITIES), rng.randrange(2, 15)
    text = f"Our colleague {name}, who turned {age} in spring, moved to {city} after {years} years in Rome."
    return text, {"name": name, "age": age, "city": city}


def _order_form(rng: random.Random) -> tuple[str, dict[str, object]]:
    thing, n, price = rng.choice(_THINGS), rng.randrange(3, 40), rng.randrange(2, 15)
    text = f"Please send {n} {thing} at {price} dollars each to Mr. {rng.choice(_NAMES)} in {rng.choice(_CITIES)}."
    return text, {"item": thing, "quantity": n, "total_price": n * price}


def _event(rng: random.Random) -> tuple[str, dict[str, object]]:
    city, day, hour, seats = rng.choice(_CITIES), rng.choice(_DAYS), rng.randrange(13, 22), 10 * rng.randrange(4, 30)
    taken = rng.randrange(5, 40)
    text = f"The concert in {city} is on {day} and begins at {hour}:00. Of {seats} seats, {taken} are taken."
    return text, {"city": city, "day": day, "free_seats": seats - taken}


def _list_of_names(rng: random.Random) -> tuple[str, dict[str, object]]:
    names, city = rng.sample(_NAMES, 3), rng.choice(_CITIES)
    text = f"{names[0]} met {names[1]} in {city}, and two days later {names[2]} joined them."
    return text, {"people": names, "city": city, "number_of_people": 3}


def _weather(rng: random.Random) -> tuple[str, dict[str, object]]:
    city, low, rise = rng.choice(_CITIES), rng.randrange(-9, 10), rng.randrange(3, 12)
    text = f"In {city} it was {low} degrees in the morning. By noon the temperature had risen by {rise} degrees."
    return text, {"city": city, "morning": low, "noon": low + rise}


def _stock(rng: random.Random) -> tuple[str, dict[str, object]]:
    first, second = rng.sample(_THINGS, 2)
    n_first, n_second, sold = rng.randrange(30, 90), rng.randrange(10, 60), rng.randrange(3, 25)
    text = f"The shop had {n_first} {first} and {n_second} {second}. Yesterday it sold {sold} {first} and no {second}."
    return text, {first: n_first - sold, second: n_second}


_ARITHMETIC: Final[tuple[Callable[[random.Random], tuple[str, int]], ...]] = (
    _shopping, _boxes, _sharing, _journey, _wages, _ages, _rows, _discount, _tank, _pages, _rectangle, _three_people,
)  # fmt: skip
_CHOICE: Final[tuple[Callable[[random.Random], tuple[str, str, list[str]]], ...]] = (
    _sequence, _doubling, _weekday, _largest, _minutes, _remainder, _order, _units,
)  # fmt: skip
_EXTRACTION: Final[tuple[Callable[[random.Random], tuple[str, dict[str, object]]], ...]] = (
    _person, _order_form, _event, _list_of_names, _weather, _stock,
)  # fmt: skip
# Half of the tasks are arithmetic, and a quarter of each other kind.
_KINDS: Final[tuple[TaskKind, ...]] = ("arithmetic", "choice", "arithmetic", "json")


def make_task(seed: int, index: int) -> Task:
    """Make task number `index` of a seed. The same numbers always make the same task."""
    rng, kind = random.Random(f"{seed} {index}"), _KINDS[index % len(_KINDS)]  # noqa: S311  (reproducible tasks)
    if kind == "arithmetic":
        question, number = rng.choice(_ARITHMETIC)(rng)
        return Task(kind, f"{question}\n\n{_STEPS}", Answer("number", str(number)))
    if kind == "choice":
        question, right, wrong = rng.choice(_CHOICE)(rng)
        options = [right, *rng.sample(sorted({option for option in wrong if option != right}), 3)]
        rng.shuffle(options)
        lines = "\n".join(f"{letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
        return Task(kind, f"{question}\n{lines}\n\n{_OPTIONS}", Answer("choice", "ABCD"[options.index(right)]))
    text, values = rng.choice(_EXTRACTION)(rng)
    answer = extract_answer(msgspec.json.encode(values).decode())
    if answer is None:
        raise AssertionError("a JSON object has an answer")
    return Task(kind, f"{text}\n\n{_JSON} {', '.join(values)}. Use numbers for amounts.", answer)
