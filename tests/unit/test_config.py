"""Settings: file, environment, sizes, and invalid values."""

from __future__ import annotations

import inspect
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat import config
from edgechat.config import Settings, check, load, parse_size
from edgechat.errors import SettingsError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_budget_can_be_a_number_of_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "config.toml", "budget = 4000000000")
    assert load(path, {}) == (Settings(budget="4000000000"), [])


def test_defaults_apply_without_a_file(tmp_path: Path) -> None:
    assert load(tmp_path / "none.toml", {}) == (Settings(), [])


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'model = "a"\ntop_k = 5\nseed = 1\n')
    settings, problems = load(file, {"EDGECHAT_MODEL": "b", "EDGECHAT_N_CTX": "2048", "EDGECHAT_UNRELATED": "x"})
    assert problems == []
    assert (settings.model, settings.top_k, settings.n_ctx, settings.seed) == ("b", 5, 2048, 1)


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("temprature = 1", "temprature", "is not a setting; did you mean temperature?"),
        ("zzz = 1", "zzz", "is not a setting; `edgechat config show` lists all settings"),
        ("temperature = 'hot'", "temperature", "must be a number between 0 and 10, not 'hot'"),
        ("temperature = -1", "temperature", "must be a number between 0 and 10, not -1"),
        ("min_p = 1.5", "min_p", "must be a number between 0 and 1, not 1.5"),
        ("top_k = 1.5", "top_k", "must be a whole number between 0 and 1,048,576, not 1.5"),
        ("n_ctx = 4096.0", "n_ctx", "must be a whole number between 16 and 16,777,216, not 4096.0"),
        ("n_ctx = 1", "n_ctx", "must be a whole number between 16 and 16,777,216, not 1"),
        ("gpu = 'maybe'", "gpu", "must be true or false, not 'maybe'"),
        ("reasoning = 2", "reasoning", "must be true or false, not 2"),
        ("theme = true", "theme", "must be text, not true"),
        ("seed = [1]", "seed", "must be a whole number between 0 and 4,294,967,295, not a list"),
        ("keys = 1", "keys", "must be a table of actions and keys, not 1"),
        ("[keys]\na = 1", "keys.a", 'must be a text with keys, such as "ctrl+f,f7", not 1'),
        ("a = 1\nb = = 2", ":2", "is not valid TOML"),
        ("[model]\nx = 1", "model", "must be text, not a table"),
    ],
)
def test_invalid_setting_is_reported_and_its_default_used(tmp_path: Path, text: str, where: str, message: str) -> None:
    settings, problems = load(write(tmp_path / "c.toml", text), {})
    assert where in problems[0].location
    assert message in problems[0].message
    assert settings == Settings()


def test_problem_is_one_sentence_with_the_file_and_the_setting(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "temperature = 11")
    _, problems = load(file, {"EDGECHAT_TOP_K": "many"})
    assert list(map(str, problems)) == [
        f"{file}: temperature must be a number between 0 and 10, not 11",
        "EDGECHAT_TOP_K must be a whole number between 0 and 1,048,576, not 'many'",
    ]


def test_long_invalid_value_is_shortened() -> None:
    assert len(check("budget", "x" * 10_000)) < 160


def test_one_invalid_key_binding_does_not_discard_the_others(tmp_path: Path) -> None:
    settings, problems = load(write(tmp_path / "c.toml", '[keys]\na = "f1"\nb = 2\n'), {})
    assert settings.keys == {"a": "f1"}
    assert [problem.location.rpartition(".")[2] for problem in problems] == ["b"]


def test_undecodable_file_and_invalid_environment_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b"model = '\xff'")
    settings, problems = load(file, {"EDGECHAT_TOP_K": "many"})
    assert settings == Settings()
    assert [("UTF-8" in str(p), "EDGECHAT_TOP_K" in str(p)) for p in problems] == [(True, False), (False, True)]


def test_defaults_are_valid_and_nan_is_not() -> None:
    for name in Settings.__struct_fields__:
        assert check(name, getattr(Settings(), name)) == ""
    assert check("seed", float("nan")) != ""
    assert check("temperature", float("nan")) != ""


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("on", True), ("1", True), ("No", False), ("off", False), ("FALSE", False)]
)
def test_environment_accepts_words_for_booleans(text: str, value: bool) -> None:
    settings, problems = load(environment={"EDGECHAT_STRICT": text, "EDGECHAT_REASONING": text})
    assert (settings.strict, settings.reasoning, problems) == (value, value, [])


@pytest.mark.parametrize(
    ("text", "value"),
    [("OFF", "off"), ("none", "off"), ("False", "off"), (" no ", "off"), ("AUTO", "auto"), ("Nonesuch", "Nonesuch")],
)
def test_words_for_no_draft_model(tmp_path: Path, text: str, value: str) -> None:
    settings, problems = load(write(tmp_path / "c.toml", f'draft_model = "{text}"\n'), {})
    assert (settings.draft_model, problems) == (value, [])
    assert load(tmp_path / "none.toml", {"EDGECHAT_DRAFT_MODEL": text})[0].draft_model == value
    assert config.with_overrides(Settings(), {"draft_model": text}).draft_model == value
    assert msgspec.structs.replace(Settings(), draft_model=text).draft_model == value


def test_false_in_the_settings_file_means_no_draft_model(tmp_path: Path) -> None:
    settings, problems = load(write(tmp_path / "c.toml", "draft_model = false\n"), {})
    assert (settings.draft_model, problems) == ("off", [])
    assert load(write(tmp_path / "c.toml", "draft_model = true\n"), {})[1]


def test_names_of_collections_are_read_from_file_environment_and_conversation(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'docs = ["manuals", "my notes"]\n')
    assert load(file, {}) == (Settings(docs=("manuals", "my notes")), [])
    assert load(file, {"EDGECHAT_DOCS": "a, my notes ,"})[0].docs == ("a", "my notes")
    assert config.with_overrides(Settings(), {"docs": ["a"]}).docs == ("a",)
    config.save("docs", ("a", "b"), file)
    assert load(file, {})[0].docs == ("a", "b")
    assert check("docs", 3) == "must be a list of names, not 3"
    assert config.with_overrides(Settings(docs=("a",)), {"docs": []}).docs == ()


def test_saving_a_setting_keeps_the_rest_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "config.toml"
    config.save("temperature", 0.5, file)
    file.write_text('# mine\ntemperature = 0.5 # cool\nunknown = 1\n\n[keys]\n"chat.new" = "f9"\n')
    config.save("top_k", 7, file)
    config.save("temperature", 0.25, file)
    text = file.read_text()
    assert text.startswith("# mine\ntemperature = 0.25 # cool\nunknown = 1\n")
    settings, problems = config.load(file, {})
    assert (settings.temperature, settings.top_k, settings.keys) == (0.25, 7, {"chat.new": "f9"})
    assert len(problems) == 1
    config.save("temperature", None, file)
    assert config.load(file, {})[0].temperature == Settings().temperature


def test_failed_save_leaves_the_file_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("this is = not = toml")
    with pytest.raises(SettingsError, match="nothing was written"):
        config.save("top_k", 7, file)
    with pytest.raises(SettingsError, match="temperature must be a number between 0 and 10, not 99"):
        config.save("temperature", 99.0, file)
    assert file.read_text() == "this is = not = toml"


def test_every_setting_has_a_description() -> None:
    assert set(config.describe_settings()) == set(Settings.__struct_fields__)
    assert all(config.describe_settings().values())


def test_descriptions_need_no_source_files(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptions = config.describe_settings()

    def fail(_: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", fail)
    assert config.describe_settings() == descriptions


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("4GB", 4 * 10**9), ("4 gb", 4 * 10**9), ("1.5GiB", 3 << 29), ("1,5 gib", 3 << 29), ("900000000", 900_000_000),
        ("512m", 512 * 10**6), ("2T", 2 * 10**12), ("7b", 7), ("10KiB", 10240),
    ],
)  # fmt: skip
def test_sizes_are_parsed_with_decimal_and_binary_units(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes
    assert check("budget", text) == ""


@pytest.mark.parametrize(
    "text", ["", "-4GB", "0", "4GBB", "four", "4 G B", "1e9", "0x10", "∞", "9" * 30, "9999999T", "4GB; rm"]
)
def test_invalid_sizes_are_refused(text: str) -> None:
    assert parse_size(text) is None
    assert "must be a size such as 4GB" in check("budget", text)


@given(st.text(max_size=12))
def test_any_text_is_a_valid_size_or_none(text: str) -> None:
    n_bytes = parse_size(text)
    assert n_bytes is None or 0 < n_bytes < 1 << 60
