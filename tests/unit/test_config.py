"""Settings: file, environment, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat import config
from edgechat.config import Settings, check, load
from edgechat.errors import SettingsError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_at_all_means_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "none.toml", {}) == (Settings(), [])


def test_environment_goes_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'model = "a"\ntop_k = 5\nseed = 1\n')
    settings, problems = load(file, {"EDGECHAT_MODEL": "b", "EDGECHAT_N_CTX": "2048", "EDGECHAT_UNRELATED": "x"})
    assert problems == []
    assert (settings.model, settings.top_k, settings.n_ctx, settings.seed) == ("b", 5, 2048, 1)


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("temprature = 1", "temprature", "no such setting"),
        ("temperature = 'hot'", "temperature", "Expected `float`"),
        ("temperature = -1", "temperature", "-1.0 is not between"),
        ("top_k = 1.5", "top_k", "Expected `int`"),
        ("n_ctx = 1", "n_ctx", "not between"),
        ("a = 1\nb = = 2", ":2", "not TOML"),
        ("[model]\nx = 1", "model", "Expected `str`"),
    ],
)
def test_a_wrong_setting_is_named_and_its_default_used(tmp_path: Path, text: str, where: str, words: str) -> None:
    settings, problems = load(write(tmp_path / "c.toml", text), {})
    assert where in problems[0].where
    assert words in problems[0].message
    assert settings == Settings()


def test_wrong_environment_and_undecodable_files_are_problems_too(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b"model = '\xff'")
    settings, problems = load(file, {"EDGECHAT_TOP_K": "many"})
    assert settings == Settings()
    assert [("UTF-8" in str(p), "EDGECHAT_TOP_K" in str(p)) for p in problems] == [(True, False), (False, True)]


def test_defaults_pass_their_own_checks() -> None:
    for name in Settings.__struct_fields__:
        assert check(name, getattr(Settings(), name)) == ""
    assert check("seed", float("nan")) != ""
    assert check("temperature", float("nan")) != ""


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("on", True), ("1", True), ("No", False), ("off", False), ("FALSE", False)]
)
def test_what_stands_for_true_in_the_environment(text: str, value: bool) -> None:
    settings, problems = load(environment={"EDGECHAT_STRICT": text, "EDGECHAT_REASONING": text})
    assert (settings.strict, settings.reasoning, problems) == (value, value, [])


def test_a_setting_is_saved_and_all_else_stays(tmp_path: Path) -> None:
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


def test_what_cannot_be_saved_leaves_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("this is = not = toml")
    with pytest.raises(SettingsError, match="nothing was written"):
        config.save("top_k", 7, file)
    with pytest.raises(SettingsError, match="not between"):
        config.save("temperature", 99.0, file)
    assert file.read_text() == "this is = not = toml"


def test_every_setting_is_described() -> None:
    assert set(config.describe()) == set(Settings.__struct_fields__)
