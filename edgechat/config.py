"""Settings. Sources in increasing priority: defaults, settings file (TOML), environment variables, command line."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

import msgspec

from edgechat import files, paths
from edgechat.errors import InvalidFileError, SettingsError, format_reason
from edgechat.humanize import shorten
from edgechat.remote_settings import RemoteSettings, check_remote, parse_remotes

ENVIRONMENT_PREFIX: Final = "EDGECHAT_"
AUTO: Final = "auto"
"""Value of the setting `model` that chooses the best installed model, and of `draft_model` that chooses a drafter."""
OFF: Final = "off"
"""Value of the setting `draft_model` for no model drafter."""
# Words for these two values of `draft_model`, in any case; other words are names of models.
_DRAFT_MODEL_WORDS: Final = {"off": OFF, "none": OFF, "no": OFF, "false": OFF, "auto": AUTO}


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampler settings. The names and defaults are those of llama.cpp, with all penalties off.

    temperature: Randomness of the reply; 0 always takes the most likely token.
    top_k: Number of most likely tokens to sample from; 0 for all tokens.
    top_p: Total probability of the most likely tokens to sample from; 1 for all tokens.
    min_p: Minimum probability of a token, as a fraction of the highest probability; 0 for no minimum.
    typical_p: Total probability of the tokens whose probability is closest to the expected one; 1 for all tokens.
    top_n_sigma: Maximum distance of a token from the best logit, in standard deviations of all logits; -1 for no limit.
    xtc_probability: Probability with which XTC removes the most likely tokens of a step; 0 turns XTC off.
    xtc_threshold: Minimum probability of the tokens that XTC removes; the least likely of them stays.
    dynatemp_range: Dynamic temperature: how far the temperature changes with the entropy of the logits; 0 for a fixed
        temperature.
    dynatemp_exponent: Dynamic temperature: exponent of the entropy.
    mirostat: Mirostat version 1 or 2 in place of top-k, top-p, min-p and the other limits; 0 for none.
    mirostat_tau: Mirostat: target surprise of a token, in bits.
    mirostat_eta: Mirostat: learning rate.
    repeat_penalty: Penalty factor for tokens that occur in the last 64 tokens; 1 for no penalty.
    presence_penalty: Penalty for tokens that occur in the last 64 tokens; 0 for no penalty.
    frequency_penalty: Penalty for each occurrence of a token in the last 64 tokens; 0 for no penalty.
    dry_multiplier: Strength of DRY, a penalty for tokens that continue a repetition of earlier text; 0 turns DRY off.
    dry_base: DRY: factor by which the penalty grows with each repeated token.
    dry_allowed_length: DRY: longest repetition without a penalty, in tokens.
    dry_penalty_last_n: DRY: number of recent tokens that are searched for repetitions; -1 for all, 0 turns DRY off.
    seed: Random seed of the sampler; unset: a new seed for each reply.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    seed: int | None = None


GREEDY: Final = Sampling(temperature=0.0)


class Settings(Sampling, frozen=True, kw_only=True):
    """All settings: keys of the settings file, and their help text in `/settings`.

    model: Model name or .gguf file; `auto`: the best installed model that fits and is fast enough; `route`: a small or
        a large model, chosen for each message by the table `[route]`.
    min_speed: Minimum decode speed, in tokens per second, of an automatically chosen model; 0 for no minimum.
    n_ctx: Context length in tokens, rounded up to a multiple of 256; unset: grows while memory is free, up to the
        training length. Above the training length, YaRN is used where the model allows it.
    budget: Memory budget, such as `4GB` or `1500MiB`; unset: the available memory.
    n_threads: Number of compute threads; unset: the fastest number, and fewer while other programs are busy.
    keep_alive: Seconds for which a model stays in memory after the last program that uses it has ended; 0: not at all;
        -1: until `edgechat engine stop`.
    gpu: Use a GPU if one passes the self-test.
    max_tokens: Maximum length of a reply in tokens; unset: limited by the context only.
    system_prompt: System prompt of new conversations.
    docs: Names of the collections of documents in which the answers are searched; `edgechat docs list` lists them.
    reasoning: Let reasoning models think before they reply; unset: only if this machine is fast enough.
    thinking: Limit of reasoning: `off`, `low`, `medium`, `high`, `auto` (20 seconds), `on` (no limit), tokens such as
        `500`, or seconds such as `30s`; unset: no limit, and `reasoning` turns reasoning on or off.
    thinking_end: Sentence that is added to the reasoning when its limit ends it; empty: none.
    stop_repetition: End reasoning, or a reply, that repeats the same passage over and over.
    prefix_cache: Save the KV cache of conversations on disk, so that their prompts need not be processed again.
    speculation: Speculative decoding: verify several draft tokens in one step. Faster; the replies do not change.
    draft_model: Model or heads that draft tokens for speculative decoding: a name or file; `auto`: heads of the model
        itself, installed heads, or a small installed model of its family; `off`: only the text is searched for drafts.
    strict: Reproducible replies: no caches or drafts, and always the same threads, so that a seed gives the same text.
    titles: Let the model write titles for new conversations while it is idle.
    offer_earlier: Offer the earlier reply if an earlier conversation began with nearly the same message.
    theme: Colour theme (`/theme` lists all); `auto`: dark or light like the terminal; `ansi-dark`: terminal colours.
    ascii: Use only ASCII characters for drawing; unset: only if neither the locale nor the terminal uses UTF-8.
    copy_on_select: Copy text when it is selected with the mouse.
    vim_keys: Also scroll conversations with j, k, g and G.
    figures: Show the speed below each reply.
    centered: Show conversations in the centre of a wide screen, also code; otherwise text is at the left.
    footer: Show the keys of the focused part of the screen below the input.
    remotes: Servers with an OpenAI-compatible API: tables `[remotes.NAME]` with `url`, `api_key_env` and `model`;
        `edgechat remotes add` adds one, and `-m NAME/MODEL` uses it.
    route: Two models and the choice between them: table `[route]` with `small`, `large`, and optionally `rules`,
        `min_logprob`, `dont_know` and `agree`; `model = "route"` or `-m route` uses it.
    keys: Key bindings: a table that maps actions to keys, such as `"chat.search" = "ctrl+f,f7"`; F1 lists all actions.
    """

    model: str = AUTO
    min_speed: float = 5.0
    n_ctx: int | None = None
    budget: str | None = None
    n_threads: int | None = None
    keep_alive: int = 300
    gpu: bool = True
    max_tokens: int | None = None
    system_prompt: str = ""
    docs: tuple[str, ...] = ()
    reasoning: bool | None = None
    thinking: str | int | None = None
    thinking_end: str = ""
    stop_repetition: bool = True
    prefix_cache: bool = True
    speculation: bool = True
    draft_model: str = AUTO
    strict: bool = False
    titles: bool = True
    offer_earlier: bool = True

    theme: str = AUTO
    ascii: bool | None = None
    copy_on_select: bool = False
    vim_keys: bool = False
    figures: bool = False
    centered: bool = False
    footer: bool = True
    remotes: dict[str, RemoteSettings] = {}
    route: dict[str, Any] = {}
    keys: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Replace another word for the values `off` and `auto` of `draft_model`."""
        # A file may contain the value false, which `check` accepts, instead of the word.
        word = _DRAFT_MODEL_WORDS.get(str(self.draft_model).strip().lower(), self.draft_model)
        if word != self.draft_model:
            msgspec.structs.force_setattr(self, "draft_model", word)

    @property
    def sampling(self) -> Sampling:
        return Sampling(**{name: getattr(self, name) for name in Sampling.__struct_fields__})


LOAD_SETTINGS: Final = frozenset((
    "model", "n_ctx", "budget", "n_threads", "keep_alive", "gpu", "prefix_cache", "speculation", "draft_model",
))  # fmt: skip
"""Settings that are used when a model is loaded, and not changed for a loaded one."""
BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "n_ctx": (16, 1 << 24), "min_speed": (0.0, 1e6), "n_threads": (1, 512), "keep_alive": (-1, 31_536_000),
    "max_tokens": (1, 1 << 24),
    "temperature": (0.0, 10.0), "top_k": (0, 1 << 20), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0), "top_n_sigma": (-1.0, 100.0), "xtc_probability": (0.0, 1.0), "xtc_threshold": (0.0, 1.0),
    "dynatemp_range": (0.0, 10.0), "dynatemp_exponent": (0.0, 10.0),
    "mirostat": (0, 2), "mirostat_tau": (0.0, 100.0), "mirostat_eta": (0.0, 1.0),
    "repeat_penalty": (0.1, 10.0), "presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0),
    "dry_multiplier": (0.0, 100.0), "dry_base": (1.0, 10.0), "dry_allowed_length": (0, 1 << 16),
    "dry_penalty_last_n": (-1, 1 << 16),
    "seed": (0, (1 << 32) - 1),
}  # fmt: skip
"""Inclusive bounds of numeric settings. llama.cpp rejects other values, or accepts them without a useful effect."""
_TYPE_NAMES: Final[dict[Any, str]] = {
    dict: "a table of actions and keys", tuple: "a list of names", bool: "true or false", int: "a whole number",
    float: "a number", str: "text",
}  # fmt: skip
# Maximum length of an invalid value in an error message.
_MAX_SHOWN_CHARS: Final = 60
_MIN_LONG_NUMBER: Final = 10**18

_SIZE_PATTERN: Final = re.compile(r"(?P<number>\d{1,18}(?:[.,]\d{1,9})?)\s*(?P<unit>[kmgt]?i?b?)")
_THINKING_PATTERN: Final = re.compile(r"on|off|low|medium|high|auto|\d{1,7}|\d{1,5}s")
_UNIT_FACTORS: Final = {
    "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "i": 1, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip
# Boolean words that environment variables accept in addition to true, false, 1 and 0.
_BOOLEANS: Final = {"yes": True, "on": True, "no": False, "off": False}


class SettingsProblem(msgspec.Struct, frozen=True):
    """Invalid setting, with the reason. The default of the setting is used instead."""

    location: str = msgspec.field(name="where")
    """Location of the setting: `config.toml: temperature`, `EDGECHAT_TOP_K`, or a file with a line number."""
    message: str
    """Clause whose subject is the location: `must be a number between 0 and 10, not "hot"`."""

    def __str__(self) -> str:
        """Format location and message as one sentence."""
        return f"{self.location} {self.message}"


def load(
    path: Path | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[Settings, list[SettingsProblem]]:
    """Load the settings file and the environment variables; return the settings and the problems that were found."""
    problems: list[SettingsProblem] = []
    values: dict[str, Any] = {}
    file = path or paths.config_file()
    for name, value in read_toml(file, problems).items():
        _add_setting(values, name, value, f"{file}: {name}", problems)
    for name in Settings.__struct_fields__:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            _add_setting(values, name, parse_value(name, environment[variable]), variable, problems)
    return Settings(**values), problems


def save(name: str, value: object, path: Path | None = None) -> None:
    """Write one setting to the settings file, or remove the setting if `value` is None. Raises SettingsError."""
    problem = check(name, value) if value is not None else ""
    if problem:
        raise SettingsError(f"{name} {problem}")

    def change(document: Any) -> None:
        if value is None:
            document.pop(name, None)
        else:
            document[name] = list(value) if isinstance(value, tuple) else value

    _change_file(change, path)


def save_remote(name: str, remote: RemoteSettings | None) -> None:
    """Write one remote to the settings file, or remove it if `remote` is None. Raises SettingsError."""

    def change(document: Any) -> None:
        remotes = document.get("remotes")
        if remote is not None:
            import tomlkit

            if remotes is None:
                document["remotes"] = remotes = tomlkit.table(is_super_table=True)
            remotes[name] = remote.to_table()
        elif remotes is not None:
            remotes.pop(name, None)
            if not remotes:
                document.pop("remotes")

    problem = check_remote(name, remote) if remote is not None else ""
    if problem:
        raise SettingsError(f"The remote {name} {problem}.")
    _change_file(change)


def _change_file(change: Callable[[Any], None], path: Path | None = None) -> None:
    """Apply `change` to the parsed settings file, which keeps its comments. Raises SettingsError."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    file = path or paths.config_file()
    try:
        text = files.read_bytes(file, files.MAX_TOML_BYTES).decode() if file.exists() else ""
        document = tomlkit.parse(text)
        change(document)
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(file.resolve(), tomlkit.dumps(document).encode())
    except (OSError, UnicodeDecodeError, TOMLKitError, TypeError, AttributeError) as error:
        raise SettingsError(f"Cannot change {file}: {format_reason(error)}; nothing was written.") from error


def with_overrides(settings: Settings, *layers: Mapping[str, object]) -> Settings:
    """Return a copy of `settings` with the values of `layers`; later layers override earlier ones.

    Unknown and invalid values are ignored. A value of `thinking` also overrides `reasoning` of earlier layers. No layer
    changes `remotes` and `route`: an imported conversation must not send messages to another server.
    """
    values = msgspec.structs.asdict(settings)
    for layer in layers:
        if layer.get("thinking") is not None:
            values["reasoning"] = None
        values |= {
            name: _freeze(value)
            for name, value in layer.items()
            if name not in {"remotes", "route"} and not check(name, value)
        }
    return Settings(**values)


def _freeze(value: object) -> object:
    """Return a list from a TOML or JSON file as a tuple, and another value unchanged."""
    return tuple(value) if isinstance(value, list) else value


def check(name: str, value: object) -> str:
    """Return the reason why `value` is invalid for the setting `name`, as a clause; "" if it is valid.

    For an invalid number, the reason has the form `must be a number between 0 and 10, not 11`.
    """
    types = setting_types()
    if name not in types:
        return f"is not a setting; {_suggest_name(name)}"
    if name == "remotes":
        return next((f"{key}: {text}".lstrip(": ") for key, text in parse_remotes(value)[1].items()), "")
    if name == "route" and value:
        from edgechat.route_settings import parse_route

        return parse_route(value)[1]
    if name == "draft_model" and value is False:
        return ""
    low, high = BOUNDS.get(name, (-math.inf, math.inf))
    try:
        parsed_value = msgspec.convert(value, types[name])
    except msgspec.ValidationError:
        is_valid = False
    else:
        is_size = name == "budget" and isinstance(parsed_value, str)
        is_number = isinstance(parsed_value, (int, float)) and name in BOUNDS
        is_valid = bool(parse_size(parsed_value)) if is_size else not is_number or low <= parsed_value <= high
        if name == "thinking" and parsed_value is not None:
            is_valid = _THINKING_PATTERN.fullmatch(str(parsed_value)) is not None
        if name == "draft_model":
            is_valid = bool(str(parsed_value).strip())
    is_fraction = isinstance(value, float) and float not in (types[name], *get_args(types[name]))
    shown_value = repr(value) if is_fraction else _format_invalid_value(value)
    return "" if is_valid else f"must be {describe_valid_values(name)}, not {shown_value}"


def describe_valid_values(name: str) -> str:
    """Describe the values that a setting accepts, such as `a number between 0 and 10`."""
    if name == "budget":
        return "a size such as 4GB, 1500MiB or 900000000"
    if name == "thinking":
        return (
            "on, off, low, medium, high, auto, a number of tokens up to 9,999,999 such as 500, or a time in seconds "
            "such as 30s"
        )
    if name == "draft_model":
        return "auto, off, or the name or file of a draft model or of heads"
    if name == "remotes":
        return "a table of remotes, such as [remotes.box] with a url"
    if name == "route":
        return "a table such as [route] with small and large"
    setting_type = setting_types()[name]
    types = (setting_type, get_origin(setting_type), *get_args(setting_type))
    text = next(text for value_type, text in _TYPE_NAMES.items() if value_type in types)
    if name in BOUNDS:
        low, high = BOUNDS[name]
        text += f" between {low:,.10g} and {high:,.10g}"
    return text


def _suggest_name(name: str) -> str:
    import difflib

    similar_names = difflib.get_close_matches(name.lower(), setting_types(), n=1)
    return f"did you mean {similar_names[0]}?" if similar_names else "`edgechat config show` lists all settings"


def _format_invalid_value(value: object) -> str:
    """Format an invalid value from a settings file, variable or flag for an error message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if abs(value) < _MIN_LONG_NUMBER else "a number of 19 digits or more"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, str):
        return repr(shorten(value, _MAX_SHOWN_CHARS))
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    return shorten(str(value), _MAX_SHOWN_CHARS)


@functools.cache
def setting_types() -> dict[str, Any]:
    """Return the type of each setting. The result is cached, because evaluating the annotations is slow."""
    return get_type_hints(Settings)


def describe_settings() -> dict[str, str]:
    """Return the help text of each setting, from the docstrings of the classes: packages may have no source files."""
    import inspect

    docstrings = [inspect.cleandoc(str(settings_class.__doc__)) for settings_class in (Settings, Sampling)]
    lines = "\n".join(docstrings).replace("\n    ", " ")
    return dict(re.findall(r"^(\w+): (.+)$", lines, re.MULTILINE))


def parse_size(text: str) -> int | None:
    """Parse a size such as `4GB` (decimal) or `1.5 GiB` (binary). Returns bytes, or None for an invalid size."""
    match = _SIZE_PATTERN.fullmatch(text.strip().lower())
    if match is None:
        return None
    factor = _UNIT_FACTORS[(match["unit"] or "b").replace("ib", "i").rstrip("b") or "b"]
    n_bytes = float(match["number"].replace(",", ".")) * factor
    return int(n_bytes) if 1 <= n_bytes < 1 << 60 else None


def parse_value(name: str, text: str) -> object:
    """Convert the text of a flag or environment variable to the setting's type; return an invalid text unchanged.

    Commas separate the names of a list.
    """
    setting_type = setting_types().get(name, str)
    if setting_type is str:
        return text
    if get_origin(setting_type) is tuple:
        return tuple(name for name in (part.strip() for part in text.split(",")) if name)
    if bool in (setting_type, *get_args(setting_type)) and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        return msgspec.convert(text, setting_type, strict=False)
    except msgspec.ValidationError:
        return text


def read_toml(path: Path, problems: list[SettingsProblem]) -> dict[str, Any]:
    """Parse a TOML file. Returns {} if the file is missing or invalid; adds a problem if it is invalid."""
    if not os.path.lexists(path):  # the usual case; returning here avoids importing a TOML parser
        return {}
    try:
        values = files.read_toml(path)
        if isinstance(budget := values.get("budget"), int) and not isinstance(budget, bool):
            values["budget"] = str(budget)
        return values
    except InvalidFileError as error:
        problems.append(SettingsProblem(error.location, error.reason))
        return {}


def _add_setting(
    values: dict[str, Any], name: str, value: object, location: str, problems: list[SettingsProblem]
) -> None:
    """Add a setting to `values` if it is valid; otherwise add a problem to `problems`."""
    if name == "keys" and isinstance(value, dict):  # one invalid key binding must not discard the others
        invalid_keys = {k: v for k, v in value.items() if not isinstance(v, str)}
        problems += [
            SettingsProblem(
                f"{location}.{k}", f'must be a text with keys, such as "ctrl+f,f7", not {_format_invalid_value(v)}'
            )
            for k, v in invalid_keys.items()
        ]
        value = {k: v for k, v in value.items() if k not in invalid_keys}
    if name == "remotes":  # one invalid remote must not discard the others
        values[name], invalid_remotes = parse_remotes(value)
        problems += [SettingsProblem(f"{location}.{k}".rstrip("."), text) for k, text in invalid_remotes.items()]
        return
    problem = check(name, value)
    if problem:
        problems.append(SettingsProblem(location, problem))
    else:
        values[name] = _freeze(value)
