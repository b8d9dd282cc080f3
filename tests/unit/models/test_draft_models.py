"""Choice of the model drafter: by name, and automatically among the heads and models that are installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgechat.catalogue import library
from edgechat.config import Settings
from edgechat.modelfile.draft_check import find_draft_problem
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models import draft_models
from edgechat.models.draft_models import add_drafters, add_own_heads, choose_drafter
from edgechat.models.selection import list_catalogue_candidates, make_candidate
from edgechat.models.sharing import identify_drafter, make_share_request
from edgechat.planner.drafter_choice import DrafterChoice
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.runtime import drafter_crashes
from edgechat.runtime.drafter_crashes import record_crash
from tests.draft_models import make_eagle3, make_llama, make_qwen35
from tests.tiny_files import make_other_vocabularies

LARGE, SMALL = 12, 2
"""Numbers of layers of a target and of a model at least three times smaller, with the embeddings of both."""


@pytest.fixture(autouse=True)
def small_targets_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_models, "_MIN_TARGET_BYTES", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder that the search for models includes."""
    folder = tmp_path / "models"
    folder.mkdir()
    library.add_folder(folder)
    return folder


def profile(path: Path) -> ModelProfile:
    return ModelProfile.from_header(read_header(path))


def choose(path: Path, **settings: Any) -> DrafterChoice:
    return choose_drafter(profile(path), Settings(**settings))


def test_heads_of_the_model_itself_are_chosen_first(folder: Path) -> None:
    target = make_qwen35().write(folder / "target.gguf")
    make_llama().write(folder / "small.gguf")
    choice = choose(target)
    assert (choice.kind, choice.is_required, choice.profile) == ("mtp", False, profile(target))
    assert choose(make_qwen35(n_heads=0).write(folder / "without.gguf")).kind is None


def test_a_small_model_of_the_same_family_is_chosen(folder: Path) -> None:
    target = make_llama(n_layer=LARGE).write(folder / "target.gguf")
    assert "no installed heads or models fit" in choose(target).reason
    make_llama(n_layer=LARGE // 2).write(folder / "too-large.gguf")
    make_qwen35(n_layer=1, n_heads=0).write(folder / "other-family.gguf")
    assert choose(target).kind is None
    small = make_llama(n_layer=SMALL).write(folder / "small.gguf")
    make_llama(n_layer=SMALL + 1).write(folder / "larger.gguf")
    choice = choose(target)
    assert choice.kind == "draft-model"
    assert choice.profile is not None
    assert (choice.name, choice.profile.path) == ("small", str(small))
    assert "3 times smaller" in choice.reason or "4 times smaller" in choice.reason


def test_another_vocabulary_is_never_chosen(folder: Path) -> None:
    target = make_llama(n_layer=LARGE).write(folder / "target.gguf")
    for name, (vocabulary, fits) in make_other_vocabularies().items():
        small = make_llama(n_layer=SMALL, vocabulary=vocabulary).write(folder / "small.gguf")
        assert (not find_draft_problem(read_header(small), read_header(target))) == fits, name
        assert (choose(target).kind == "draft-model") == fits, name
        if fits:
            assert choose(target, draft_model="small").kind == "draft-model"
        else:
            assert choose(target, draft_model="small").reason.startswith("small cannot draft for target.gguf: it ")
        small.unlink()


def test_vocabularies_are_compared_once_for_each_version_of_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_llama(n_layer=LARGE).write(folder / "target.gguf")
    make_llama(n_layer=SMALL).write(folder / "small.gguf")
    calls = []

    def compare(*headers: Any) -> str:
        calls.append(headers)
        return find_draft_problem(*headers)

    monkeypatch.setattr(draft_models, "find_draft_problem", compare)
    assert [choose(target).kind for _ in range(3)] == ["draft-model"] * 3
    assert len(calls) == 1
    monkeypatch.setattr("edgechat.__version__", "0.0.0.test")  # whose rules may differ
    assert choose(target).kind == "draft-model"
    assert len(calls) == 2
    other_vocabulary, _ = make_other_vocabularies()["other BOS"]
    make_llama(n_layer=SMALL, vocabulary=other_vocabulary).write(folder / "small.gguf")
    assert [choose(target).kind for _ in range(2)] == [None] * 2
    assert len(calls) == 3
    assert [choose(target, draft_model="small").refusal[:18] for _ in range(2)] == ["small cannot draft"] * 2
    assert len(calls) == 3


def test_installed_heads_that_fit_are_chosen_before_a_draft_model(folder: Path) -> None:
    target = make_llama(n_layer=LARGE).write(folder / "target.gguf")
    make_llama(n_layer=SMALL).write(folder / "small.gguf")
    heads = make_eagle3(n_embd_target=128).write(folder / "wide.gguf")
    assert choose(target).kind == "draft-model", "the heads are for a wider model"
    choice = choose(target, draft_model=str(heads))
    assert choice.kind is None
    assert "reads hidden rows of 128 values, and those of the model have 64" in choice.reason
    make_eagle3().write(folder / "heads.gguf")
    choice = choose(target)
    assert (choice.kind, choice.name) == ("eagle3", "heads")
    assert choose(target, draft_model="heads").is_required


def test_heads_that_the_engine_would_refuse_are_not_chosen(folder: Path) -> None:
    target = make_llama(n_layer=LARGE).write(folder / "target.gguf")
    make_llama(n_layer=SMALL).write(folder / "small.gguf")
    heads = make_eagle3(layers=(1, 2, LARGE)).write(folder / "heads.gguf")
    assert choose(target).kind == "draft-model", "llama.cpp does not expose the last layer of the architecture"
    assert re.match(
        r"heads cannot draft for target\.gguf: it reads .* does not expose",
        choose(target, draft_model=str(heads)).reason,
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"draft_model": "off"}, "turned off by the user"),
        ({"speculation": False}, "speculative decoding is off"),
        ({"strict": True}, "speculative decoding is off"),
        ({"strict": True, "draft_model": "no such model"}, "speculative decoding is off"),
    ],
)
def test_no_drafter_by_settings(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    choice = choose(make_qwen35().write(tmp_path / "target.gguf"), **settings)
    assert (choice.kind, choice.reason) == (None, reason)


def test_named_models_that_do_not_exist_are_no_errors(folder: Path) -> None:
    """A chat with another model must be possible, whatever the setting names."""
    target = make_llama().write(folder / "target.gguf")
    (folder / "text.gguf").write_text("no model")
    for name, message in (
        ("missing", "No model with the name 'missing'"),
        (str(folder / "missing.gguf"), "missing.gguf does not exist. Correct its name, or download it again with"),
        (str(folder / "text.gguf"), "text.gguf"),
        (" ", "The name of the model is empty"),
    ):
        choice = choose(target, draft_model=name)
        assert choice.kind is None
        assert message in choice.reason
        assert not choice.reason.endswith(".")


def test_a_target_with_heads_uses_them_in_place_of_a_named_model_that_cannot_draft(folder: Path) -> None:
    target = make_qwen35().write(folder / "target.gguf")
    (folder / "text.gguf").write_text("no model")
    make_llama(n_layer=LARGE).write(folder / "other.gguf")
    vocabulary, _ = make_other_vocabularies()["200 more tokens"]
    make_llama(vocabulary=vocabulary).write(folder / "foreign.gguf")
    for name, reason in (
        ("missing", "No model with the name 'missing'"), (str(folder / "text.gguf"), "text.gguf"),
        ("foreign", "foreign cannot draft for target.gguf: it has a vocabulary"),
    ):  # fmt: skip
        choice = choose(target, draft_model=name)
        assert reason in choice.refusal
        assert msgspec.structs.replace(choice, refusal="") == choose(target), "as with auto"
    assert choose(target, draft_model="other").kind == "draft-model"
    assert choose(target, draft_model="other").fallback == choose(target)
    assert choose(target, draft_model="off").kind is None
    assert choose(target).refusal == choose(target, draft_model="off").refusal == ""
    without = make_qwen35(n_heads=0).write(folder / "without.gguf")
    assert choose(without, draft_model="missing").kind is None, "not another draft model, which auto would choose"


def test_a_model_does_not_draft_for_itself(folder: Path) -> None:
    """Its drafts would take as long as its replies; heads in its file are used."""
    target, hybrid = make_llama().write(folder / "target.gguf"), make_qwen35().write(folder / "hybrid.gguf")
    link = folder / "link.gguf"
    link.hardlink_to(target)
    for name in (str(target), str(link)):
        choice = choose(target, draft_model=name)
        assert choice.kind is None
        assert "is the model itself" in choice.reason
    own_heads = choose(hybrid, draft_model="hybrid")
    assert (own_heads.kind, own_heads.is_required) == ("mtp", True)


def test_drafter_with_which_the_engine_died_is_not_chosen_again(folder: Path) -> None:
    target, small = make_qwen35().write(folder / "target.gguf"), make_llama().write(folder / "small.gguf")
    record_crash(str(target), DrafterPlan(kind="mtp"), "SIGSEGV")
    record_crash(str(target), DrafterPlan(kind="draft-model", model_path=str(small)), "SIGABRT")
    for settings, name in (({}, "MTP heads"), ({"draft_model": str(small)}, "small")):
        choice = choose(target, **settings)
        assert choice.kind is None, "both crashed"
        assert name in choice.reason
        assert "doctor --retest" in choice.reason
    named = choose(target, draft_model="target").reason
    assert "its MTP heads are not used: the engine died with SIGSEGV" in named
    assert "doctor --retest" in named
    drafter_crashes.clear()
    assert choose(target).kind == "mtp"
    two_heads = make_qwen35(n_heads=2).write(folder / "two-heads.gguf")
    assert "its file has 2 MTP heads" in choose(two_heads, draft_model="two-heads").reason


def test_small_targets_are_not_searched_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(library, "scan", lambda: pytest.fail("the folders were searched"))
    assert "too small" in choose(make_llama(n_layer=LARGE).write(folder / "target.gguf")).reason


def test_damaged_candidates_are_skipped(folder: Path) -> None:
    target = make_llama(n_layer=LARGE).write(folder / "target.gguf")
    entry = next(e for e in library.scan() if e.path == target)
    gone = msgspec.structs.replace(
        entry, path=folder / "gone.gguf", name="gone", facts=msgspec.structs.replace(entry.facts, size_bytes=1)
    )
    heads = msgspec.structs.replace(gone, facts=msgspec.structs.replace(gone.facts, kind="heads"))
    assert choose_drafter(profile(target), Settings(), [gone, heads]).kind is None


def test_engines_are_shared_only_with_the_same_draft_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EDGECHAT_ENGINE", raising=False)
    header = read_header(make_llama().write(folder / "target.gguf"))
    with_heads = read_header(make_qwen35().write(folder / "hybrid.gguf"))
    draft = make_llama(seed=1).write(folder / "draft.gguf")

    def key(name: str, header: ModelHeader = header, **settings: Any) -> str:
        named = Settings(draft_model=name, **settings)
        return make_share_request(
            header, named, "test", identify_drafter(ModelProfile.from_header(header), named)[0]
        ).key

    names = ("auto", "off", "draft")
    assert len({key(name) for name in names}) == len(names)
    assert key("missing") == key("absent") == key("off")
    assert key("missing", with_heads) == key("auto", with_heads) != key("off", with_heads)
    assert key("draft", speculation=False) == key("missing", speculation=False)
    assert (
        "No model with the name 'missing'"
        in identify_drafter(ModelProfile.from_header(header), Settings(draft_model="missing"))[1]
    )
    assert key("draft") == key(str(draft))
    monkeypatch.chdir(folder)
    assert key("draft") == key("./draft.gguf")
    before = key("draft")
    make_llama(seed=2, n_layer=3).write(draft)
    assert key("draft") != before


def test_own_heads_are_added_without_reading_files(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    target = make_qwen35().write(folder / "target.gguf")
    candidate = make_candidate("target", read_header(target))
    plain = make_candidate("plain", read_header(make_llama().write(folder / "plain.gguf")))
    monkeypatch.setattr(library, "scan", lambda: pytest.fail("the folders were searched"))
    assert add_own_heads(candidate, Settings()).drafter.kind == "mtp"
    assert add_own_heads(plain, Settings()) is plain
    assert add_own_heads(candidate, Settings(draft_model="off")) is candidate
    assert add_own_heads(candidate, Settings(speculation=False)).drafter.kind is None


def test_candidates_get_the_reason_why_they_have_no_drafter(folder: Path) -> None:
    paths = [
        make_llama(n_layer=LARGE).write(folder / "target.gguf"),
        make_qwen35(n_heads=0).write(folder / "other.gguf"),
    ]
    make_eagle3(n_embd_target=128).write(folder / "wide.gguf")
    candidates = [make_candidate(path.stem, read_header(path)) for path in paths]
    added = add_drafters([*candidates, *list_catalogue_candidates()[:1]], Settings(draft_model="wide"))
    assert ["cannot draft for" in candidate.drafter.reason for candidate in added] == [True, True, False]
    assert {candidate.drafter.kind for candidate in added} == {None}
