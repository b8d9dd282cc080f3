"""Synthetic documents with planted facts, and questions whose answers are known; made from templates with a seed.

The reports are about bridges, libraries and the like. Towns have several of them, a report has several facts, and its
other sentences also stand in other reports, so that neither the name of a town nor the topic alone leads to an answer.
Source code has functions with default values, and tables have spare parts and contacts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgechat.bench.documents_values import ValueLists, ValueMaker
from edgechat.decode_errors import describe_decode_error
from edgechat.errors import InvalidFileError, UsageError
from edgechat.files import read_toml

Wording = Literal["exact", "reworded"]
Source = Literal["report", "code", "table", "text"]

MIN_DOCUMENTS: Final = 12
MAX_DOCUMENTS: Final = 2500
# Share of the questions whose answers are in no document.
_ABSENT_SHARE: Final = 0.2
# Number of facts of a report, and of functions of a module, that are left out; questions about them have no answer.
_N_OMITTED: Final = 2
_N_OMITTED_FUNCTIONS: Final = 3
_N_TABLE_ROWS: Final = 30


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question about the documents."""

    text: str
    wording: str
    """How the question is made: "exact" has the words of the document, "reworded" other words."""
    source: Source
    document: str = ""
    """Path of the document with the answer, relative to the folder of the corpus; "" if no document has it."""
    evidence: tuple[str, ...] = ()
    """Texts that the right passage contains, all of them."""
    spellings: tuple[str, ...] = ()
    """The answer in all spellings that count as correct."""

    @property
    def is_answerable(self) -> bool:
        return bool(self.document)


class GeneratedCorpus(msgspec.Struct, frozen=True):
    """Documents and questions about them."""

    documents: dict[str, str]
    """Texts of the files by path, relative to the folder of the corpus."""
    questions: list[Question]

    @property
    def n_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.documents.values())

    def write(self, folder: Path) -> None:
        """Write all documents below `folder`."""
        for name, text in self.documents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")


class _Fact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    section: str
    value: str
    text: str
    exact: str
    reworded: str


class _Topic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    title: str
    filler: list[str]
    facts: list[_Fact]


class _Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    parameter: str
    value: str
    summary: str
    body: list[str]
    exact: str
    reworded: str


class _Code(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    components: list[str]


class _Tables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    parts: list[tuple[str, str]]
    """Names of parts, each with other words for it."""
    roles: list[tuple[str, str]]
    """Names of roles, each with other words for it."""


class _Templates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lists: ValueLists
    topics: list[_Topic]
    functions: list[_Function]
    code: _Code
    tables: _Tables


def make_corpus(*, n_documents: int, n_questions: int, seed: int) -> GeneratedCorpus:
    """Make a corpus. The same numbers always make the same corpus. Raises UsageError for other sizes."""
    if not MIN_DOCUMENTS <= n_documents <= MAX_DOCUMENTS:
        raise UsageError(f"{n_documents} documents: use {MIN_DOCUMENTS} to {MAX_DOCUMENTS}.")
    maker = _CorpusMaker(_read_templates(), random.Random(f"documents {seed}"))  # noqa: S311  (a reproducible corpus)
    return maker.make(n_documents, n_questions)


def _read_templates() -> _Templates:
    path = Path(__file__).with_name("documents_corpus.toml")
    try:
        return msgspec.convert(read_toml(path), _Templates)
    except msgspec.ValidationError as error:
        raise InvalidFileError(str(path), describe_decode_error(error)) from error


class _CorpusMaker:
    """Makes the documents of one corpus, and all questions that they allow."""

    def __init__(self, templates: _Templates, rng: random.Random) -> None:
        self._templates = templates
        self._rng = rng
        self._values = ValueMaker(templates.lists, rng)
        self._documents: dict[str, str] = {}
        self._answerable: dict[tuple[Source, Wording], list[Question]] = {}
        self._absent: list[Question] = []

    def make(self, n_documents: int, n_questions: int) -> GeneratedCorpus:
        components = self._templates.code.components
        n_modules = min(len(components), n_documents // 6)
        n_tables = n_documents // 6
        n_reports = n_documents - n_modules - n_tables
        n_topics = len(self._templates.topics)
        places = self._templates.lists.make_places(self._rng, max(n_tables, math.ceil(1.6 * n_reports / n_topics)))
        subjects = [(topic, place) for place in places for topic in self._templates.topics]
        for topic, place in self._rng.sample(subjects, n_reports):
            self._add_report(topic, place)
        for component in self._rng.sample(components, n_modules):
            self._add_module(component)
        for i, place in enumerate(self._rng.sample(places, n_tables)):
            self._add_contacts(place) if i % 2 else self._add_stock(place)
        return GeneratedCorpus(self._documents, self._choose_questions(n_questions))

    def _choose_questions(self, count: int) -> list[Question]:
        """Return questions without an answer, and equally many of each other kind, as far as there are enough."""
        questions = self._rng.sample(self._absent, min(len(self._absent), round(_ABSENT_SHARE * count)))
        pools = [self._rng.sample(pool, len(pool)) for pool in self._answerable.values()]
        while len(questions) < count and any(pools):
            questions += [pool.pop() for pool in pools if pool][: count - len(questions)]
        self._rng.shuffle(questions)
        return questions

    def _add_questions(
        self, source: Source, texts: dict[Wording, str], document: str, evidence: tuple[str, ...],
        spellings: tuple[str, ...],
    ) -> None:  # fmt: skip
        for wording, text in texts.items():
            self._answerable.setdefault((source, wording), []).append(
                Question(
                    text=text, wording=wording, source=source, document=document, evidence=evidence,
                    spellings=spellings,
                )
            )  # fmt: skip

    def _add_absent(self, source: Source, texts: dict[Wording, str]) -> None:
        self._absent += [Question(text=text, wording=wording, source=source) for wording, text in texts.items()]

    def _add_report(self, topic: _Topic, place: str) -> None:
        omitted = set(self._rng.sample(range(len(topic.facts)), _N_OMITTED))
        filler = self._iterate_filler(topic)
        extension = self._rng.choice(("md", "md", "md", "html", "txt"))
        document = f"reports/{place.lower()}-{topic.name}.{extension}"
        sections: dict[str, list[str]] = {}
        for i, fact in enumerate(topic.facts):
            texts: dict[Wording, str] = {
                "exact": fact.exact.format(place=place),
                "reworded": fact.reworded.format(place=place),
            }
            paragraph = [next(filler) for _ in range(self._rng.randrange(2, 5))]
            sections.setdefault(fact.section, []).append("")
            if i in omitted:
                self._add_absent("report", texts)
            else:
                value, spellings = self._values.make(fact.value)
                sentence = fact.text.format(place=place, value=value)
                paragraph.insert(self._rng.randrange(len(paragraph) + 1), sentence)
                self._add_questions("report", texts, document, (sentence,), spellings)
            sections[fact.section][-1] = " ".join(paragraph)
        self._documents[document] = _FORMATS[extension](topic.title.format(place=place), sections)

    def _iterate_filler(self, topic: _Topic) -> Iterator[str]:
        while True:
            yield from self._rng.sample(topic.filler, len(topic.filler))

    def _add_module(self, component: str) -> None:
        functions = self._templates.functions
        omitted = set(self._rng.sample(range(len(functions)), _N_OMITTED_FUNCTIONS))
        document = f"code/{component}.py"
        lines = [f'"""Helpers of the {component} component."""']
        for i, function in enumerate(functions):
            texts: dict[Wording, str] = {
                "exact": function.exact.format(component=component),
                "reworded": function.reworded.format(component=component),
            }
            if i in omitted:
                self._add_absent("code", texts)
                continue
            value, spellings = self._values.make(function.value)
            head = f"def {function.name.format(component=component)}({function.parameter}={value}):"
            lines += ["", "", head, f'    """{function.summary.format(component=component)}"""']
            lines += [f"    {line}" for line in function.body]
            self._add_questions("code", texts, document, (head,), spellings)
        self._documents[document] = "\n".join(lines) + "\n"

    def _add_stock(self, place: str) -> None:
        """Add a CSV file with the spare parts in the warehouse of a town."""
        rng = self._rng
        goods = [(part, colour) for part in self._templates.tables.parts for colour in self._templates.lists.colours]
        rng.shuffle(goods)
        document = f"tables/{place.lower()}-stock.csv"
        lines = ["number,part,colour,warehouse,stock,price"]
        for (part, other_words), colour in goods[:_N_TABLE_ROWS]:
            number = f"{rng.choice('BDGKMPRTX')}{rng.choice('BDGKMPRTX')}-{rng.randrange(10_000, 100_000)}"
            stock, price = str(rng.randrange(13, 990)), f"{rng.randrange(110, 9900) / 100:.2f}"
            lines.append(f"{number},{part},{colour},{place},{stock},{price}")
            self._add_questions(
                "table", {"exact": f"What is the price of part {number}?"}, document, (number, price), (price,)
            )
            text = f"How many items of the kind {other_words} in {colour} are left in the storehouse of {place}?"
            self._add_questions("table", {"reworded": text}, document, (number, stock), (stock,))
        for (part, other_words), colour in goods[_N_TABLE_ROWS : _N_TABLE_ROWS + 4]:
            self._add_absent(
                "table",
                {
                    "exact": f"What is the price of a {colour} {part} in the warehouse {place}?",
                    "reworded": f"What do I pay for a {other_words} in {colour} from the storehouse of {place}?",
                },
            )
        self._documents[document] = "\n".join(lines) + "\n"

    def _add_contacts(self, place: str) -> None:
        """Add a Markdown file with a table of the employees of a town."""
        rng = self._rng
        document = f"tables/{place.lower()}-contacts.md"
        lines = [f"# Contacts of the office in {place}", "", "| name | responsible for | extension | room |"]
        lines.append("|---|---|---|---|")
        for role, other_words in rng.sample(self._templates.tables.roles, len(self._templates.tables.roles) - 3):
            person, _ = self._values.make("person")
            extension, room = str(rng.randrange(2100, 9800)), str(rng.randrange(101, 690))
            row = f"| {person} | {role} | {extension} | {room} |"
            lines.append(row)
            exact = f"What is the extension of {person}?"
            reworded = f"Which number must be dialled to reach the colleague for {other_words} in {place}?"
            texts: dict[Wording, str] = {"exact": exact, "reworded": reworded}
            self._add_questions("table", texts, document, (person, extension), (extension,))
        absent_person, _ = self._values.make("person")
        self._add_absent("table", {"exact": f"What is the extension of {absent_person}?"})
        self._documents[document] = "\n".join(lines) + "\n"


def _format_markdown(title: str, sections: dict[str, list[str]]) -> str:
    parts = [f"# {title}"]
    for heading, paragraphs in sections.items():
        parts += [f"## {heading}", *paragraphs]
    return "\n\n".join(parts) + "\n"


def _format_html(title: str, sections: dict[str, list[str]]) -> str:
    lines = ["<!DOCTYPE html>", f"<html><head><title>{title}</title></head><body>", f"<h1>{title}</h1>"]
    for heading, paragraphs in sections.items():
        lines += [f"<h2>{heading}</h2>", *(f"<p>{paragraph.replace('&', '&amp;')}</p>" for paragraph in paragraphs)]
    return "\n".join([*lines, "</body></html>"]) + "\n"


def _format_text(title: str, sections: dict[str, list[str]]) -> str:
    parts = [title]
    for i, (heading, paragraphs) in enumerate(sections.items(), 1):
        parts += [f"{i}. {heading}", *paragraphs]
    return "\n\n".join(parts) + "\n"


_FORMATS: Final = {"md": _format_markdown, "html": _format_html, "txt": _format_text}
