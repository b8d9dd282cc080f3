"""Final answers of replies: normal forms, hostile and huge texts."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgechat.prompt.agreement.answers import Answer, extract_answer
from tests.time_limit import ends_within


def number(value: str) -> Answer:
    return Answer("number", value)


def choice(letter: str) -> Answer:
    return Answer("choice", letter)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", number("42")),
        ("The answer is 42.", number("42")),
        ("**Answer:** 42", number("42")),
        ("Final answer: **42 apples**", number("42")),
        ("Answer:\n\n  42\n", number("42")),
        ("#### 1,234", number("1234")),
        ("3 + 4 = 7\nSo Tom has 7 apples left.", number("7")),
        ("So the total cost is $1,234.50.", number("1234.5")),
        ("The total is 1.234,5 euros", number("1234.5")),
        ("It is 1.234.567 in all", number("1234567")),
        ("The answer is 12 345 km", number("12345")),
        ("The answer is 12,5", number("12.5")),
        ("The answer is -7 degrees", number("-7")),
        ("The answer is \u22127", number("-7")),
        ("Answer: 3/4", number("0.75")),
        ("Answer: 0.75", number("0.75")),
        ("Answer: 1 1/2 cups", number("1.5")),
        ("Answer: 2½ cups", number("2.5")),
        ("Answer: 1/3", number("1/3")),
        ("Answer: 75%", number("75")),
        ("Answer: 75 percent", number("75")),
        ("Answer: 1.5e3", number("1500")),
        ("Answer: 3 million people", number("3000000")),
        ("Answer: 007", number("7")),
        ("Answer: 7.0", number("7")),
        ("The answer is x = 5", number("5")),
        ("The answer is 3 + 4 = 7", number("7")),
        ("The answers are 3 and 5.", number("3, 5")),
        (r"Thus \boxed{12}. The answer is 13.", number("12")),
        (r"So $\boxed{\frac{3}{4}}$", number("0.75")),
        (r"\boxed{\text{Paris}}", Answer("text", "paris")),
        (r"\[ x = \boxed{1{,}000} \]", number("1000")),
        ("The answer is $12$.", number("12")),
        ("12 is the answer", number("12")),
        ("There are 12 apples", number("12")),
        ("The answer is: seven", Answer("text", "seven")),
        ("B", choice("B")),
        ("b)", choice("B")),
        ("(C)", choice("C")),
        ("The correct answer is (B) Paris.", choice("B")),
        ("Answer: D. 12 metres", choice("D")),
        ("The answer is option C", choice("C")),
        ("The right one is B.", choice("B")),
        ("A dog", Answer("text", "dog")),
        ("Yes, because it is divisible by 3.", number("3")),
        ("Answer: Yes, because it is prime.", Answer("text", "yes")),
        ("No.", Answer("text", "no")),
        ("The capital of France is Paris.", Answer("text", "paris")),
        ('"Paris"', Answer("text", "paris")),
        ("The answer is the Eiffel Tower.", Answer("text", "eiffel tower")),
        ("The answer is 12:30", Answer("text", "12:30")),
        ("The answer is 2024-05-01", Answer("text", "2024-05-01")),
        ("The answer is 3-5 days", Answer("text", "3-5 days")),
        ("The answer is 3 * (4 + x)", Answer("text", "3 * (4 + x")),
        ("Answer: 1/0", Answer("text", "1/0")),
        ('{"b": 1.0, "a": " X  y"}', Answer("json", '{"a":"x y","b":1}')),
        ('Here it is:\n```json\n{"a": [1, 2]}\n```\nDone.', Answer("json", '{"a":[1,2]}')),
        ('The answer is {"a": null}', Answer("json", '{"a":null}')),
        ("[3, 2]", Answer("json", "[3,2]")),
        ("Tom has 24 apples and gives away 17.\nSo Tom keeps 7 apples of his 24.", number("7")),
        ("Tom has 24 apples and gives away 17. He keeps 7 of the 24.", number("7")),
        ("He had 24 and gave away 17.\nThe answer is that after giving away 17 apples, he has 7.", number("7")),
        ("There are 3 boxes of 12 pens.\nIn all 3 boxes, there are 36 pens.", number("36")),
        ("There are 12 cats and 12 dogs. So there are as many dogs as cats: 12.", number("12")),
        ("Ann has 5 cats. In 3 days, she still has 5.\nThe answer is 5.", number("5")),
        ("Ann has 5 cats.\nAnn has 5 cats.", number("5")),
        ("If 3 pens cost 6 dollars, then 5 pens cost 10 dollars.", number("10")),
        ("The total is 12.\n\nLet me know if you have questions!", number("12")),
        ("24 - 17 = 7\nI hope this helps!\n**Feel free to ask more.**", number("7")),
        ("It is Paris.\nIs there anything else?", Answer("text", "paris")),
        ("There are 5 apples.\nIf you have 5 and eat 2, you have 3 left.", number("3")),
        ("I hope this helps!", Answer("text", "i hope this helps")),
        ("", None),
        ("...\n---\n", None),
        ("Once upon a time " * 20, None),
        ("The answer is clear to everyone who has read the text, and who knows that cats and dogs differ in many ways",
         None),
    ],
)  # fmt: skip
def test_answers_have_a_normal_form(text: str, answer: Answer | None) -> None:
    assert extract_answer(text) == answer


@given(value=st.integers(-(10**12), 10**12))
def test_the_notation_of_a_number_does_not_matter(value: int) -> None:
    texts = [
        f"{value}", f"{value:,}", f"{value:_}", f"The answer is {value:,}.", f"**Answer:** ${value:,}$", f"{value}.0",
        f"\\boxed{{{value}}}", f"Answer: {value:,} apples", f"So we get {value}",
    ]  # fmt: skip
    assert {extract_answer(text) for text in texts} == {number(str(value))}


TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(list('0123456789.,-/ {}[]\\"$%`\n:=ABis'))), max_size=200
)


@given(text=TEXTS)
@example("\\boxed{")
@example("```{```")
@example("[" * 100_000 + "]" * 100_000)
@example('{"a":' * 100_000 + "}" * 100_000)
@example("[1e999]")
@example("9" * 100_000)
@example("The answer is 1e999")
@example("1 1/0")
@example("{\ud800}")
def test_any_text_is_accepted(text: str) -> None:
    answer = extract_answer(text)
    if answer is not None:
        assert 0 < len(answer.value) < 500
        assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "unit",
    ["9", "9 ", "9,", "1/", "answer is ", "is ", "=", "\\boxed{", "{", "}", "`", "```", "(a", "option ", "\n", "- ",
     "\\frac{1", "\\text{", "½", "and ", "$", '{"a":', "[1,"],
)  # fmt: skip
def test_huge_texts_take_linear_time(unit: str) -> None:
    """Quadratic time would take hours here."""
    with ends_within():
        extract_answer(unit * (5_000_000 // len(unit)))
        extract_answer(unit * (19_000 // len(unit)))


def test_a_long_answer_is_shortened() -> None:
    text = '{"a": "' + "x" * 10_000 + '"}'
    answer = extract_answer(text)
    assert answer is not None
    assert len(answer.value) < 300
    assert answer != extract_answer(text.replace("x", "y"))
    assert answer != extract_answer(text.replace('x"', 'z"'))


def test_random_text_between_reasoning_and_answer_does_not_matter() -> None:
    rng = random.Random(1)
    for _ in range(200):
        steps = "\n".join(f"Step {rng.randrange(9)}: {rng.randrange(99)} + {rng.randrange(99)}" for _ in range(5))
        assert extract_answer(f"{steps}\nThe answer is 77.") == number("77")
