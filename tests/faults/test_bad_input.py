"""Invalid input: one clear error with the right exit code, and no traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Cli, edgechat_command, remove_notes
from tests.models import write_tiny_llama

TINY_TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def check_refused(result: object, code: int, *parts: str) -> None:
    stderr, returncode = result.stderr, result.returncode  # type: ignore[attr-defined]
    stderr = stderr.decode() if isinstance(stderr, bytes) else stderr
    assert returncode == code, stderr
    assert "Traceback" not in stderr
    for part in parts:
        assert part in stderr
    assert len(stderr.splitlines()) <= 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.gguf", None, "does not exist"),
        ("empty.gguf", b"", "is empty"),
        ("text.gguf", b"Dear diary,", "not a GGUF file"),
        ("old.gguf", b"GGUF\x01\0\0\0" + bytes(64), "version 1"),
        ("cut.gguf", b"GGUF\x03\0\0\0", "ends too early"),
        ("lying.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 8 + bytes(64), "cannot hold"),
    ],
)
def test_invalid_model_files_are_refused(
    tmp_path: Path, run_here: Cli, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    check_refused(run_here("ask", "Hi", "-m", str(path)), 3, str(path), message)


def test_directory_and_unknown_name_are_refused(tmp_path: Path, run_here: Cli) -> None:
    check_refused(run_here("ask", "Hi", "-m", str(tmp_path)), 3, "is a directory")
    check_refused(run_here("ask", "Hi", "-m", "gpt-9"), 3, "No model with the name 'gpt-9'", "starter")


def test_truncated_tensor_data_is_refused(tmp_path: Path, run_here: Cli, starter: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(starter.read_bytes()[:-1000])
    check_refused(run_here("ask", "Hi", "-m", str(cut)), 3, "ends too early", "download it again")


def test_unknown_architecture_is_refused(tmp_path: Path, cli: Cli) -> None:
    path = write_tiny_llama(tmp_path / "odd.gguf", architecture="flux-capacitor")
    check_refused(cli("ask", "Hi", "-m", str(path)), 3, "flux-capacitor")


def test_prompt_longer_than_the_context_is_refused_with_both_lengths(cli: Cli) -> None:
    check_refused(cli("ask", "word " * 2000, "--ctx", "512"), 5, "tokens, but the context holds 512")


def test_context_larger_than_memory_is_refused(cli: Cli) -> None:
    check_refused(cli("ask", "Hi", "--ctx", "16000000"), 5, "are available", "KV cache")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "forbids"),
        ("{{ 'x' * 300000000 }}", "a million"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "took more than"),
        ("{{ raise_exception('no system role') }}", "no system role"),
    ],
)
def test_hostile_templates_are_stopped(tmp_path: Path, cli: Cli, template: str, message: str) -> None:
    path = write_tiny_llama(tmp_path / "hostile.gguf", template=template)
    check_refused(cli("ask", "Hi", "-m", str(path)), 3, "chat template", message)


def test_model_without_a_template_works_with_a_warning(tmp_path: Path, cli: Cli) -> None:
    path = write_tiny_llama(tmp_path / "plain.gguf", template=None)
    result = cli("ask", "Hi", "-m", str(path), "--max-tokens", "4")
    assert result.returncode == 0
    assert "no chat template" in result.stderr
    assert "'plain'" in result.stderr


def test_standard_input_must_be_utf8_text(cli: Cli) -> None:
    check_refused(cli("ask", input=b"caf\xe9", text=False), 2, "not UTF-8", "byte 3")
    check_refused(cli("ask", input=""), 2, "The question is empty")
    check_refused(cli("ask"), 2, "The question is empty")
    reply = cli("ask", "Summarise:", "--json", "--max-tokens", "3", input="A long story.")
    assert json.loads(reply.stdout)["stats"]["prompt_tokens"] > 30
    assert cli("--max-tokens", "3", input="Hello?").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "Hi", "--ctx", "1"], "--ctx"),
        (["ask", "Hi", "--temperature", "-3"], "--temperature"),
        (["ask", "Hi", "--temperature", "nan"], "--temperature"),
        (["ask", "Hi", "--top-p", "2"], "--top-p"),
        (["ask", "Hi", "--threads", "0"], "--threads"),
        (["ask", "Hi", "--seed", "-1"], "--seed"),
        (["ask", "Hi", "--seed", "many"], "--seed"),
        (["ask", "Hi", "more"], "more"),
        (["asks"], "asks"),
    ],
)
def test_invalid_options_are_named(run_here: Cli, arguments: list[str], message: str) -> None:
    result = run_here(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_invalid_settings_are_named_and_ignored(home: Path, cli: Cli) -> None:
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text("temprature = 1\nmax_tokens = 3\n")
    result = cli("ask", "Hi")
    assert result.returncode == 0
    assert "temprature" in result.stderr
    check_refused(cli("config", "validate"), 2, "temprature", "is not a setting")
    assert "max_tokens = 3" in cli("config", "show").stdout


@pytest.mark.skipif(os.name == "nt", reason="replaces a directory by a file")
def test_cache_directory_that_cannot_be_written_is_reported(tmp_path: Path, cli: Cli) -> None:
    home = tmp_path / "file"
    home.write_text("in the way")
    environment = os.environ | {"EDGECHAT_HOME": str(home)}
    assert cli("ask", "Hi", "--max-tokens", "3", env=environment).returncode == 0
    report = json.loads(cli("doctor", "--json", env=environment).stdout)
    assert report["paths"]["cache_writable"] is False


def test_json_output_has_the_documented_keys(cli: Cli) -> None:
    output = json.loads(cli("ask", "Hi", "--json", "--max-tokens", "5", "--temperature", "0").stdout)
    assert set(output) == {
        "text", "reasoning", "finish_reason", "conversation_id", "message_id", "model", "backend", "drafter",
        "drafter_refusal", "stats",
    }  # fmt: skip
    stats = output["stats"]
    # These two are there only if other programs were busy, and if anything was drafted.
    assert set(stats) - {"is_disturbed", "drafts_by_source"} == {
        "prompt_tokens", "cached_tokens", "cached_ram_tokens", "cached_disk_tokens", "completion_tokens", "ttft_s",
        "prefill_tps", "decode_tps",
        "n_drafts", "n_drafted", "n_accepted", "mean_acceptance_length", "speculation_gain", "load_s", "peak_rss_bytes",
    }  # fmt: skip
    assert stats["completion_tokens"] == 5
    assert output["finish_reason"] == "length"
    # The engine may use 120 MiB in addition to the mapped weights (96.6 MB), the context and the compute buffers.
    assert stats["peak_rss_bytes"]["client"] < 80 << 20
    assert stats["peak_rss_bytes"]["engine"] < (96_576_768 + 188_743_680 + 103_024_640) + (120 << 20)


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode on Windows")
def test_arguments_and_file_names_that_are_not_utf8_are_refused(run_here: Cli, tmp_path: Path) -> None:
    check_refused(run_here("ask", os.fsdecode(b"caf\xe9")), 2, "UTF-8")
    check_refused(run_here("ask", "Hi", "-m", os.fsdecode(b"/caf\xe9.gguf")), 3, "does not exist")
    check_refused(run_here("ask", "Hi", "-m", "x" * 300 + ".gguf"), 3, "name too long")
    check_refused(run_here("ask", "Hi", "-m", "~nosuchuser/x.gguf"), 3, "does not exist")
    os.mkfifo(tmp_path / "pipe.gguf")
    check_refused(run_here("ask", "Hi", "-m", str(tmp_path / "pipe.gguf")), 3, "not a regular file")
    check_refused(run_here("-m", "x.gguf", "ask", "Hi"), 3, "x.gguf")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_cause_no_error(closed: str, tmp_path: Path) -> None:
    command = " ".join(map(shlex.quote, edgechat_command("ask", "Hi", "-m", "starter", "--max-tokens", "2")))
    result = subprocess.run(f"{command} {closed}", shell=True, capture_output=True, text=True, check=False, timeout=300)
    assert (result.returncode, remove_notes(result.stderr)) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full exists on Linux only")
def test_full_disk_is_one_line_of_error(cli: Cli) -> None:
    for arguments in (["ask", "Hi", "--max-tokens", "2"], ["config", "show"], ["doctor", "--json"]):
        with Path("/dev/full").open("w") as full:
            result = cli(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
        check_refused(result, 4, "No space left")


def test_threads_are_limited_to_the_cores(cli: Cli) -> None:
    result = cli("ask", "Hi", "--max-tokens", "2", "--threads", "400")
    assert result.returncode == 0
    assert "instead of 400" in result.stderr


def test_file_in_the_current_directory_does_not_shadow_a_model_name(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "starter").write_text("planted")
    assert cli("ask", "Hi", "--max-tokens", "2", cwd=tmp_path).returncode == 0


def test_control_characters_in_template_errors_are_escaped(tmp_path: Path, cli: Cli) -> None:
    path = write_tiny_llama(tmp_path / "shout.gguf", template="{{ raise_exception('\x1b[2Jgone') }}")
    result = cli("ask", "Hi", "-m", str(path))
    assert result.returncode == 3
    assert "\x1b" not in result.stderr
    assert "␛[2Jgone" in result.stderr


def test_error_of_a_template_is_limited(tmp_path: Path, cli: Cli) -> None:
    template = (
        "{% set ns = namespace(text='0123456789') %}{% for i in range(16) %}{% set ns.text = ns.text ~ ns.text %}"
        "{% endfor %}{{ raise_exception(ns.text ~ 'the end') }}"
    )
    path = write_tiny_llama(tmp_path / "long.gguf", template=template)
    result = cli("ask", "Hi", "-m", str(path))
    assert result.returncode == 3
    assert len(result.stderr) < 1200
    assert result.stderr.rstrip().endswith("the end")


def test_doctor_report_contains_no_home_directory(cli: Cli, tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}
    result = cli("doctor", "--report", env=environment)
    assert result.returncode == 0
    assert str(tmp_path) not in result.stdout
    assert "~/" in result.stdout
