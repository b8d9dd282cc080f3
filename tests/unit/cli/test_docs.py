"""`edgechat docs` with text and JSON output."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from edgechat import paths
from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat.message_passages import make_attachment
from edgechat.chat.messages import new_reply, new_user_message
from edgechat.cli.cited_sources import make_source_fields, print_sources
from edgechat.cli.docs import docs
from edgechat.cli.docs_output import print_problems
from edgechat.cli.progress import StderrStatus
from edgechat.config import Settings
from edgechat.documents.collection import Collection, CollectionInfo, DocumentProblem
from edgechat.documents.database import CollectionDatabase
from edgechat.documents.keyword_search import search_keywords
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.passages import Passage, PassageScores, PassageSet, SearchedDocuments
from edgechat.documents.prompt_text import NOT_FOUND
from edgechat.errors import DamagedCollectionError, DocumentError
from edgechat.store import open_ephemeral_store
from edgechat.tui.document_rows import describe_collection as describe_in_screen
from tests.conftest import Cli


@pytest.fixture
def ships(tmp_path: Path) -> Path:
    """Return a folder with two documents and a file that cannot be read."""
    folder = tmp_path / "ships"
    folder.mkdir()
    (folder / "vasa.txt").write_text("The Vasa sank in 1628.\n")
    (folder / "mary.md").write_text("# Mary Rose\n\nThe Mary Rose sank in 1545.\n")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    return folder


def invoke(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Run `edgechat docs` in this process; return standard output and standard error."""
    result = CliRunner().invoke(docs, list(arguments))
    if isinstance(result.exception, DocumentError):
        assert result.exception.exit_code == code, result.exception
        return result.stdout, f"{result.stderr}{result.exception}"
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_folder_is_added_listed_updated_searched_and_removed(ships: Path) -> None:
    out, err = invoke("add", str(ships))
    assert out == "ships: 2 documents, 2 passages, 79 B, keywords; 2 added, 1 could not be read\n"
    assert "broken.pdf: " in err
    assert "edgechat ask --docs ships" in err
    out, _ = invoke("list")
    assert out.splitlines()[0].startswith("ships                     2 documents, 2 passages, 79 B, keywords")
    assert "1 file could not be read" in out

    (ships / "mary.md").unlink()
    (ships / "vasa.txt").write_text("The Vasa sank on 10 August 1628.\n")
    (ships / "cutty.txt").write_text("The Cutty Sark is in Greenwich.\n")
    out, _ = invoke("update", "ships")
    assert out.endswith("; 1 added, 1 changed, 1 removed, 1 could not be read\n")
    (ships / "broken.pdf").unlink()
    out, err = invoke("add", str(ships))
    assert out.endswith("; no changes\n")  # the removed file was not a document
    assert "broken.pdf" not in err
    assert invoke("update")[0].endswith("; no changes\n")

    out, _ = invoke("search", "when did the vasa sink")
    assert out == "vasa.txt, line 1\n    The Vasa sank on 10 August 1628.\n"
    out, err = invoke("search", "xylophone", "--docs", "ships")
    assert (out, err) == ("", "edgechat: Nothing found in 2 documents.\n")

    invoke("remove", "ships", "--yes")
    assert invoke("list") == ("", "edgechat: No collections yet. `edgechat docs add FOLDER` creates one.\n")
    assert (ships / "vasa.txt").exists()


def test_json_has_all_problems_and_scores(ships: Path) -> None:
    added = json.loads(invoke("add", str(ships), "--name", "old ships", "--json")[0])
    assert (added["name"], added["update"]["added"], added["update"]["failed"]) == ("old ships", 2, 1)
    assert [p["path"] for p in added["collection"]["problems"]] == [str(ships / "broken.pdf")]
    [listed] = json.loads(invoke("list", "--json")[0])
    assert (listed["name"], listed["sources"], listed["n_documents"]) == ("old ships", [str(ships)], 2)
    found = json.loads(invoke("search", "Vasa", "--json")[0])
    assert found["collections"] == ["old ships"]
    [result] = found["results"]
    assert (result["document"], result["first_line"]) == ("vasa.txt", 1)
    assert result["scores"]["bm25_rank"] == 1
    assert json.loads(invoke("update", "old ships", "--json")[0])["update"]["unchanged"] == 2
    assert [r["name"] for r in json.loads(invoke("update", "--json")[0])] == ["old ships"]
    assert json.loads(invoke("remove", "old ships", "-y", "--json")[0]) == ["old ships"]


def test_only_some_unreadable_files_are_listed(ships: Path) -> None:
    for i in range(30):
        (ships / f"{i}.pdf").write_bytes(b"%PDF-1.4 broken")
    _, err = invoke("add", str(ships))
    assert err.count(".pdf: ") == 10
    assert "21 other files could not be read; --json lists them." in err


def test_files_that_were_read_only_in_part_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "mails"
    folder.mkdir()
    message = (
        "From: a@b.c\nSubject: s\nContent-Type: multipart/mixed; boundary=x\n\n"
        "--x\nContent-Type: text/plain\n\nA ship.\n"
        "--x\nContent-Type: application/pdf\nContent-Disposition: attachment; filename=a.pdf\n\nx\n--x--\n"
    )
    (folder / "first.eml").write_text(message)
    out, err = invoke("add", str(folder))
    assert out == "mails: 1 document, 1 passage, 195 B, keywords; 1 added\n"
    assert "first.eml: Its attachments (1) were not read." in err
    for i in range(30):
        (folder / f"{i}.eml").write_text(message)
    _, err = invoke("update", "mails")
    assert err.count("Its attachments (1) were not read.") == 10
    assert "21 other files could be read only in part; --json lists them." in err
    assert "31 files could be read only in part (--json lists them)" in invoke("list")[0]


def test_control_characters_in_problems_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    problem = DocumentProblem("/a/\x1b[31m.eml", "Its\nattachments \x1b[0m were not read.")
    print_problems(CollectionInfo(name="a", problems=(problem,), notices=(problem,)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "\x1b" not in "".join(lines)


def test_removal_asks_first(ships: Path) -> None:
    invoke("add", str(ships))
    result = CliRunner().invoke(docs, ["remove", "ships"], input="n\n")
    assert "Remove the index? The files stay." in result.stderr
    assert DocumentLibrary(paths.documents_dir()).names() == ["ships"]
    CliRunner().invoke(docs, ["remove", "ships"], input="y\n")
    assert DocumentLibrary(paths.documents_dir()).names() == []


def test_source_added_by_mistake_is_removed(ships: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "boats"
    other.mkdir()
    (other / "a.txt").write_text("A boat.")
    invoke("add", str(ships), str(other), "--name", "all")
    assert "has: " in invoke("remove", "all", "--source", str(tmp_path), "-y", code=2)[1]
    both = invoke("remove", "all", "--source", str(ships), "--source", str(other), "-y", code=2)[1]
    assert both.endswith("To remove all of it: edgechat docs remove all")
    result = CliRunner().invoke(docs, ["remove", "all", "--source", str(other)], input="n\n")
    assert "Remove from the collection all? The files stay." in result.stderr
    assert invoke("search", "boat", "--json")[0].count("a.txt") > 0
    (other / "a.txt").unlink()
    other.rmdir()  # a source that no longer exists can be removed, too
    monkeypatch.chdir(tmp_path)
    removed = json.loads(invoke("remove", "all", "--source", "boats/", "-y", "--json")[0])
    assert removed["name"] == "all"
    assert removed["collection"]["sources"] == [str(ships)]
    assert removed["collection"]["n_documents"] == 2
    assert json.loads(invoke("search", "boat", "--json")[0])["results"] == []
    result = CliRunner().invoke(docs, ["remove", "all", "all", "--source", "x"])
    assert "Give one NAME" in str(result.exception)


def test_errors_are_one_line_with_exit_code_2(ships: Path, tmp_path: Path) -> None:
    assert "there is no such file or folder" in invoke("add", str(tmp_path / "nothing"), code=2)[1]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (
        "The collection empty was not created, because there are no documents" in invoke("add", str(empty), code=2)[1]
    )
    (empty / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    assert "none of the files could be read" in invoke("add", str(empty), code=2)[1]
    assert DocumentLibrary(paths.documents_dir()).names() == []
    assert "not a name of a collection" in invoke("add", str(ships), "--name", "a/b", code=2)[1]
    for command in (["update", "boats"], ["remove", "boats", "-y"], ["search", "x", "--docs", "boats"]):
        assert "no collection of documents called 'boats'" in invoke(*command, code=2)[1]
    assert "There are no collections yet" in invoke("search", "x", code=2)[1]


def test_one_damaged_collection_does_not_keep_others_from_an_update(ships: Path, tmp_path: Path) -> None:
    other = tmp_path / "boats"
    other.mkdir()
    (other / "a.txt").write_text("A boat.")
    invoke("add", str(other))
    invoke("add", str(ships))
    (paths.documents_dir() / "boats.db").write_bytes(b"damaged" * 1000)
    (paths.documents_dir() / "boats.db.sources.json").unlink()
    out, err = invoke("update", code=2)
    assert out.startswith("ships: 2 documents")
    assert "Remove it with `edgechat docs remove boats`" in err
    assert "1 collection could not be updated. The reasons are above" in err
    assert "Traceback" not in err
    assert "boats" in invoke("list")[0]


def test_damaged_collection_is_rebuilt_by_an_update_or_by_adding_its_folder(ships: Path) -> None:
    invoke("add", str(ships))
    path = paths.documents_dir() / "ships.db"
    for command in (["update", "ships"], ["add", str(ships)], ["update"]):
        path.write_bytes(b"damaged" * 1000)
        assert invoke("search", "Vasa", code=4)[1].endswith("to rebuild it from its files.")
        assert invoke(*command)[0].startswith("ships: 2 documents")
        assert DocumentLibrary(paths.documents_dir()).names() == ["ships"]


def test_adding_a_folder_again_names_its_collection(ships: Path) -> None:
    invoke("add", str(ships), "--name", "old ships")
    out, err = invoke("add", str(ships))
    assert out.startswith("old ships: ")
    assert f"edgechat: {ships} is in the collection old ships already." in err
    assert "already" not in invoke("add", str(ships), "--name", "old ships")[1]
    assert "already" not in invoke("add", str(ships), "--name", "ships")[1]


def test_search_in_all_collections_leaves_out_damaged_ones(
    ships: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boats").mkdir()
    (tmp_path / "boats" / "a.txt").write_text("A boat like the Vasa.")
    invoke("add", str(ships))
    invoke("add", str(tmp_path / "boats"))
    with monkeypatch.context() as context:
        context.setattr("edgechat.documents.search.search_keywords", find_damage_in_ships)
        out, err = invoke("search", "Vasa", "--json")
        assert json.loads(out)["collections"] == ["boats"]
        assert err == "edgechat: ships is damaged.\n"
        assert "ships is damaged" in invoke("search", "Vasa", "--docs", "ships", "--docs", "boats", code=4)[1]
    (paths.documents_dir() / "ships.db").write_bytes(b"damaged" * 1000)
    out, err = invoke("search", "Vasa", "--json")
    assert [result["document"] for result in json.loads(out)["results"]] == ["a.txt"]
    assert err.startswith("edgechat: The collection ships cannot be used")
    assert invoke("search", "Vasa", "--docs", "ships", "--docs", "boats", code=4)[0] == ""
    (paths.documents_dir() / "boats.db").write_bytes(b"damaged" * 1000)
    assert "None of 2 collections can be searched." in invoke("search", "Vasa", code=2)[1]


def find_damage_in_ships(database: CollectionDatabase, query: str, n_results: int) -> list[tuple[int, float]]:
    if database.path.stem == "ships":
        raise DamagedCollectionError("ships is damaged.", "ships")
    return search_keywords(database, query, n_results)


def test_damage_that_an_update_finds_is_repaired_by_the_same_update(
    ships: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("add", str(ships))
    (ships / "vasa.txt").write_text("The Vasa sank on 10 August 1628.\n")
    replace_documents = Collection.replace_documents

    def find_damage(*arguments: Any) -> None:
        monkeypatch.setattr(Collection, "replace_documents", replace_documents)
        (paths.documents_dir() / "ships.db.damaged").touch()
        raise DamagedCollectionError("malformed")

    monkeypatch.setattr(Collection, "replace_documents", find_damage)
    assert invoke("update", "ships")[0].endswith("; 2 added, 1 could not be read\n")


def test_ask_reports_an_unknown_collection_before_it_loads_a_model(cli: Cli) -> None:
    result = cli("ask", "--docs", "boats", "-m", "starter", "Hi")
    assert result.returncode == 2
    assert "no collection of documents called 'boats'" in result.stderr
    assert result.stdout == ""


def test_cited_sources_of_a_reply(capsys: pytest.CaptureFixture[str]) -> None:
    session = ScriptedSession(open_ephemeral_store(), Settings(), Script([""]))
    passages = (
        Passage(number=1, collection="ships", document="vasa.pdf", text="The Vasa sank in 1628.", page=3),
        Passage(
            number=2, collection="ships", document="mary.md", text="It sank in 1545.", first_line=1, last_line=4,
            scores=PassageScores(bm25_rank=1),
        ),
    )  # fmt: skip
    searched = SearchedDocuments(n_documents=2, n_chunks=2)
    attachment, data = make_attachment(
        PassageSet(collections=("ships",), passages=passages, query="When?", searched=searched)
    )
    question = new_user_message(None, "When?", (attachment,))
    text = "The Vasa sank in 1629 [1]. The Mary Rose in 1545 [2], or [7]."
    reply = msgspec.structs.replace(new_reply(question.id, "m"), text=text, finish_reason="stop")
    plain = msgspec.structs.replace(new_reply(question.id, "m"), text="In 1628.", finish_reason="stop")
    refusal = msgspec.structs.replace(plain, id="r", text=NOT_FOUND)
    session._stored_conversation.append([question, reply, plain, refusal], {attachment.sha256: data})

    print_sources(session, reply, StderrStatus())
    assert capsys.readouterr().err == (
        "edgechat: [1] vasa.pdf, page 3 (not in the passage: 1629)\n"
        "edgechat: [2] mary.md, lines 1-4 (not in the passage: Rose)\n"
        "edgechat: There is no passage [7].\n"
    )
    fields = make_source_fields(session, reply)
    assert [c["number"] for c in fields["cited"]] == [1, 2]
    assert fields["cited"][0]["problems"] == ["not in the passage: 1629"]
    assert fields["passages"] == passages
    assert fields["searched"]["query"] == "When?"
    assert fields["searched"]["n_documents"] == 2
    print_sources(session, plain, StderrStatus())
    assert capsys.readouterr().err == (
        "edgechat: The reply cites no passage. The best passages in the prompt: [1] vasa.pdf, page 3; [2] mary.md, "
        "lines 1-4.\n"
    )
    print_sources(session, refusal, StderrStatus())
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="names of files are always Unicode")
def test_json_has_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/ships-\xff"
    os.mkdir(folder)  # noqa: PTH102  (a name that is not UTF-8)
    for name in (b"vasa.txt", b"mary-\xff.txt"):
        Path(os.fsdecode(folder + b"/" + name)).write_text("It sank.\n")
    out, _ = invoke("add", os.fsdecode(folder), "--name", "ships", "--json")
    assert json.loads(out)["collection"]["sources"] == [f"{tmp_path}/ships-\ufffd"]
    for arguments in (("list", "--json"), ("update", "--json")):
        out, _ = invoke(*arguments)
        assert "mary-\ufffd.txt" in out
        assert json.loads(out)


@pytest.mark.skipif(sys.platform == "win32", reason="names of files cannot have newlines")
def test_file_name_with_a_newline_stays_on_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "ships\nand boats"
    folder.mkdir()
    (folder / "vasa.txt").write_text("It sank.\n")
    (folder / "mary\nedgechat: all is well.txt").write_text("It sank.\n")
    _, err = invoke("add", str(folder), "--name", "ships")
    assert "mary\u240aedgechat: all is well.txt: Its name has control characters" in err
    assert f"    {tmp_path}/ships\u240aand boats\n" in invoke("list")[0]
    [info] = DocumentLibrary(paths.documents_dir()).list()
    lines = describe_in_screen(info, dt.datetime.now(dt.timezone.utc).date()).split("\n")
    assert f"From {tmp_path}/ships\u240aand boats" in lines
    assert any("mary\u240aedgechat: all is well.txt: Its name has" in line for line in lines)


def test_search_shows_the_text_around_the_match(ships: Path) -> None:
    (ships / "long.txt").write_text(f"{'Water and wind. ' * 15}The Batavia ran aground. {'Sand and stone. ' * 15}")
    invoke("add", str(ships))
    _, excerpt = invoke("search", "batavia")[0].splitlines()
    assert "The Batavia ran aground." in excerpt
