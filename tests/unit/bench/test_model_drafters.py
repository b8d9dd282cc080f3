"""Benchmarks of model drafters: choice of conversations, arguments of the peer, ratios and tables."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgechat import paths
from edgechat.bench import serve_drafts
from edgechat.bench.model_drafters import (
    DraftReport,
    DraftRow,
    find_drafter_file,
    format_table,
    make_peer_arguments,
    plan_drafter,
    select_kinds,
)
from edgechat.bench.serve import N_CLIENTS
from edgechat.bench.serve_drafts import ServeDraftsOptions, ServeDraftsReport, make_prompts, make_row
from edgechat.bench.serve_drafts import format_table as format_serve_table
from edgechat.bench.speculation import make_load_options
from edgechat.bench.workloads import read_workloads
from edgechat.errors import UsageError
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.drafter_plan import DrafterPlan
from tests.draft_models import make_llama, make_qwen35


def profile(path: Path) -> ModelProfile:
    return ModelProfile.from_header(read_header(path))


def test_kinds_choose_conversations() -> None:
    workloads = read_workloads()
    chosen = select_kinds(workloads, ["edit", "open chat"])
    assert {case.kind for case in chosen.cases} == {"edit", "open chat"}
    assert select_kinds(workloads, []) == workloads
    with pytest.raises(UsageError, match="no kind 'edits' of conversations; choose from edit, reprint, refactor"):
        select_kinds(workloads, ["edits"])


def test_llama_server_gets_the_same_drafter(tmp_path: Path) -> None:
    file = tmp_path / "draft.gguf"
    assert make_peer_arguments(DrafterPlan(kind="draft-model", model_path=str(file))) == (
        "--spec-type", "draft-simple", "--spec-draft-model", str(file),
    )  # fmt: skip
    assert make_peer_arguments(DrafterPlan(kind="mtp")) == ("--spec-type", "draft-mtp")
    assert make_peer_arguments(DrafterPlan(kind="eagle3", model_path=str(file)))[1] == "draft-eagle3"


def test_drafter_of_a_measurement_is_that_of_a_load(tmp_path: Path) -> None:
    hybrid = make_qwen35().write(tmp_path / "hybrid.gguf")
    target, draft = make_llama().write(tmp_path / "target.gguf"), make_llama(seed=1).write(tmp_path / "draft.gguf")
    assert plan_drafter(profile(hybrid), "auto", make_load_options()).kind == "mtp"
    drafter = plan_drafter(profile(target), str(draft), make_load_options())
    assert (drafter.kind, drafter.model_path) == ("draft-model", str(draft))
    with pytest.raises(UsageError, match=r"no drafter for target.gguf: .*Name one with --draft-model"):
        plan_drafter(profile(target), "auto", make_load_options())
    with pytest.raises(UsageError, match=r"No model with the name 'missing'.*Choose another drafter with"):
        plan_drafter(profile(target), "missing", make_load_options())


def test_a_server_is_not_measured_without_its_named_drafter(tmp_path: Path) -> None:
    target = make_llama().write(tmp_path / "target.gguf")
    options = ServeDraftsOptions(model=str(target), n_threads=1, draft_model="missing")
    with pytest.raises(UsageError, match="No model with the name 'missing'"):
        serve_drafts.run(options, read_workloads())


def test_server_gets_the_file_of_an_installed_drafter(tmp_path: Path, home: Path) -> None:
    """Its home has no installed models, so a name would mean nothing there."""
    target = make_llama().write(tmp_path / "target.gguf")
    models = paths.models_dir()
    models.mkdir(parents=True, exist_ok=True)
    draft = make_llama().write(models / "small.gguf")
    assert find_drafter_file(str(target), "small") == str(draft)
    heads = make_qwen35().write(tmp_path / "heads.gguf")
    assert find_drafter_file(str(heads), "auto") == str(heads)
    assert find_drafter_file(str(target), "auto") == find_drafter_file(str(heads), "off") == "off"


def test_table_names_the_gain_and_the_accepted_drafts() -> None:
    row = DraftRow(
        kind="edit", speed=1.5, text_speed=1.25, peer_speed=1.125, speed_vs_peer=None,
        drafted={"context": 10, "corpus": 0, "model": 20}, accepted={"context": 9, "corpus": 0, "model": 15},
        n_different_replies=1, n_replies=3,
    )  # fmt: skip
    report = DraftReport(
        model="/models/m.gguf", drafter=DrafterPlan(kind="mtp"), backend="cpu", n_threads=2, rounds=3,
        prompt_speed=0.99, rows=[row],
    )  # fmt: skip
    table = format_table(report)
    assert "heads in the file of the model (mtp)" in table
    assert "0.990" in table
    assert "1.500    1.250    1.125           9 of 10 from the context, 15 of 20 from the model" in table
    assert table.endswith("1 of 3 differ")
    assert msgspec.json.decode(msgspec.json.encode(report), type=DraftReport) == report


def test_each_client_continues_a_reply_of_its_own() -> None:
    workloads = select_kinds(read_workloads(), ["edit"])
    prompts = make_prompts(workloads)
    assert len(set(prompts)) == N_CLIENTS
    for client, prompt in enumerate(prompts):
        reply = workloads.reply(workloads.cases[client % len(workloads.cases)])
        assert prompt.endswith(reply[: len(reply) // 3])


def test_ratio_of_several_clients_is_the_median_of_the_rounds() -> None:
    row = make_row("edit", [10.0, 30.0, 12.0], [10.0, 10.0, 10.0])
    assert row.ratio == pytest.approx(1.2)
    report = ServeDraftsReport(
        model="m.gguf", draft_model="auto", n_threads=2, n_clients=4, n_reply=96, rounds=3, rows=[row]
    )
    assert "edit                        12.0      10.0   1.200" in format_serve_table(report)
