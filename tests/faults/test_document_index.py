"""Collections of documents after updates were killed, while the disk is full, and with damaged files."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from edgechat.documents.indexing import update
from edgechat.documents.library import DocumentLibrary
from edgechat.errors import DamagedCollectionError, DocumentError
from tests.unit.documents.collections import TextExtractor, WordEmbedder, make_reader, read_contents

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills by signal, and resource limits")
ROOT = Path(__file__).parents[2]
WORDS = [f"word{i}" for i in range(500)]
# Updates the collection, prints a line with each report of progress, and waits after a number of lines, or at the end.
UPDATER = """
import signal, sys
from pathlib import Path
from edgechat.documents.indexing import update
from edgechat.documents.library import DocumentLibrary
from tests.unit.documents.collections import WordEmbedder
n_lines = int(sys.argv[2])
def print_phase(progress):
    global n_lines
    print(progress.phase, flush=True)
    n_lines -= 1
    if not n_lines:
        signal.pause()
with DocumentLibrary(Path(sys.argv[1])).open("notes") as collection:
    update(collection, embedder=WordEmbedder(), on_progress=print_phase)
print("complete", flush=True)
signal.pause()
"""
# Updates the collection while no file can grow beyond a limit, as on a full disk, then prints the error.
LIMITED_UPDATER = """
import resource, signal, sys
from pathlib import Path
from edgechat.documents.indexing import update
from edgechat.documents.library import DocumentLibrary
from edgechat.errors import DocumentError
from tests.unit.documents.collections import TextExtractor, WordEmbedder, make_reader
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with DocumentLibrary(Path(sys.argv[1])).open("notes") as collection:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        update(collection, embedder=WordEmbedder(), reader=make_reader(TextExtractor()))
    except DocumentError as error:
        print(error)
"""
# Creates a collection in one folder after the other, and kills each process five calls of
# built-in functions later than the one before.
KILLED_CREATOR = """
import os, signal, sys
from pathlib import Path
from edgechat.documents.library import DocumentLibrary
DocumentLibrary(Path(sys.argv[1], "complete")).create("notes").close()
def create(n_calls):
    def count_call(frame, event, argument):
        nonlocal n_calls
        n_calls -= event == "c_call"
        if n_calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count_call)
    DocumentLibrary(Path(sys.argv[1], f"{n_calls:04}")).create("notes").close()
    os._exit(0)
n_calls = 0
while True:
    child = os.fork() or create(n_calls)
    if os.waitpid(child, 0)[1] == 0:
        break
    n_calls += 5
"""


def write_file(folder: Path, number: int, numbers: random.Random) -> None:
    paragraphs = [" ".join(numbers.choices(WORDS, k=120)) for _ in range(numbers.randint(1, 12))]
    (folder / f"sub{number % 7}").mkdir(exist_ok=True)
    (folder / f"sub{number % 7}" / f"{number}.txt").write_text("\n\n".join(paragraphs))


def make_collection(tmp_path: Path, n_files: int, numbers: random.Random) -> tuple[DocumentLibrary, Path]:
    folder, library = tmp_path / "files", DocumentLibrary(tmp_path / "documents")
    folder.mkdir()
    for i in range(n_files):
        write_file(folder, i, numbers)
    with library.create("notes") as collection:
        collection.add_sources([folder])
    return library, folder


def kill_updates(tmp_path: Path, n_files: int, n_kills: int, seed: int) -> None:
    """Kill updates at random reports of progress while files change, then check that the index equals a new one."""
    numbers = random.Random(seed)
    library, folder = make_collection(tmp_path, n_files, numbers)
    phases: list[str] = []
    for _ in range(n_kills):
        for number in numbers.sample(range(n_files), n_files // 20):
            write_file(folder, number, numbers)
        file = folder / f"sub{numbers.randrange(7)}" / f"{numbers.randrange(n_files)}.txt"
        file.unlink(missing_ok=True)
        n_lines = numbers.randint(1, n_files + n_files // 4)
        process = subprocess.Popen(
            [sys.executable, "-c", UPDATER, str(library.root), str(n_lines)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(n_lines):
            phase = process.stdout.readline().strip()
            assert phase
            if phase == "complete":
                break
        phases.append(phase)
        process.kill()
        process.communicate()
        with library.open("notes") as collection:
            for path, chunks in read_contents(collection).items():
                if os.path.exists(path):  # noqa: PTH110
                    assert chunks
    assert {"reading", "embedding"} <= set(phases)
    assert phases.count("complete") <= n_kills // 2
    with library.open("notes") as collection, library.create("new") as new:
        embedder = WordEmbedder()
        update(collection, embedder=embedder)
        update(new, add=[folder], embedder=embedder)
        assert read_contents(collection) == read_contents(new)
        info = collection.describe()
        assert info.n_embedded == info.n_chunks == new.describe().n_chunks
        assert info.problems == ()


def test_killed_updates_lose_and_double_nothing(tmp_path: Path) -> None:
    kill_updates(tmp_path, 60, 3, seed=1)


@pytest.mark.long
@pytest.mark.exhaustive
def test_updates_killed_twenty_times_lose_and_double_nothing(tmp_path: Path) -> None:
    kill_updates(tmp_path, 400, 20, seed=2)


@pytest.mark.parametrize("limit", [120_000, 300_000, 700_000])
def test_full_disk_is_one_clear_line_and_the_index_stays_consistent(tmp_path: Path, limit: int) -> None:
    library, folder = make_collection(tmp_path, 150, random.Random(3))
    result = subprocess.run(
        [sys.executable, "-c", LIMITED_UPDATER, str(library.root), str(limit)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    assert "notes.db" in line
    assert "docs update notes" in line
    with library.open("notes") as collection, library.create("new") as new:
        partial = read_contents(collection)
        embedder = WordEmbedder()
        update(new, add=[folder], embedder=embedder, reader=make_reader(TextExtractor()))
        complete = read_contents(new)
        assert len(partial) < len(complete)
        assert all(complete[path] == chunks for path, chunks in partial.items())
        update(collection, embedder=embedder, reader=make_reader(TextExtractor()))
        assert read_contents(collection) == complete


def test_full_error_of_sqlite_is_one_clear_message(tmp_path: Path) -> None:
    library, _ = make_collection(tmp_path, 50, random.Random(4))
    with library.open("notes") as collection:
        with collection.database.read() as db:
            db.execute("PRAGMA max_page_count = 60")
        with pytest.raises(DocumentError, match=r"The disk that contains .* is full .*docs update notes"):
            update(collection, reader=make_reader(TextExtractor()))
        read_contents(collection)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_bytes_are_an_error_or_harmless(tmp_path: Path, seed: int) -> None:
    numbers = random.Random(seed)
    library, folder = make_collection(tmp_path, 20, numbers)
    embedder = WordEmbedder()
    with library.open("notes") as collection:
        update(collection, embedder=embedder, reader=make_reader(TextExtractor()))
        expected = read_contents(collection)
    path = library.root / "notes.db"
    data = bytearray(path.read_bytes())
    for _ in range(numbers.choice([1, 20, 400])):
        start = numbers.randrange(0 if seed % 3 else 4096, len(data))
        data[start : start + numbers.randint(1, 64)] = numbers.randbytes(64)
    path.write_bytes(data[: numbers.choice([len(data), len(data) // 2])])
    library.list()
    with contextlib.suppress(DamagedCollectionError), library.open("notes") as collection:
        update(collection, embedder=embedder, reader=make_reader(TextExtractor()))
        list(collection.iterate_chunks())
    # Damage that the update did not meet would be found by a check of the whole file.
    path.with_name("notes.db.damaged").touch()
    with library.open("notes", rebuild_damaged=True) as collection:
        assert [source for _, source in collection.sources()] == [folder]
        update(collection, embedder=embedder, reader=make_reader(TextExtractor()))
        assert read_contents(collection) == expected


def test_killed_creation_leaves_a_complete_collection_or_none(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_CREATOR, str(tmp_path / "roots")], check=True, cwd=ROOT)
    roots = sorted((tmp_path / "roots").iterdir())
    n_without = 0
    for root in roots:
        library = DocumentLibrary(root)
        n_without += library.names() == []
        with library.open("notes") if library.names() else library.create("notes") as collection:
            update(collection, embedder=WordEmbedder())
        assert sorted(path.name for path in root.iterdir()) == ["notes.db", "notes.db.lock", "notes.db.sources.json"]
    assert 0 < n_without < len(roots)
