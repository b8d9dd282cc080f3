"""Settings: one TOML file, environment variables over it, command-line flags over both."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import msgspec

from edgechat import files, paths
from edgechat.errors import InvalidFileError, SettingsError

ENVIRONMENT_PREFIX: Final = "EDGECHAT_"


AUTO: Final = "auto"
"""The setting `model` that leaves the choice to us."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. The defaults are llama.cpp's, but for the penalties, which are off."""

    temperature: float = 0.8
    """How freely tokens are drawn; 0 always takes the likeliest."""
    top_k: int = 40
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the likeliest tokens whose probabilities add up to this; 1 keeps all."""
    min_p: float = 0.05
    """Drop tokens less likely than this part of the likeliest; 0 drops none."""
    repeat_penalty: float = 1.0
    """Make recent tokens less likely; 1 is off."""
    presence_penalty: float = 0.0
    """Make tokens less likely that came among the last 64; 0 is off."""
    frequency_penalty: float = 0.0
    """The same for each time that they came; 0 is off."""
    seed: int | None = None
    """Same seed, same text; absent: a new one for each answer."""


GREEDY: Final = Sampling(temperature=0.0)


class Settings(Sampling, frozen=True, kw_only=True):
    """Every setting with its default; the file and the environment use the same names."""

    model: str = AUTO
    """A model's name, or the path of a .gguf file; `auto`: the best one here that fits and is fast enough."""
    min_speed: float = 5.0
    """Wished tokens a second of a model that is chosen for you; 0 wishes nothing."""
    n_ctx: int | None = None
    """Context in tokens; absent: as much as fits, up to 8192."""
    budget: str | None = None
    """Memory that edgechat may use, such as `4GB` or `1500MiB`; absent: what is available."""
    n_threads: int | None = None
    """Compute threads; absent: as many as were measured to be the fastest, or the fast cores."""
    gpu: bool = True
    """Compute on a GPU where there is one that works."""
    max_tokens: int | None = None
    """Longest answer in tokens; absent: no limit but the context."""
    system_prompt: str = ""
    """What the model is told before every conversation."""
    reasoning: bool | None = None
    """Let models that can think do so before they answer; absent: where it is no long wait on this machine."""
    prefix_cache: bool = True
    """Keep what was computed of a conversation on disk, so that it answers at once when it is opened again."""
    speculation: bool = True
    """Try several tokens at a time where what was said before may be said again; the text is the same, only sooner."""
    strict: bool = False
    """Compute every answer from its first token on and one token at a time: same seed, same text, to the last bit."""
    titles: bool = True
    """Have the model name new conversations when it has nothing else to do."""

    theme: str = "textual-dark"
    """Colours: a theme's name (`/settings` shows them); `ansi-dark` and `ansi-light` use the terminal's own."""
    ascii: bool = False
    """Draw with plain ASCII signs only."""
    vim_keys: bool = False
    """Move in conversations with j, k, g and G, too."""
    figures: bool = False
    """Show below each answer how fast it came."""
    keys: dict[str, str] = {}
    """Other keys: a table from what a key does to the keys, such as `"chat.search" = "ctrl+f,f3"`; F1 shows all."""

    @property
    def sampling(self) -> Sampling:
        """The part that the sampler needs."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.__struct_fields__})


# Inclusive bounds. Beyond them llama.cpp would fail, or worse, not fail.
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "n_ctx": (16, 1 << 24), "min_speed": (0.0, 1e6), "n_threads": (1, 512), "max_tokens": (1, 1 << 24), "temperature": (0.0, 10.0),
    "top_k": (0, 1 << 20), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repeat_penalty": (0.1, 10.0),
    "presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0),
    "seed": (0, (1 << 32) - 1),
}  # fmt: skip


_SIZE: Final = re.compile(r"(?P<number>\d{1,18}(?:[.,]\d{1,9})?)\s*(?P<unit>[kmgt]?i?b?)")
_UNITS: Final = {
    "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "i": 1, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip


class SettingsProblem(msgspec.Struct, frozen=True):
    """Something in the settings that is not used; its default is."""

    where: str
    """`config.toml: temperature`, `EDGECHAT_TOP_K`, or the file with a line number."""
    message: str

    def __str__(self) -> str:
        """For a person, on one line."""
        return f"{self.where}: {self.message}"


def load(
    path: Path | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[Settings, list[SettingsProblem]]:
    """The settings in force before flags, and what is wrong with where they come from."""
    problems: list[SettingsProblem] = []
    values: dict[str, Any] = {}
    file = path or paths.config_file()
    for name, value in read_toml(file, problems).items():
        _take(values, name, value, f"{file}: {name}", problems)
    for name in Settings.__struct_fields__:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            _take(values, name, parse_value(name, environment[variable]), variable, problems)
    return Settings(**values), problems


def parse_size(text: str) -> int | None:
    """Bytes of a size as people write it: powers of ten with GB, of two with GiB; None if it is none, or not above 0."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        return None
    factor = _UNITS[(match["unit"] or "b").replace("ib", "i").rstrip("b") or "b"]
    size = float(match["number"].replace(",", ".")) * factor
    return int(size) if 1 <= size < 1 << 60 else None


@functools.cache
def setting_types() -> dict[str, Any]:
    """The type of each setting; it is looked up for every value, and made from text."""
    return get_type_hints(Settings)


def check(name: str, value: object) -> str:
    """Why `value` cannot be the setting `name`; "" if it can."""
    kinds = setting_types()
    if name not in kinds:
        return f"there is no such setting; known are: {', '.join(kinds)}"
    try:
        converted = msgspec.convert(value, kinds[name])
    except msgspec.ValidationError as error:
        return str(error)
    if name == "budget" and isinstance(converted, str):
        return "" if parse_size(converted) else f"{converted!r} is no size like 4GB, 1500MiB or 900000000"
    low, high = _BOUNDS.get(name, (None, None))
    if low is not None and high is not None and converted is not None and not low <= converted <= high:
        return f"{converted} is not between {low} and {high}"
    return ""


def with_overrides(settings: Settings, *layers: Mapping[str, object]) -> Settings:
    """Settings with others over them, the last ones first; what this version does not know is left out."""
    values = msgspec.structs.asdict(settings)
    for layer in layers:
        values |= {name: value for name, value in layer.items() if not check(name, value)}
    return Settings(**values)


def describe() -> dict[str, str]:
    """What each setting means, as the source says below it."""
    import ast
    import inspect

    found = {}
    for owner in (Settings, Sampling):
        [definition] = ast.parse(inspect.getsource(owner)).body
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for field, words in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(words, ast.Expr):
                found[field.target.id] = str(ast.literal_eval(words.value))
    return found


def save(name: str, value: object, path: Path | None = None) -> None:
    """Write one setting to the file, or take it out if it is None; all else in it stays as it is. Raises SettingsError."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    wrong = check(name, value) if value is not None else ""
    if wrong:
        raise SettingsError(f"{name}: {wrong}")
    file = path or paths.config_file()
    try:
        document = tomlkit.parse(file.read_text(encoding="utf-8")) if file.exists() else tomlkit.document()
        if value is None:
            document.pop(name, None)
        else:
            document[name] = value
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(file.resolve(), tomlkit.dumps(document).encode())
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise SettingsError(f"{file} cannot be changed: {error}; nothing was written") from error


def _take(values: dict[str, Any], name: str, value: object, where: str, problems: list[SettingsProblem]) -> None:
    if name == "keys" and isinstance(value, dict):  # each for itself: one that is wrong does not spoil the others
        wrong_keys = {k: v for k, v in value.items() if not isinstance(v, str)}
        problems += [SettingsProblem(f"{where}.{k}", f"{v!r} is no text with keys") for k, v in wrong_keys.items()]
        value = {k: v for k, v in value.items() if k not in wrong_keys}
    wrong = check(name, value)
    if wrong:
        problems.append(SettingsProblem(where, wrong))
    else:
        values[name] = value


def read_toml(path: Path, problems: list[SettingsProblem]) -> dict[str, Any]:
    """Parse a TOML file; one that does not exist is empty, and one that cannot be used adds to `problems`."""
    if not path.exists():  # the usual case: no TOML reader is imported
        return {}
    try:
        return files.read_toml(path)
    except InvalidFileError as error:
        problems.append(SettingsProblem(error.where, error.reason))
        return {}


_TRUTH: Final = {"yes": True, "on": True, "no": False, "off": False}  # beside true, false, 1 and 0


def parse_value(name: str, text: str) -> object:
    """An environment variable as the setting's type would be in TOML; the text itself if it is not that."""
    kind = setting_types().get(name, str)
    if kind is str:
        return text
    if bool in (kind, *get_args(kind)) and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        return text
