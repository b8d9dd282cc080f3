"""Citations in replies, and the terms of claims that the cited passages do not contain."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgechat.documents.citations import MAX_CITATIONS, Citation, CitationFinder, find_citations
from edgechat.documents.claim_terms import find_claim_terms, list_passage_terms
from edgechat.documents.passages import Passage


def _passage(number: int, text: str, **fields: object) -> Passage:
    return Passage(number=number, collection="notes", document=f"file{number}.txt", text=text, **fields)  # type: ignore[arg-type]


_PASSAGES = [_passage(n, f"text of passage {n}") for n in range(1, 10)]


def _find(text: str, *texts: str) -> list[Citation]:
    """Find citations of passages with these texts, numbered from 1; without texts, of nine passages."""
    return find_citations(text, [_passage(n, t) for n, t in enumerate(texts, 1)] if texts else _PASSAGES)


def _missing(text: str, *texts: str) -> tuple[str, ...]:
    return tuple(term for citation in _find(text, *texts) for term in citation.missing_terms)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("it is [3].", [(3,)]),
        ("it is [1, 4] so", [(1, 4)]),
        ("it is [1,4;5] so", [(1, 4, 5)]),
        ("it is [2-4].", [(2, 3, 4)]),
        ("it is [2\N{EN DASH}4, 7].", [(2, 3, 4, 7)]),
        ("it is [1][2].", [(1,), (2,)]),
        ("it is[3]. Then", [(3,)]),
        ("it is. [3] Then", [(3,)]),
        ("it is [ 3 ].", [(3,)]),
        ("it is [3]: so", [(3,)]),
        ("- item [3]\n- item [4]", [(3,), (4,)]),
        ("| a [1] | b [2] |\n|---|---|\n| c [3] | d |", [(1,), (2,), (3,)]),
        ("> quote [3]", [(3,)]),
        ("it is [99].", [(99,)]),
        ("it is [4-4].", [(4,)]),
    ],
)
def test_numbers_in_brackets_are_citations(text: str, numbers: list[tuple[int, ...]]) -> None:
    citations = _find(text)
    assert [c.numbers for c in citations] == numbers
    assert all(text[c.start] == "[" and text[c.end - 1] == "]" for c in citations)


@pytest.mark.parametrize(
    "text",
    [
        "`a[3]` is code",
        "``x ` [3] ` `` is code",
        "```\n[3]\n```",
        "~~~python\na = [1, 2]\n~~~",
        "```\n[3]",
        "[3](https://example.com)",
        "see[^3]",
        "[3]: https://example.com",
        "text\n  [3]: file.txt",
        r"\[3\]",
        "[text][3] and\n\n[3]: https://example.com",
        "[x] done, [ ] open, [] empty",
        "[0] and [4-2] and [1-500] and [12345678]",
        "[1.5] and [1 2] and [a1]",
    ],
)
def test_other_brackets_are_not_citations(text: str) -> None:
    assert _find(text) == []


def test_reply_without_passages_has_no_citations() -> None:
    assert find_citations("it is [3].", []) == []


def test_numbers_without_a_passage_are_named() -> None:
    [citation] = _find("it is [2, 30].")
    assert [p.number for p in citation.passages] == [2]
    assert citation.unknown_numbers == (30,)
    assert citation.problem == "no such passage: 30"


@pytest.mark.parametrize(
    ("claim", "passage"),
    [
        ("It costs 1,000 euros [1].", "price: 1000"),
        ("It costs 1000 euros [1].", "price: 1,000"),
        ("It costs 1 000 000 euros [1].", "price: 1.000.000"),
        ("It costs 1,000,000 euros [1].", "price: 1\N{NO-BREAK SPACE}000\N{NO-BREAK SPACE}000"),
        ("It costs 3.5 euros [1].", "3,50 EUR"),
        ("It grew by 50 % [1].", "growth of 50%"),
        ("It grew by 50% [1].", "growth of fifty percent"),
        ("It took 1.5 million [1].", "1,500,000 in all"),
        ("It took 1,500,000 [1].", "1.5M in all"),
        ("It has 3 parts [1].", "it has three parts"),
        ("It happened in 2024 [1].", "on 2024-03-01"),
        ("It happened in March 2024 [1].", "on 2024-03-01"),
        ("It is version 1.2.3 [1].", "release 1.2.3"),
        ("It needs 16GB [1].", "16 GB of memory"),
        ("It is the work of Albert Einstein [1].", "A. EINSTEIN, Albert: papers"),
        ("It is in Einstein's paper [1].", "by Einstein"),
        ("It uses GPUs [1].", "one GPU"),
        ("It calls read_file here [1].", "def read_file(path):"),
        ("It calls `readFile` here [1].", "function readFile() {"),
        ("Paris is large [1].", "it is large"),
        ("- Paris is large [1]", "it is large"),
        ("1. Paris is large [1]", "it is large"),
        ("**Paris** is large [1].", "it is large"),
        ("## Key Findings [1]", "something else"),
        ("It is (see https://Example.com/42) large [1].", "it is large"),
        ("[1] The report says so.", "a report"),
        ("[1][2] The report says so.", "a report"),
        ("He said: The report is old [1].", "old"),
        ("- **Total Cost**: it is high [1]", "high"),
        ("It has (1) a roof and (2) a door [1].", "roof, door"),
        ("It is old, as passage 3 says [1].", "old"),
        ("It is in File1 [1].", "named by its document: file1"),
        ("Der Umsatz der Firma stieg und die Kosten sind im Jahr gesunken [1].", "Umsaetze"),
    ],
)
def test_terms_of_the_passage_are_not_missing(claim: str, passage: str) -> None:
    assert _missing(claim, passage) == ()


@pytest.mark.parametrize(
    ("claim", "passage", "missing"),
    [
        ("It grew by 42 % [1].", "growth of 24 %", ("42 %",)),
        ("It costs 1,000 euros [1].", "price: 100", ("1,000",)),
        ("It took 1.5 million [1].", "2.5 million", ("1.5",)),
        ("It happened in 2024 [1].", "in 2023", ("2024",)),
        ("It happened in May 2024 [1].", "2024-03-01", ("May",)),
        ("It is the work of Niels Bohr [1].", "by Albert Einstein", ("Niels", "Bohr")),
        ("It calls write_file here [1].", "def read_file(path):", ("write_file",)),
        ("readFile is called [1].", "writeFile", ("readFile",)),
        ("- **Total Cost**: 7 [1]", "8", ("7",)),
        ("It is in Erika (42) [1].", "Erika", ("42",)),
        ("NASA is large [1].", "it is large", ("NASA",)),
        ("Der Umsatz der Firma stieg und die Kosten sind im Jahr um 5 % gesunken [1].", "Umsaetze", ("5 %",)),
        ("It is 5. It is 6 [1].", "5", ("6",)),
        ("It is 6. [1] It is 7.", "5", ("6",)),
        ("It is 5. [1] says that it is 6.", "5", ("6",)),
        ("It is from Fig. 3 of Smith et al. 2020 [1].", "", ("3", "Smith", "2020")),
        ("| Paris | 42 [1] |", "Paris", ("42",)),
    ],
)
def test_terms_that_the_passage_does_not_contain_are_missing(
    claim: str, passage: str, missing: tuple[str, ...]
) -> None:
    assert _missing(claim, passage) == missing


def test_missing_term_belongs_to_the_citation_after_it() -> None:
    first, second, third = _find("It is 42 here [1][2] and 43 there [3].", "a", "b", "c")
    assert (first.missing_terms, second.missing_terms, third.missing_terms) == ((), ("42",), ("43",))
    assert second.problem == "not in the passage: 42"


def test_place_of_a_passage_belongs_to_it() -> None:
    passage = _passage(1, "old", page=12, last_page=13)
    [citation] = find_citations("It is on page 12 and on page 13 of file1 [1].", [passage])
    assert citation.missing_terms == ()


def test_found_terms_of_the_sentence_are_listed() -> None:
    first, second = _find("Revenue of Nordlicht rose from 5 [1] to 8 [2].", "5 for Nordlicht", "7")
    assert first.found_terms == second.found_terms == ("Nordlicht", "5")
    assert second.missing_terms == ("8",)


def test_term_may_be_in_any_passage_of_the_sentence() -> None:
    assert _missing("It rose from 5 [1] to 7 [2].", "7", "5") == ()


def test_term_after_the_last_citation_belongs_to_it() -> None:
    [citation] = _find("According to [1, 2], it is 42.", "a", "b")
    assert citation.missing_terms == ("42",)
    assert citation.problem == "not in the passages: 42"


@given(st.text(alphabet="[]1234 ,-`.~\n(:aA\\%\u2013\u00bd\u0660", max_size=200))
def test_citations_are_in_order_and_are_brackets_of_the_text(text: str) -> None:
    citations = _find(text)
    position = 0
    for citation in citations:
        assert position <= citation.start < citation.end <= len(text)
        assert text[citation.start] == "["
        assert text[citation.end - 1] == "]"
        assert citation.numbers
        position = citation.end


@given(st.text(max_size=300))
def test_sentence_copied_from_its_passage_has_no_missing_terms(text: str) -> None:
    assert _missing(f"{text} [1]", text) == ()


_NUMBERS = st.text(alphabet="0123459.,'\u2019 mkbn\u0663[]", max_size=40) | st.text(max_size=40)


@example("Depths 5 [1].", "Depths of 10,20,30 m")
@example("1,2,3 million [1].", "3")
@example("1'2'3 m and 5.5,5 m [1].", "5.5,5 m")
@given(_NUMBERS, _NUMBERS)
def test_any_text_has_claim_terms(claim: str, passage: str) -> None:
    assert isinstance(_missing(f"{claim} [1].", passage), tuple)
    assert isinstance(list_passage_terms(claim), frozenset)


def test_lists_of_numbers_are_compared_as_they_are() -> None:
    assert _missing("Depths of 10,20,30 m [1].", "depths: 10,20,30 m") == ()
    assert _missing("Depths of 10,20,40 m [1].", "depths: 10,20,30 m") == ("10,20,40",)


@given(st.integers(0, 10**12), st.sampled_from([",", "'", " ", "\N{NARROW NO-BREAK SPACE}", ""]))
def test_number_is_found_with_any_separator_of_thousands(number: int, separator: str) -> None:
    [term] = find_claim_terms(f"it is {number} of them", checks_names=False)
    assert not term.keys.isdisjoint(list_passage_terms(f"there are {number:,}".replace(",", separator)))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        "[]" * 500_000,
        "[1]" * 300_000,
        "[1]:" * 250_000,
        "[1," * 300_000,
        "[1-" * 300_000,
        "[1, 2, 3, 4" * 90_000,
        "." * 1_000_000 + "x [1]",
        "a. " * 300_000 + "[1]",
        "`" * 1_000_000 + "[1]",
        "`a``b```c" * 100_000 + "[1]",
        "\n".join(["[1]: x"] * 150_000),
        "](" * 500_000 + "[1]",
        "1 111 " * 150_000 + "[1]",
        "1," * 500_000 + "1 [1]",
        "Aa " * 300_000 + "[1-9]",
        " " * 1_000_000 + "[1]",
        "\u00bd\ufdfa" * 100_000 + "[1]",
    ],
    ids=lambda text: repr(text[:9]),
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    assert len(_find(text)) <= MAX_CITATIONS


def test_terms_of_a_passage_are_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(text: str) -> frozenset[str]:
        calls.append(text)
        return list_passage_terms(text)

    monkeypatch.setattr("edgechat.documents.citations.list_passage_terms", count)
    finder = CitationFinder(_PASSAGES)
    finder.find("it is 5 [1]. It is 6 [1].")
    finder.find("it is 7 [1].")
    assert len(calls) == 1
