"""`edgechat models` against a local hub, with text and JSON output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.catalogue import curated
from edgechat.cli.catalogue_info import print_rows
from edgechat.cli.model_lists import print_catalogue
from edgechat.models import resources, selection
from tests.conftest import Cli, edgechat_command
from tests.hub import FakeRepo, Faults, LocalHub, local_hub
from tests.layered_models import write_tiny_glm4
from tests.models import split_tiny, write_tiny_llama
from tests.unit.planner.profiles import WITHOUT_AMX


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    split_tiny(directory)
    return directory


@pytest.fixture(scope="module")
def server() -> Iterator[LocalHub]:
    with local_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: LocalHub, files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalHub:
    server.faults, server.requests = Faults(), []
    tiny = files / "whole.gguf"
    server.repos = {
        "own/tiny-GGUF": FakeRepo({
            "tiny-Q8_0.gguf": tiny, "UD/tiny-UD-Q2_K_XL.gguf": tiny, "mmproj-F16.gguf": tiny, "README.md": b"# tiny",
            **{path.name: path for path in sorted(files.glob("tiny-Q4_K_M-*.gguf"))},
        }),
    }  # fmt: skip
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.mark.slow
def test_search_pull_list_verify_and_remove(hub: LocalHub, cli: Cli, files: Path) -> None:
    assert [found["id"] for found in json.loads(cli("models", "search", "TINY", "--json").stdout)] == ["own/tiny-GGUF"]
    info = json.loads(cli("models", "info", "own/tiny-GGUF", "--json").stdout)
    assert (info["quant"], info["files"], info["architecture"]) == ("F32", 3, "llama")
    assert {(v["quant"], v["is_projector"]) for v in info["variants"]} == {
        ("Q4_K_M", False), ("Q8_0", False), ("UD-Q2_K_XL", False), ("F16", True),
    }  # fmt: skip
    assert sum(int(r[2].get("Range", "=0-0").split("-")[1] or 0) for r in hub.file_requests()) < 20 << 20
    pulled = json.loads(cli("models", "pull", "own/tiny-GGUF:q8_0", "--json", "--name", "mine").stdout)
    assert (pulled["name"], pulled["reference"]) == ("mine", "own/tiny-GGUF:Q8_0")
    assert Path(pulled["path"]).read_bytes() == (files / "whole.gguf").read_bytes()
    [entry] = [e for e in json.loads(cli("models", "list", "--json").stdout) if e["name"] != "starter"]
    assert (entry["name"], entry["aliases"], entry["state"], entry["repo"]) == (
        "tiny-Q8_0", ["mine"], "verified", "own/tiny-GGUF",
    )  # fmt: skip
    assert "alias mine" in cli("models", "list").stdout
    for name in ("mine", "own/tiny-GGUF", "own/tiny-gguf:Q8_0", "tiny-q8_0"):
        assert str(paths.models_dir()) in cli("models", "info", name).stdout
    assert cli("models", "verify", "mine").returncode == 0
    refused = cli("models", "remove", "mine")
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    removed = json.loads(cli("models", "remove", "mine", "--yes", "--json").stdout)
    assert removed["freed_bytes"] == (files / "whole.gguf").stat().st_size
    assert cli("models", "info", "mine").returncode == 3


@pytest.mark.slow
def test_pull_from_a_url_and_of_an_invalid_file(hub: LocalHub, cli: Cli) -> None:
    pulled = cli("models", "pull", f"{hub.store_url}/own/tiny-GGUF/tiny-Q8_0.gguf")
    assert pulled.returncode == 0, pulled.stderr
    assert [p.parts[-3:] for p in paths.models_dir().rglob("*.gguf")] == [("own", "tiny-GGUF", "tiny-Q8_0.gguf")]
    of_hub = cli("models", "pull", f"{hub.url}/own/tiny-GGUF/blob/main/UD/tiny-UD-Q2_K_XL.gguf?download=true", "--json")
    assert json.loads(of_hub.stdout)["reference"] == "own/tiny-GGUF:UD-Q2_K_XL"
    hub.repos["own/text"] = FakeRepo({"text-Q4_0.gguf": b"Once upon a time"})
    wrong = cli("models", "pull", f"{hub.store_url}/own/text/text-Q4_0.gguf")
    assert (wrong.returncode, "not a complete model" in wrong.stderr) == (4, True)
    assert not list(paths.models_dir().rglob("text-Q4_0.gguf"))


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("own/nothing", 6, "is not on"),
        ("own/tiny-GGUF:Q3_K_S", 2, "Available variants: "),
        ("qwen35-4b", 2, "Did you mean qwen3.5-4b"),
        ("", 2, "The name of the model is empty"),
        ("a/b/c", 2, "is not a model of the catalogue"),
        ("http://127.0.0.1:1/x.gguf", 6, "Cannot reach"),
        ("http://[/x.gguf", 6, "The URL is not valid"),
        ("http://x:y/x.gguf", 6, "The URL is not valid"),
    ],
)
def test_failed_pull_explains_the_reason(hub: LocalHub, cli: Cli, reference: str, code: int, message: str) -> None:
    result = cli("models", "pull", reference)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_add_and_remove_own_files_and_folders(hub: LocalHub, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    model = write_tiny_llama(folder / "own model.gguf")
    assert cli("models", "add", str(folder)).returncode == 0
    assert "own model" in cli("models", "list").stdout
    assert cli("models", "add", str(model), "--name", "short").returncode == 0
    assert str(model) in cli("models", "info", "short").stdout
    assert (
        cli("models", "add", str(model), "--name", "own model").returncode == 0
    )  # it is called so already, and may be
    assert cli("models", "alias", "shorter", "short").returncode == 0
    assert cli("models", "alias", "shorter", "--remove").returncode == 0
    assert cli("models", "alias", "x").returncode == 2
    assert "folder" in cli("models", "dirs").stdout
    kept = cli("models", "remove", "own model", "--yes")
    assert (kept.returncode, "does not manage" in kept.stderr) == (2, True)
    assert cli("models", "remove", str(folder)).returncode == 0
    assert "file stays" in cli("models", "remove", "short").stdout  # it was added by itself, too
    assert "own model" not in cli("models", "list").stdout
    assert model.exists()
    for name in ("own model", str(model)):
        assert cli("models", "add", str(model)).returncode == 0
        away = model.rename(folder / "away.gguf")
        assert "Removed" in cli("models", "remove", name).stdout
        assert cli("models", "list").stderr == ""
        away.rename(model)
    (folder / "bad.gguf").write_bytes(b"GGUF")
    assert cli("models", "add", str(folder / "bad.gguf")).returncode == 3
    assert cli("models", "add", str(folder / "none.gguf")).returncode == 3


def test_model_names_complete(hub: LocalHub) -> None:
    write = paths.models_dir()
    write.mkdir(parents=True)
    write_tiny_llama(write / "smolmine.gguf")
    environment = os.environ | {
        "_EDGECHAT_COMPLETE": "bash_complete", "COMP_WORDS": "edgechat models info smol", "COMP_CWORD": "3",
    }  # fmt: skip
    found = subprocess.run(edgechat_command(), env=environment, capture_output=True, text=True, check=True)
    names = [line.partition(",")[2] for line in found.stdout.split()]
    assert "smolmine" in names
    assert "smollm2-135m" in names


def test_listing_installed_models_imports_no_heavy_package() -> None:
    script = (
        "import sys; from edgechat.catalogue import library, curated; library.scan(); curated.load_catalogue(); "
        "heavy = ('huggingface_hub', 'httpx2', 'numpy', 'gguf', 'llama_cpp', 'filelock'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_catalogue_is_printed_in_aligned_columns_with_known_speeds(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head, *lines = cli("models", "list", "--catalogue").stdout.splitlines()
    for column in ("tools", "licence"):
        start = head.index(column)
        assert all(line[start - 1] == " " and line[start] != " " for line in lines), column
    assert not [line for line in lines if "toggle" in line]
    assert any("qwen-research" in line for line in lines)
    monkeypatch.setattr(resources, "load_measured_speeds", lambda: WITHOUT_AMX)
    monkeypatch.setattr(selection, "load_measured_speeds", lambda: WITHOUT_AMX)
    print_catalogue(as_json=False)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("qwen3.5-4b "))
    assert float(row[head.index("tok/s") - 1 :].split()[0]) > 0


@pytest.mark.slow
def test_catalogue_model_is_described_in_plain_words(cli: Cli) -> None:
    text = cli("models", "info", "qwen3.5-4b").stdout
    for line in (
        "context length        262,144 tokens",
        "reasoning             optional",
        "parameters            4.66 B",
    ):
        assert line in text
    for note in ("llmfit", "n_params", "figures from", "toggle", "is default", "n ctx train", "None"):
        assert note not in text
    assert "Q4_K_M           2.74 GB" in text
    for name in ("n_params", "figures_from"):
        assert name in cli("models", "info", "qwen3.5-4b", "--json").stdout


@pytest.mark.parametrize("width", [80, 100, 140, None])
def test_catalogue_fits_a_terminal_and_is_complete_in_a_pipe(
    width: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    print_rows(list(curated.load_catalogue().values()), width)
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= (width or 1000)
    assert "apache-2.0" in output or width == 80
    assert ("strengths" in output.splitlines()[0]) == (width is None or "in a wider terminal" not in output)
    assert ("edgechat models info NAME" in output) == ("strengths" not in output.splitlines()[0])


def test_info_names_the_heads_of_a_file(cli: Cli, tmp_path: Path) -> None:
    model = write_tiny_glm4(tmp_path / "glm4.gguf")
    heads = json.loads(cli("models", "info", str(model), "--json").stdout)["drafting_heads"]
    assert (heads["kind"], heads["layers"], heads["usable"]) == ("mtp", 1, False)
    assert "cannot compute" in heads["problem"]
    [line] = [line for line in cli("models", "info", str(model)).stdout.splitlines() if line.startswith("heads for")]
    assert "MTP heads: 1 layer" in line
    plain = write_tiny_llama(tmp_path / "plain.gguf")
    assert "drafting_heads" not in json.loads(cli("models", "info", str(plain), "--json").stdout)


def test_catalogue_names_models_with_heads(cli: Cli) -> None:
    assert "heads for drafts      MTP, if the file kept them" in cli("models", "info", "qwen3.5-4b").stdout
    assert json.loads(cli("models", "info", "qwen3.5-4b", "--json").stdout)["mtp"] is True
    assert "heads for drafts" not in cli("models", "info", "qwen3-4b").stdout
