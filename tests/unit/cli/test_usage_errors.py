"""Empty, unknown and missing arguments of commands are refused in one sentence."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgechat.catalogue import registry
from edgechat.cli import root

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs a command in this process and returns its exit code and its standard error."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["edgechat", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        code = root.run()
        return code, capsys.readouterr().err

    return run_command


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("ask", "-m", "", "hi"), "The name of the model is empty"),
        (("ask", "-m", "  ", "hi"), "The name of the model is empty"),
        (("ask", "--persona", "", "hi"), "The name of the persona is empty"),
        (("ask", "--persona", "../x", "hi"), "No persona is called '../x'. A persona is a TOML file in"),
        (("ask", "-m", "starter", "-a", "", "hi"), "the path is empty"),
        (("models", "info", ""), "The name of the model is empty"),
        (("models", "pull", ""), "The name of the model is empty"),
        (("models", "pull", "own/x", "--name", ""), "The alias is empty"),
        (("models", "search", ""), "The search text is empty"),
        (("models", "search", " ", ""), "The search text is empty"),
        (("models", "alias", "", "starter"), "The alias is empty"),
        (("models", "alias", " ", "starter"), "The alias is empty"),
        (("models", "alias", "a ", "starter"), "cannot be an alias"),
        (("models", "alias", "x", ""), "The name of the model is empty"),
        (("models", "add", ""), "the path is empty"),
        (("models", "remove", ""), "The name of the model is empty"),
        (("models", "verify", ""), "The name of the model is empty"),
        (("plan", "-m", ""), "The name of the model is empty"),
        (("plan", "--machine", ""), "the path is empty"),
        (("history", "import", ""), "the path is empty"),
        (("models", "info", "qwen3.5-4b:nope"), "does not list the quant 'nope' of qwen3.5-4b, but only "),
        (("plan", "--no-measure", "-m", "qwen3.5-4b:nope"), "does not list the quant 'nope' of qwen3.5-4b, but only "),
    ],
)
def test_empty_or_unknown_name_is_refused(run: Run, command: tuple[str, ...], message: str) -> None:
    code, error = run(*command)
    assert code == 2
    assert message in error
    assert registry.read_records() == registry.ModelRecords()


@pytest.mark.parametrize(
    ("command", "value", "message"),
    [
        *((("ask", "hi", "--max-tokens"), value, "") for value in ("-1", "0", "nan", "x", "", "1e3", "9" * 400)),
        *((("ask", "hi", "--temperature"), value, "") for value in ("-1", "nan", "inf", "-inf", "x", "", "1e999")),
        *((("ask", "hi", "--top-p"), value, "") for value in ("-1", "nan", "2", "x", "")),
        *((("ask", "hi", "--seed"), value, "") for value in ("-1", "nan", "9" * 30, "")),
        *((("ask", "hi", "--ctx"), value, "") for value in ("-1", "0", "15", "nan", "8k", "9" * 30, "")),
        *((("ask", "hi", "--threads"), value, "") for value in ("-1", "0", "nan", "9" * 30, "")),
        *((("ask", "hi", "--budget"), value, "must be a") for value in ("-1", "0", "nan", "inf", "lots", "", "0B")),
        *((("ask", "hi", "--answers"), value, "") for value in ("-1", "0", "9", "65", "nan", "x", "")),
        *((("plan", "--ctx"), value, "") for value in ("-1", "0", "nan", "9" * 30, "")),
        *((("plan", "--min-speed"), value, "") for value in ("-1", "nan", "inf", "x", "")),
        *((("plan", "--budget"), value, "must be a size") for value in ("-1", "0", "nan", "lots", "", "1e300GB")),
        *((("serve", "--port"), value, "") for value in ("-1", "65536", "nan", "")),
        *((("serve", "--max-requests"), value, "") for value in ("-1", "0", "nan", "9" * 30)),
        *((("history", "list", "--limit"), value, "") for value in ("-1", "0", "nan", "9" * 30, "")),
        *((("history", "list", "--offset"), value, "") for value in ("-1", "nan", "9" * 30, "")),
        *((("history", "search", "x", "--limit"), value, "") for value in ("-1", "0", "9" * 30)),
        (("models", "search", "x", "--limit"), "101", ""),
        (("ask", "hi", "--nope"), "1", "No such option"),
        (("history", "export", "--all", "--format"), "pdf", ""),
        (("completion",), "tcsh", ""),
        (("nope",), "x", "No such command"),
        (("config", "set"), "x", "No such command"),
    ],
)  # fmt: skip
def test_nonsense_is_a_usage_error_of_one_line(run: Run, command: tuple[str, ...], value: str, message: str) -> None:
    code, error = run(*command, value)
    assert code == 2
    assert error.startswith("edgechat: ")
    assert (message or command[-1]) in error
    assert error.count("\n") == 1
    assert len(error) < 700


def test_group_without_a_command_prints_its_help(run: Run) -> None:
    code, error = run("models")
    assert (code, error.startswith("Usage: edgechat models")) == (2, True)


@pytest.mark.parametrize("quant", ["", ":q4_k_m", ":Q8_0"])
def test_quant_of_the_catalogue_is_shown(run: Run, quant: str) -> None:
    assert run("models", "info", f"qwen3.5-4b{quant}") == (0, "")


def test_unreachable_hub_is_reported_for_a_quant_that_the_catalogue_does_not_list(run: Run) -> None:
    code, error = run("models", "pull", "qwen3.5-4b:Q6_K_L")
    assert code == 6
    assert "Cannot reach 127.0.0.1" in error


def test_folder_without_models_is_added_and_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.gguf-split-a").write_bytes(b"GGUF")
    code, error = run("models", "add", str(tmp_path / "empty"))
    assert code == 0
    assert "x.gguf-split-a is only a part of x.gguf" in error
    assert registry.read_records().folders == [str(tmp_path / "empty")]
    for command in ("list", "dirs"):
        assert "x.gguf-split-a is only a part of x.gguf" in run("models", command)[1]


def test_file_mention_in_a_question_is_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    _, error = run("ask", "-m", "", "compare @notes.txt with @other.txt for @alice")
    assert "@notes.txt is sent as plain text. To attach it, add --attach notes.txt." in error
    assert "File not found: other.txt." in error
    assert "alice" not in error


@pytest.mark.skipif(sys.platform == "win32", reason="commands of POSIX systems")
@pytest.mark.parametrize(
    ("editor", "message"),
    [
        ("/nonexistent/editor", "Cannot start the editor /nonexistent/editor: No such file or directory"),
        ("false", "The editor false failed with exit code 1"),
        ("sh -c 'kill -9 $$'", "The editor sh was ended by signal 9"),
        ("'", "Cannot parse $VISUAL or $EDITOR"),
        ("/", "Cannot start the editor /: Permission denied"),
    ],
)
def test_failing_editor_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, editor: str, message: str) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor)
    code, error = run("config", "edit")
    assert code == 2
    assert message in error
    assert "Errno" not in error


@pytest.mark.skipif(sys.platform == "win32", reason="commands of POSIX systems")
def test_missing_editor_is_a_usage_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "  "):
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", value)
        monkeypatch.setenv("PATH", "/nonexistent")
        assert run("config", "edit") == (
            2, "edgechat: No editor found. Set $VISUAL or $EDITOR to the command of an editor.\n",
        )  # fmt: skip


def test_server_address_in_use_or_unknown_is_named_without_a_number(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        code, error = run("serve", "-m", "starter", "--port", port)
    assert (code, f"Cannot listen on 127.0.0.1, port {port}: Address already in use." in error) == (2, True)
    for host in ("", "nonexistent.invalid"):
        code, error = run("serve", "-m", "starter", "--host", host, "--api-key", "k", "--port", port)
        assert code == 2
        assert "Errno" not in error


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("ask", "--answers", "0", "hi"), "--answers: must be from 1 to 64, not 0."),
        (("serve", "--port", "70000"), "--port: must be from 0 to 65535, not 70000."),
        (("serve", "--max-requests", "0"), "--max-requests: must be from 1 to 10000, not 0."),
        (("history", "list", "--limit", "0"), "--limit: must be at least 1, not 0."),
        (("models", "search", "-n", "0", "x"), "must be from 1 to 100, not 0."),
        (("bench", "tui", "--idle", "nan"), "--idle: must be at least 1, not nan."),
    ],
)
def test_number_out_of_range_is_described_without_an_inequality(
    run: Run, command: tuple[str, ...], message: str
) -> None:
    code, error = run(*command)
    assert code == 2
    assert message in error


@pytest.mark.parametrize(
    "arguments", [("--draft-model", "auto"), ("--kinds", "edit"), ("--drafts", "--peer", "/bin/sh")]
)
def test_options_that_a_measurement_would_ignore_are_refused(run: Run, arguments: tuple[str, ...]) -> None:
    code, error = run("bench", "serve", *arguments)
    assert code == 2
    assert arguments[0] in error
    assert "--drafts" in error
