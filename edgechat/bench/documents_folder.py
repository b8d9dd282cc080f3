"""Questions about the documents of a user: queries made from chunks, whose right result is the chunk itself.

This is known-item retrieval. Three kinds of queries are made:

- "sentence": a sentence of the chunk without half of its words, in the order of the sentence;
- "reworded": such a sentence in which common words are also replaced by others with the same meaning;
- "heading": the headings above a section, such as "Installation Linux"; each chunk of the section is right.

A sentence that several chunks contain, and headings that several documents have, are not used. Such queries share words
with the text, so that the keyword search does better in them than with questions of people.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

FolderWording = Literal["sentence", "reworded", "heading"]

_MIN_WORDS: Final = 8
_MAX_WORDS: Final = 40
_MIN_HEADING_WORDS: Final = 3
_KEPT_SHARE: Final = 0.5
_MIN_KEPT: Final = 4
# A table, a list of links or code is not a sentence: most of its characters are not letters.
_MIN_LETTER_SHARE: Final = 0.75
_SENTENCE_END: Final = re.compile(r"(?<=[.!?:])\s+(?=[A-Z\"'`(\[])|\n\s*\n")
_WORD: Final = re.compile(r"[^\W_][\w'.-]*\w|\w")
_LINK: Final = re.compile(r"\]\([^)]*\)|`_+|<?https?://\S+|\{[^}]*\}")

# Pairs of words with the same meaning in documentation; each is replaced by the other.
_PAIRS: Final = (
    "add insert, allow permit, allows permits, also additionally, argument parameter, arguments parameters, begin "
    "start, build compile, call invoke, called invoked, change modify, changes modifications, check verify, choose "
    "select, command instruction, complete finish, configuration settings, contains includes, convert transform, "
    "create make, created made, creates makes, current present, default standard, delete remove, deleted removed, "
    "directory folder, disable deactivate, display show, enable activate, end finish, ensure guarantee, error "
    "failure, errors failures, example sample, examples samples, execute run, executed run, fast quick, file "
    "document, files documents, find locate, fix repair, function routine, functions routines, get obtain, gets "
    "obtains, give provide, given provided, handle process, help assist, if when, implement realize, information "
    "details, install deploy, keep retain, kind type, large big, list enumeration, load read, message text, method "
    "procedure, methods procedures, multiple several, must has-to, need require, needs requires, new fresh, number "
    "count, object instance, objects instances, only solely, open access, option setting, options settings, package "
    "module, packages modules, pass hand, path location, possible feasible, print output, problem issue, return "
    "yield, returned yielded, returns yields, save store, saved stored, search look, send transmit, sent transmitted, "
    "set assign, simple easy, size length, small little, specify define, specified defined, stop halt, string text, "
    "support handle, supports handles, supported handled, update refresh, use employ, used employed, user person, "
    "users people, uses employs, using with, value quantity, values quantities, version release, versions releases, "
    "wait pause, want wish, warning notice, write save, wrong incorrect"
)


class SourceChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk from which questions are made."""

    key: str
    """Key of the chunk in search results."""
    document: str
    heading: str
    text: str


class FolderQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A query and the chunks that it must find."""

    text: str
    wording: FolderWording
    keys: frozenset[str]


def make_folder_questions(chunks: Sequence[SourceChunk], count: int, seed: int) -> list[FolderQuestion]:
    """Make up to `count` questions from the chunks of all documents, equally many of each kind as far as possible.

    The same arguments always make the same questions. At most one question of each kind is made from a document, until
    all documents have one.
    """
    rng = random.Random(f"folder {seed}")  # noqa: S311  (reproducible questions)
    sentences = _find_sentences(chunks)
    pools = [
        [
            _make_sentence_question(rng, *item, is_reworded=is_reworded)
            for item in _mix_documents(rng, sentences)[:count]
        ]
        for is_reworded in (False, True)
    ]
    pools.append(_make_heading_questions(rng, chunks))
    questions: list[FolderQuestion] = []
    for pool in pools:
        pool.reverse()
    while len(questions) < count and any(pools):
        questions += [pool.pop() for pool in pools if pool][: count - len(questions)]
    return questions


def _find_sentences(chunks: Sequence[SourceChunk]) -> dict[str, list[tuple[str, SourceChunk]]]:
    """Return the usable sentences by document, each with its chunk."""
    sentences = [
        (" ".join(sentence.split()), chunk)
        for chunk in chunks
        for sentence in _SENTENCE_END.split(_LINK.sub(" ", chunk.text))
    ]
    counts = Counter(sentence.casefold() for sentence, _ in sentences)
    found: dict[str, list[tuple[str, SourceChunk]]] = defaultdict(list)
    for sentence, chunk in sentences:
        if counts[sentence.casefold()] == 1 and _is_prose(sentence):
            found[chunk.document].append((sentence, chunk))
    return found


def _is_prose(sentence: str) -> bool:
    n_letters = sum(c.isalpha() or c == " " for c in sentence)
    n_words = len(_WORD.findall(sentence))
    return (
        _MIN_WORDS <= n_words <= _MAX_WORDS
        and n_letters >= _MIN_LETTER_SHARE * len(sentence)
        and sentence.endswith((".", "!", "?", ":"))
    )


def _mix_documents(
    rng: random.Random, sentences: dict[str, list[tuple[str, SourceChunk]]]
) -> list[tuple[str, SourceChunk]]:
    """Return the sentences in random order: one of each document, then a second one of each document, and so on."""
    ranked = [
        (position, rng.random(), item)
        for items in sentences.values()
        for position, item in enumerate(rng.sample(items, len(items)))
    ]
    return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])]


def _make_sentence_question(
    rng: random.Random, sentence: str, chunk: SourceChunk, *, is_reworded: bool
) -> FolderQuestion:
    words = _WORD.findall(sentence)
    if is_reworded:
        words = [_OTHER_WORDS.get(word.casefold(), word) for word in words]
    n_kept = max(_MIN_KEPT, round(_KEPT_SHARE * len(words)))
    kept = sorted(rng.sample(range(len(words)), n_kept))
    text = " ".join(words[i] for i in kept)
    return FolderQuestion(text=text, wording="reworded" if is_reworded else "sentence", keys=frozenset({chunk.key}))


def _make_heading_questions(rng: random.Random, chunks: Sequence[SourceChunk]) -> list[FolderQuestion]:
    sections: dict[str, list[SourceChunk]] = defaultdict(list)
    for chunk in chunks:
        sections[" ".join(_WORD.findall(_LINK.sub(" ", chunk.heading)))].append(chunk)
    by_document: dict[str, list[tuple[str, SourceChunk]]] = defaultdict(list)
    for text, members in sections.items():
        if len(text.split()) >= _MIN_HEADING_WORDS and len({chunk.document for chunk in members}) == 1:
            by_document[members[0].document].append((text, members[0]))
    return [
        FolderQuestion(text=text, wording="heading", keys=frozenset(chunk.key for chunk in sections[text]))
        for text, _ in _mix_documents(rng, by_document)
    ]


def _read_pairs() -> dict[str, str]:
    words: dict[str, str] = {}
    for pair in _PAIRS.split(","):
        first, second = pair.split()
        words.setdefault(first, second.replace("-", " "))
        words.setdefault(second, first)
    return words


_OTHER_WORDS: Final = _read_pairs()
