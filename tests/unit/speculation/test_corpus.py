"""Draft corpus: search, limits, and files of conversations."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from edgechat.speculation.corpus import CorpusDrafter
from edgechat.speculation.drafter import FROM_CORPUS, Draft
from tests.unit.speculation.corpus_texts import add, draft, load_corpus, save, text


def folders(path: Path) -> set[str]:
    return {file.parent.name for file in path.glob("*/*")}


def test_draft_continues_the_longest_match_of_another_conversation() -> None:
    corpus = load_corpus()
    assert draft(corpus, [1, 2, 3]) == []
    corpus.add("a", text(100))
    corpus.add("b", text(200))
    drafter = CorpusDrafter(corpus)
    drafter.start([5, 102])
    drafter.append([103])
    assert drafter.draft(4) == Draft([104, 105, 106, 107], 2, FROM_CORPUS)
    assert draft(corpus, [108]) == [109]  # stops at the end of the text
    corpus.add("c", text(100)[:3])
    assert draft(corpus, [101]) == [102, 103, 104, 105]


def test_equal_texts_are_stored_once() -> None:
    corpus = load_corpus()
    for _ in range(3):
        corpus.add("a", text(100))
    assert len(corpus._texts) == 1


def test_least_recently_used_texts_are_discarded() -> None:
    corpus = load_corpus(max_tokens=50)
    for start in (100, 200, 300, 400):
        corpus.add("a", text(start))
    assert draft(corpus, [101, 102])  # marks the text as used
    corpus.add("b", text(500))
    assert not draft(corpus, [201])
    assert draft(corpus, [101])
    assert draft(corpus, [501])
    corpus.add("b", text(0, 900))  # longer than the limit: only its end is stored
    assert draft(corpus, [898]) == [899]
    assert not draft(corpus, [101])


def test_saved_texts_are_loaded_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "drafts"
    corpus = load_corpus(folder)
    add(corpus, "a", text(100))
    add(corpus, "b", text(200))
    save(corpus)
    add(corpus, "b", text(300))
    save(corpus)
    path = folder / "a" / "said.tokens"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    reloaded = load_corpus(folder)
    for start in (100, 200, 300):
        assert draft(reloaded, [start]) == text(start + 1, 4)
    reloaded.add("b", text(300))  # a known text
    assert not reloaded.save_next_conversation()
    assert not list(folder.glob("*/*.part"))


def test_newest_files_are_loaded_up_to_the_limit(tmp_path: Path) -> None:
    corpus = load_corpus(tmp_path)
    for number, name in enumerate("abc"):
        add(corpus, name, text(100 * number, 20))
        save(corpus)
        os.utime(tmp_path / name / "said.tokens", (number, number))
    reloaded = load_corpus(tmp_path, max_tokens=50)
    assert not draft(reloaded, [1])
    assert draft(reloaded, [101])
    assert draft(reloaded, [201])


def test_deleted_conversation_is_removed_and_not_written_again(tmp_path: Path) -> None:
    corpus = load_corpus(tmp_path)
    add(corpus, "a", text(100))
    add(corpus, "b", text(200))
    save(corpus)
    shutil.rmtree(tmp_path / "a")
    corpus.add("a", text(300))  # a reply that ends after the conversation was deleted
    save(corpus)
    assert folders(tmp_path) == {"b"}
    corpus.remove_deleted_texts()
    assert folders(tmp_path) == {"b"}
    assert not draft(corpus, [101])
    assert not draft(corpus, [301])
    assert draft(corpus, [201])


def test_conversation_deleted_before_its_first_save_is_not_written(tmp_path: Path) -> None:
    corpus = load_corpus(tmp_path)
    add(corpus, "a", text(100))
    shutil.rmtree(tmp_path / "a")
    save(corpus)
    assert not (tmp_path / "a").exists()
    corpus.remove_deleted_texts()
    assert not draft(corpus, [101])


def test_loading_with_a_small_limit_keeps_the_files(tmp_path: Path) -> None:
    corpus = load_corpus(tmp_path)
    for start in (100, 200, 300):
        add(corpus, "a", text(start))
    add(corpus, "b", text(400))
    save(corpus)
    os.utime(tmp_path / "a" / "said.tokens", (10, 10))
    for max_tokens in (0, 5, 12, 25):
        small = load_corpus(tmp_path, max_tokens=max_tokens)
        assert bool(draft(small, [401])) == (max_tokens > 10)
        assert bool(draft(small, [301])) == (max_tokens == 25)
        assert not draft(small, [101])
    assert draft(load_corpus(tmp_path), [101])


def test_unwritable_folder_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file in the place of the folder")
    corpus = load_corpus(tmp_path / "file")
    add(corpus, "a", text(100))
    save(corpus)
    corpus.remove_deleted_texts()
    assert draft(corpus, [101])
