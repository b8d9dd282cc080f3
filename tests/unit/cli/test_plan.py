"""`edgechat plan`: table and JSON, budgets, recorded machines, quants of a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgechat.cli.plan import _find_gpus
from edgechat.cli.progress import StderrStatus
from edgechat.humanize import format_size
from tests.conftest import Cli
from tests.draft_models import make_llama, make_qwen35
from tests.hub import FakeRepo, local_hub

pytestmark = pytest.mark.usefixtures("warm")

PROFILES = sorted((Path(__file__).parents[2] / "profiles").glob("*.json"))


def rows(cli: Cli, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    output = json.loads(cli("plan", *arguments, "--json", "--no-measure").stdout)
    return output, output["models"]


@pytest.mark.slow
def test_installed_and_remote_model_have_the_same_memory(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, starter: Path
) -> None:
    output = json.loads(cli("plan", "--json", "--no-measure", "--budget", "2GB").stdout)
    [row] = [row for row in output["models"] if row["name"] == "starter"]
    assert output["available_bytes"] == 2 * 10**9
    assert (row["fits"], row["quant"], row["is_here"], row["trades"]) == (True, "Q4_1", True, [])
    with local_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos["own/repo"] = FakeRepo({"m-Q4_1.gguf": starter})
        remote = json.loads(cli("plan", "own/repo", "--json", "--no-measure", "--budget", "2GB").stdout)["models"][0]
        assert remote["memory"] == row["memory"]
        assert remote["is_here"] is False
        assert hub.sent_bytes < 4 << 20


@pytest.mark.slow
def test_small_budget_names_the_least_memory(cli: Cli) -> None:
    small = json.loads(cli("plan", "starter", "--json", "--no-measure", "--budget", "100MB").stdout)["models"][0]
    assert (small["fits"], "at least" in small["verdict"]) == (False, True)
    assert "fits" in cli("plan", "starter", "--no-measure", "--ctx", "2048").stdout


def test_invalid_budget_and_unknown_model_are_errors(cli: Cli) -> None:
    assert cli("plan", "--budget", "lots").returncode == 2
    assert cli("plan", "no-such-model").returncode == 3


@pytest.mark.slow
def test_budget_limits_a_chat(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = cli("ask", "--budget", "100MB", "hi")
    assert (refused.returncode, "the memory budget is 100 MB. Set a larger budget" in refused.stderr) == (5, True)
    monkeypatch.setenv("EDGECHAT_BUDGET", "100MB")
    assert cli("ask", "hi").returncode == 5


@pytest.mark.slow
@pytest.mark.parametrize("file", PROFILES, ids=[file.stem for file in PROFILES])
def test_catalogue_is_planned_for_recorded_machines(cli: Cli, file: Path) -> None:
    output, models = rows(cli, "--all", "--machine", str(file), "--min-speed", "5")
    available = json.loads(file.read_text())["memory"]["available_bytes"]
    assert output["available_bytes"] == available
    [chosen] = [row for row in models if row["is_chosen"]]
    assert chosen["name"] == output["choice"]
    assert chosen["total_bytes"] <= available
    assert chosen["decode_tps"] >= 5
    assert chosen["reasons"]
    assert len(models) > 300
    for row in models:
        assert row["fits"] or "at least" in row["verdict"]
        assert row["total_bytes"] > 0


@pytest.mark.slow
def test_planning_the_catalogue_needs_no_network_and_no_second(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    times = []
    for _ in range(3):
        started = read_cpu_s_of_children()
        assert cli("plan", "--all", "--no-measure").returncode == 0
        times.append(read_cpu_s_of_children() - started)
    # Measured: 0.4 s. The bound allows for a slow machine.
    assert min(times) < 3


def read_cpu_s_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.slow
def test_minimum_speed_changes_the_choice(cli: Cli) -> None:
    pi = next(str(file) for file in PROFILES if "pi-5" in file.name)
    chosen = [rows(cli, "--all", "--machine", pi, "--min-speed", tps)[0]["choice"] for tps in ("0", "20")]
    assert chosen[0] != chosen[1]
    _, models = rows(cli, "--all", "--machine", pi, "--min-speed", "20")
    assert any(row["verdict"].startswith("too slow") for row in models)


@pytest.mark.parametrize("columns", ["80", "100"])
def test_tables_fit_the_terminal_and_the_legend_explains_only_what_is_shown(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    output = cli("plan", "--all", "--no-measure", "--explain").stdout
    assert max(map(len, output.splitlines())) <= int(columns)
    for entry in ("+ repacked weights", "k KV cache", "~ estimated size"):
        assert entry in output
    installed = cli("plan", "--no-measure", "--budget", "1TB").stdout  # the bar is empty: the model needs 0.05 %
    assert "tok/s = decode speed" in installed
    assert not {"# weights", "k KV cache", "s speculation", "~ estimated size"} & {
        entry for line in installed.splitlines() for entry in line.split("   ")
    }


def test_explain_lists_memory_and_reasons(cli: Cli) -> None:
    output = cli("plan", "starter", "--explain", "--no-measure").stdout
    for text in ("* starter", "weights", "KV cache", "total", "n_ctx = 8192", "n_threads", "prefix_disk_bytes"):
        assert text in output
    assert max(map(len, output.splitlines()[:3])) <= 80


def test_other_quants_are_planned_from_one_header(cli: Cli) -> None:
    _, models = rows(cli, "starter", "--quants")
    by_quant = {row["quant"]: row["memory"]["weights"] + row["memory"]["repacked"] for row in models}
    assert {"Q2_K", "Q4_K_M", "Q8_0", "F16"} <= set(by_quant)
    assert by_quant["Q2_K"] < by_quant["Q4_K_M"] < by_quant["Q8_0"] < by_quant["F16"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"profile": 3}', '{"cpu": {}}', "\x00"])
def test_file_without_a_hardware_profile_is_refused(cli: Cli, tmp_path: Path, text: str) -> None:
    (tmp_path / "machine.json").write_text(text)
    refused = cli("plan", "--machine", str(tmp_path / "machine.json"))
    assert refused.returncode == 2
    assert "is not a hardware profile" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_output_of_doctor_describes_a_machine(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(cli("doctor", "--json").stdout)
    _, models = rows(cli, "starter", "--machine", str(tmp_path / "machine.json"))
    assert models[0]["fits"]


@pytest.mark.slow
def test_nothing_fits_a_machine_without_memory(cli: Cli, tmp_path: Path) -> None:
    profile = json.loads(PROFILES[0].read_text())
    profile["memory"] = {"total_bytes": 0, "available_bytes": 0}
    (tmp_path / "machine.json").write_text(json.dumps(profile))
    output, models = rows(cli, "starter", "--all", "--machine", str(tmp_path / "machine.json"))
    assert output["choice"] is None
    assert not any(row["fits"] for row in models)
    assert cli("plan", "starter", "--machine", str(tmp_path / "machine.json")).returncode == 0


@pytest.mark.slow
def test_catalogue_model_is_planned_by_name_without_the_network(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert [row["name"] for row in rows(cli, "qwen3.5-4b")[1]] == ["qwen3.5-4b:Q4_K_M"]
    assert {row["name"] for row in rows(cli, "qwen3.5-4b:q8_0", "starter")[1]} == {"qwen3.5-4b:Q8_0", "starter"}
    quants = {row["quant"] for row in rows(cli, "qwen3.5-4b", "--quants")[1]}
    assert {"BF16", "Q8_0", "Q4_K_M", "Q4_0"} <= quants
    unknown = cli("plan", "qwen3.5-4b:q9_9")
    assert (unknown.returncode, "does not list the quant 'q9_9'" in unknown.stderr) == (2, True)


def test_draft_model_is_planned_and_explained(cli: Cli, tmp_path: Path) -> None:
    target, draft = make_llama().write(tmp_path / "target.gguf"), make_llama(seed=1).write(tmp_path / "draft.gguf")
    hybrid = make_qwen35().write(tmp_path / "hybrid.gguf")
    _, [row] = rows(cli, str(target), "--draft-model", str(draft), "--budget", "2GB")
    assert row["plan"]["drafter"]["kind"] == "draft-model"
    assert row["plan"]["drafter"]["model_path"] == str(draft)
    assert row["memory"]["drafter"] > draft.stat().st_size
    assert "chosen by the user" in row["reasons"]["drafter"]
    _, [row] = rows(cli, str(target), "--draft-model", "off", "--budget", "2GB")
    assert (row["plan"]["drafter"], row["memory"]["drafter"]) == (None, 0)
    assert row["reasons"]["drafter"] == "turned off by the user"
    _, [row] = rows(cli, str(hybrid), "--budget", "2GB")
    drafter = row["plan"]["drafter"]
    assert (drafter["kind"], drafter["name"], drafter["is_named"]) == ("mtp", "the MTP heads", False)
    assert drafter["total_bytes"] == row["memory"]["drafter"]
    text = cli("plan", str(hybrid), "--budget", "2GB", "--no-measure").stdout
    assert f"fits; drafts with the MTP heads ({format_size(drafter['total_bytes'])})" in " ".join(text.split())
    text = cli("plan", str(hybrid), "--budget", "2GB", "--no-measure", "--explain").stdout
    assert "\n  drafter  " in text
    assert "drafter: the MTP heads, in the file of the model" in " ".join(text.split())
    _, [row] = rows(cli, str(hybrid), "--draft-model", str(target), "--budget", "2GB")
    assert row["plan"]["drafter"]["kind"] == "draft-model", "the user's choice replaces the heads"
    unused = cli("plan", str(target), "--draft-model", str(target), "--no-measure")
    assert unused.returncode == 0
    assert "decodes without the drafter: target is the model itself" in unused.stderr
    absent = cli("plan", "qwen3.5-4b", "--draft-model", str(draft), "--no-measure")
    assert "qwen3.5-4b:Q4_K_M decodes without the drafter: its file is not installed." in absent.stderr
    unknown = cli("plan", str(target), "--draft-model", "no-such-model", "--no-measure")
    assert (unknown.returncode, "no-such-model" in unknown.stderr) == (3, True)


def test_time_of_the_measurement_of_a_gpu_is_shown() -> None:
    """A driver can compile kernels for a minute without an event."""
    status, shown = StderrStatus(), []

    class Engine:
        def list_devices(self, **_arguments: object) -> SimpleNamespace:
            shown.append(status._elapsed_started_at is not None)
            return SimpleNamespace(gpus=[], slow_gpus=[])

    _find_gpus(cast("Any", Engine()), [], status)
    assert shown == [True]
