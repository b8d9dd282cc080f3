"""What was said in other conversations: kept, bounded, forgotten with them; and files that are not what they should be."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.speculation import profile
from edgechat.speculation.corpus import Corpus
from edgechat.speculation.drafter import FROM_CORPUS, Draft
from tests.suffix_reference import PlainIndex

N_VOCAB = 1000


def a_corpus(folder: Path | None = None, max_tokens: int = 1000) -> Corpus:
    corpus = Corpus(PlainIndex, max_tokens, N_VOCAB, folder)
    corpus.load()
    return corpus


def add(corpus: Corpus, name: str, tokens: list[int]) -> None:
    """As it is when a conversation goes on: its folder is made before it is answered."""
    corpus.open_conversation(name)
    corpus.add(name, tokens)


def save(corpus: Corpus) -> None:
    while corpus.save_one():
        pass


def text(start: int, size: int = 10) -> list[int]:
    return list(range(start, start + size))


def drafts(corpus: Corpus, context: list[int]) -> list[int]:
    corpus.start(context)
    return corpus.draft(4).tokens


def files(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/*")}


def test_what_one_conversation_said_another_may_say() -> None:
    corpus = a_corpus()
    assert drafts(corpus, [1, 2, 3]) == []
    corpus.add("a", text(100))
    corpus.add("b", text(200))
    corpus.start([5, 102])
    corpus.append([103])
    assert corpus.draft(4) == Draft([104, 105, 106, 107], 2, FROM_CORPUS)
    assert drafts(corpus, [108]) == [109]  # not into the next text
    corpus.add("c", text(100)[:3])
    assert drafts(corpus, [101]) == [102, 103, 104, 105]


def test_the_same_text_is_kept_once() -> None:
    corpus = a_corpus()
    for _ in range(3):
        corpus.add("a", text(100))
    assert len(corpus._texts) == 1


def test_what_was_of_no_use_for_longest_is_forgotten() -> None:
    corpus = a_corpus(max_tokens=50)
    for start in (100, 200, 300, 400):
        corpus.add("a", text(start))
    assert drafts(corpus, [101, 102])  # of use just now
    corpus.add("b", text(500))
    assert not drafts(corpus, [201])
    assert drafts(corpus, [101])
    assert drafts(corpus, [501])
    corpus.add("b", text(0, 900))  # more than there is room for: its end is kept
    assert drafts(corpus, [898]) == [899]
    assert not drafts(corpus, [101])


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "drafts"
    corpus = a_corpus(folder)
    add(corpus, "a", text(100))
    add(corpus, "b", text(200))
    save(corpus)
    add(corpus, "b", text(300))
    save(corpus)
    path = folder / "a" / "said.tokens"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = a_corpus(folder)
    for start in (100, 200, 300):
        assert drafts(again, [start]) == text(start + 1, 4)
    again.add("b", text(300))  # known
    assert not again.save_one()
    assert not list(folder.glob("*/*.part"))


def test_the_newest_files_are_read_as_far_as_there_is_room(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path)
    for number, name in enumerate("abc"):
        add(corpus, name, text(100 * number, 20))
        save(corpus)
        os.utime(tmp_path / name / "said.tokens", (number, number))
    again = a_corpus(tmp_path, max_tokens=50)
    assert not drafts(again, [1])
    assert drafts(again, [101])
    assert drafts(again, [201])


def test_a_deleted_conversation_is_forgotten_and_not_written_again(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path)
    add(corpus, "a", text(100))
    add(corpus, "b", text(200))
    save(corpus)
    shutil.rmtree(tmp_path / "a")
    corpus.add("a", text(300))  # its last answer ended after it was deleted
    save(corpus)
    assert files(tmp_path) == {"b"}
    corpus.remove_deleted()
    assert files(tmp_path) == {"b"}
    assert not drafts(corpus, [101])
    assert not drafts(corpus, [301])
    assert drafts(corpus, [201])


def test_a_conversation_deleted_before_it_was_first_written_is_not_written(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path)
    add(corpus, "a", text(100))
    shutil.rmtree(tmp_path / "a")
    save(corpus)
    assert not (tmp_path / "a").exists()
    corpus.remove_deleted()
    assert not drafts(corpus, [101])


def test_a_start_with_little_memory_leaves_files_alone(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path)
    for start in (100, 200, 300):
        add(corpus, "a", text(start))
    add(corpus, "b", text(400))
    save(corpus)
    os.utime(tmp_path / "a" / "said.tokens", (10, 10))
    for max_tokens in (0, 5, 12, 25):
        small = a_corpus(tmp_path, max_tokens=max_tokens)
        assert bool(drafts(small, [401])) == (max_tokens > 10)
        assert bool(drafts(small, [301])) == (max_tokens == 25)
        assert not drafts(small, [101])
    assert drafts(a_corpus(tmp_path), [101])


def test_a_disk_that_cannot_be_written_to_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    corpus = a_corpus(tmp_path / "file")
    add(corpus, "a", text(100))
    save(corpus)
    corpus.remove_deleted()
    assert drafts(corpus, [101])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_removed_and_nothing_else_happens(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    corpus = a_corpus(folder)
    add(corpus, "a", text(100))
    add(corpus, "b", text(200))
    save(corpus)
    path = folder / "a" / "said.tokens"
    good = path.read_bytes()
    bad = bytearray(good)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(bad) - 1))
        bad[at] ^= data.draw(st.integers(1, 255))
    else:
        bad = bytearray(data.draw(st.one_of(st.binary(max_size=60), st.just(good[:-1]), st.just(good + b"\0"))))
    path.write_bytes(bad)
    again = a_corpus(folder)
    assert not drafts(again, [101])
    assert drafts(again, [201])
    assert not path.exists()


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path)
    add(corpus, "a", text(100))
    save(corpus)
    with (tmp_path / "a" / "said.tokens").open("r+b") as file:
        file.truncate(1 << 36)
    assert not drafts(a_corpus(tmp_path), [101])


def test_tokens_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    corpus = Corpus(PlainIndex, 1000, 1 << 20, tmp_path)
    add(corpus, "a", text(5000))
    save(corpus)
    assert not drafts(a_corpus(tmp_path), [5001])


# Profiles


def test_a_profile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.json"
    learned = profile.load_profile(path)
    for _ in range(50):
        learned.greedy.record(FROM_CORPUS, 3, accepted=True)
        learned.costs.record(1, 600, 0.01)
        learned.costs.record(4, 600, 0.02)
    profile.save_profile(learned, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    learned.greedy.start_reply()
    again = profile.load_profile(path)
    assert again.greedy.probabilities == learned.greedy.probabilities
    assert again.sampled.probabilities == profile.SpeculationProfile().sampled.probabilities
    assert again.costs.ratio(4, 600) == pytest.approx(2.0)
    assert list(path.parent.iterdir()) == [path]
    profile.save_profile(learned, path / "below a file")  # cannot be: no trouble


FRESH = profile.SpeculationProfile()


@pytest.mark.parametrize(
    "words",
    ["", "{", "[]", "{}", '{"version": 1}', "null", "[" * 100_000, "9" * 5000, "\0", '{"version": 2, "greedy": [], "drawn": [], "ratios": []}',
     '{"version": 1, "greedy": [], "drawn": [], "ratios": []}'],
)  # fmt: skip
def test_a_profile_that_is_none_is_forgotten(tmp_path: Path, words: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(words)
    assert profile.load_profile(path).greedy.probabilities == FRESH.greedy.probabilities


@pytest.mark.parametrize(
    ("old", "new"),
    [('"right":0.0', '"right":-1.0'), ('"right":0.0', '"right":1e300'), ('"wrong":0.0', '"wrong":null'),
     ('"value":2.0', '"value":0.0'), ('"value":2.0', '"value":1e9'), ('"count":2', '"count":-2'), ('{"4":', '{"5":')],
)  # fmt: skip
def test_a_profile_with_impossible_numbers_is_forgotten(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "profile.json"
    learned = profile.SpeculationProfile()
    for _ in range(2):
        learned.costs.record(1, 600, 0.01)
        learned.costs.record(4, 600, 0.02)
    profile.save_profile(learned, path)
    words = path.read_text()
    assert old in words
    path.write_text(words.replace(old, new, 1))
    assert profile.load_profile(path).costs.ratio(4, 600) == FRESH.costs.ratio(4, 600)


def test_a_huge_profile_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with path.open("wb") as file:
        file.truncate(1 << 36)
    assert profile.load_profile(path).greedy.probabilities == FRESH.greedy.probabilities
