"""Choice of the model drafter for a model: heads in its own file, heads in another file, or a small model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

import edgechat
from edgechat import paths
from edgechat.catalogue import curated, library, resolve
from edgechat.catalogue.library import InstalledModel
from edgechat.config import AUTO, OFF, Settings
from edgechat.errors import CatalogueError, EdgechatError, ModelFileError
from edgechat.files import JsonFile
from edgechat.humanize import format_size
from edgechat.modelfile.checks import check_header
from edgechat.modelfile.content_hash import read_stamp
from edgechat.modelfile.draft_check import find_draft_problem, find_kind_problem
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.heads import read_heads
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.drafter_choice import NO_DRAFTER, DrafterChoice
from edgechat.planner.drafter_plan import DrafterKind
from edgechat.planner.ranking import Candidate
from edgechat.runtime import drafter_crashes

MIN_SIZE_RATIO: Final = 3
"""How many times smaller than its target a draft model must be to be chosen automatically, in bytes per token."""
# Targets with fewer bytes are not searched for draft models: the smallest model of the catalogue has 98 MB.
_MIN_TARGET_BYTES: Final = 250_000_000
# Maximum number of installed models whose vocabulary is compared with that of the target.
_MAX_COMPARED_MODELS: Final = 4
_FILE_KINDS: Final = ("model", "heads")
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_SAVED_CHECKS: Final = 1000


def choose_drafter(
    target: ModelProfile, settings: Settings, installed_models: Iterable[InstalledModel] | None = None
) -> DrafterChoice:
    """Return the drafter for the model `target`, or the reason why there is none.

    If a named model does not exist or does not fit, returns the heads of the target itself, or no drafter, with the
    reason in `DrafterChoice.refusal`. It is no error, because each model can decode without it: a chat may load models
    of several vocabularies with one setting. `installed_models` defaults to the result of `library.scan`, which is
    called only if needed. Raises ModelFileError if the file of `target` cannot be read.
    """
    if target.is_embedding:
        return DrafterChoice(reason="an embedding model generates no text")
    if settings.strict or not settings.speculation:
        return DrafterChoice(reason="speculative decoding is off")
    if settings.draft_model == OFF:
        return DrafterChoice(reason="turned off by the user")
    if settings.draft_model != AUTO:
        try:
            choice = _choose_named_drafter(target, settings.draft_model)
        except EdgechatError as error:
            choice = DrafterChoice(reason=str(error).rstrip("."))
        own_heads = find_own_heads(target)
        if choice.kind is not None:
            return msgspec.structs.replace(choice, fallback=own_heads)
        return msgspec.structs.replace(own_heads or choice, refusal=choice.reason)
    return _choose_drafter_automatically(target, installed_models)


def add_drafters(
    candidates: Sequence[Candidate], settings: Settings, installed_models: Iterable[InstalledModel] | None = None
) -> list[Candidate]:
    """Return candidates with the drafters that a load would choose, or the reasons why they have none."""
    new_candidates = []
    models = list(installed_models) if installed_models is not None else None
    for candidate in candidates:
        is_file = os.path.exists(candidate.profile.path)  # noqa: PTH110  (Path.exists raises OSError for long names)
        if not is_file and candidate.profile.heads is None:
            new_candidates.append(candidate)
            continue
        try:
            drafter = choose_drafter(candidate.profile, settings, models)
        except EdgechatError as error:
            drafter = DrafterChoice(reason=str(error))
        new_candidates.append(msgspec.structs.replace(candidate, drafter=drafter))
    return new_candidates


def add_own_heads(candidate: Candidate, settings: Settings) -> Candidate:
    """Return a candidate with the heads in its own file as its drafter, if `auto` would use them; reads no files."""
    heads = candidate.profile.heads
    if candidate.drafter is not NO_DRAFTER or heads is None or heads.problem or settings.draft_model != AUTO:
        return candidate
    return msgspec.structs.replace(candidate, drafter=choose_drafter(candidate.profile, settings, ()))


def find_draft_file(name: str) -> Path:
    """Return the absolute path of the draft model or heads with this name. Raises EdgechatError."""
    path = resolve.find_model(name, _FILE_KINDS).absolute()
    if not os.path.exists(path):  # noqa: PTH110  (Path.exists raises OSError for long names)
        raise ModelFileError(
            f"{path} does not exist. Correct its name, or download it again with `edgechat models pull`; "
            "`edgechat models list` shows the installed models and heads."
        )
    return path


def check_draft_file(name: str) -> None:
    """Raise EdgechatError unless `name` is a draft model or heads that can draft for a model."""
    path = find_draft_file(name)
    header = read_header(path)
    check_header(header)
    if problem := find_kind_problem(header):
        raise ModelFileError(f"{library.find_display_name(path)} cannot draft for a model: it {problem}.")


def find_named_problem(target: ModelProfile, name: str) -> str:
    """Return why a named draft model or heads cannot be used with the target, as a clause; "" if they can.

    Crashes of the engine with both are not considered.
    """
    try:
        return _find_pair_problem(target, find_draft_file(name))
    except EdgechatError as error:
        return str(error).rstrip(".")


def _choose_named_drafter(target: ModelProfile, name: str) -> DrafterChoice:
    path = find_draft_file(name)
    if problem := _find_pair_problem(target, path):
        return DrafterChoice(reason=problem)
    if _is_same_file(path, Path(target.path)):
        return _make_own_heads_choice(target, is_required=True)
    header, label = read_header(path), library.find_display_name(path)
    if crash := _describe_crash(target, _find_kind(header), str(path)):
        return DrafterChoice(reason=f"{label} is not used with {Path(target.path).name}: {crash}")
    return DrafterChoice(
        kind=_find_kind(header), name=label, profile=ModelProfile.from_header(header), is_required=True,
        reason="chosen by the user",
    )  # fmt: skip


def _find_pair_problem(target: ModelProfile, path: Path) -> str:
    """Return why a file cannot draft for the target, as a clause; "" if it can. Raises EdgechatError for a bad file."""
    label = library.find_display_name(path)
    if not _is_same_file(path, Path(target.path)):
        problem = _find_draft_problem(path, target)
        return f"{label} cannot draft for {Path(target.path).name}: it {problem}" if problem else ""
    if problem := _find_own_heads_problem(target):
        return f"{label} is the model itself, and {problem}"
    return "" if target.heads is not None else (
        f"{label} is the model itself, whose drafts take as long as its own tokens"
    )  # fmt: skip


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them does not exist
        return path == other


def _find_own_heads_problem(target: ModelProfile) -> str:
    """Return why the heads in the target's own file cannot be used, as a clause; "" if they can, or without heads."""
    if target.heads is None:
        return ""
    if crash := _describe_crash(target, "mtp"):
        return f"its MTP heads are not used: {crash}"
    return f"its file {target.heads.problem}" if target.heads.problem else ""


def find_own_heads(target: ModelProfile) -> DrafterChoice | None:
    """Return the heads in the target's own file as its drafter; None if it has none that can be used."""
    if target.heads is None or _find_own_heads_problem(target):
        return None
    return _make_own_heads_choice(target, is_required=False)


def _make_own_heads_choice(target: ModelProfile, *, is_required: bool) -> DrafterChoice:
    return DrafterChoice(
        kind="mtp", name="the MTP heads", profile=target, is_required=is_required, reason="in the file of the model"
    )


def _describe_crash(target: ModelProfile, kind: DrafterKind, draft_path: str = "") -> str:
    """Return how the engine died with a drafter and this target, as a clause; "" if it did not."""
    cause = drafter_crashes.find_crash(target.path, kind, draft_path)
    return f"the engine died with {cause} in it; `edgechat doctor --retest` lets it try again" if cause else ""


def _find_kind(header: ModelHeader) -> DrafterKind:
    return {"eagle3": "eagle3", "gemma4-assistant": "assistant"}.get(header.architecture, "draft-model")  # type: ignore[return-value]


def _choose_drafter_automatically(
    target: ModelProfile, installed_models: Iterable[InstalledModel] | None
) -> DrafterChoice:
    if (own_heads := find_own_heads(target)) is not None:
        return own_heads
    heads_problem = _find_own_heads_problem(target)
    note = f"; {heads_problem}" if heads_problem else ""
    target_bytes = _count_bytes_per_token(target)
    if target_bytes < _MIN_TARGET_BYTES:
        return DrafterChoice(reason=f"the model is too small to have a draft model{note}")
    try:
        models = list(library.scan() if installed_models is None else installed_models)
    except CatalogueError:  # the list of models is damaged, which other commands report
        models = []
    return (
        _find_heads(target, models)
        or _find_draft_model(target, target_bytes, models)
        or DrafterChoice(
            reason="no installed heads or models fit: a draft model must be of the same family, have the same "
            f"vocabulary, and be at least {MIN_SIZE_RATIO} times smaller{note}"
        )
    )


def _find_heads(target: ModelProfile, models: Iterable[InstalledModel]) -> DrafterChoice | None:
    """Return an installed file of heads that fits the target and names its vocabulary; None if there is none."""
    candidates = [m for m in models if m.facts.kind == "heads" and not m.facts.problem]
    if not candidates:
        return None
    target_header = read_header(Path(target.path))
    for model in sorted(candidates, key=lambda m: m.facts.size_bytes):
        try:
            header = read_header(model.path)
            check_header(header)
            heads = read_heads(header)
            is_for_vocabulary = heads is not None and heads.n_vocab == target.n_vocab
            fits = is_for_vocabulary and not find_draft_problem(header, target_header)
        except EdgechatError:  # the file was changed or deleted after the scan
            continue
        if heads is not None and fits and not _describe_crash(target, _find_kind(header), str(model.path)):
            return DrafterChoice(
                kind=_find_kind(header), name=model.name, profile=ModelProfile.from_header(header),
                reason=f"an installed {heads.label} that fits the model",
            )  # fmt: skip
    return None


def _find_draft_model(
    target: ModelProfile, target_bytes: int, models: Iterable[InstalledModel]
) -> DrafterChoice | None:
    """Return the smallest installed model that can draft for the target; None if there is none."""
    family = _find_family(target, models)
    candidates = [
        m for m in models
        if m.is_usable and m.facts.purpose == "chat" and m.facts.size_bytes * MIN_SIZE_RATIO <= target_bytes
        and (m.facts.architecture == target.architecture or (family and _find_model_family(m) == family))
    ]  # fmt: skip
    for model in sorted(candidates, key=lambda m: m.facts.size_bytes)[:_MAX_COMPARED_MODELS]:
        try:
            if _describe_crash(target, "draft-model", str(model.path)):
                continue
            if _find_draft_problem(model.path, target):
                continue
            header = read_header(model.path)
        except EdgechatError:
            continue
        ratio = target_bytes / max(1, model.facts.size_bytes)
        return DrafterChoice(
            kind="draft-model", name=model.name, profile=ModelProfile.from_header(header),
            reason=f"an installed model with the same vocabulary, {ratio:.0f} times smaller "
            f"({format_size(model.facts.size_bytes)})",
        )  # fmt: skip
    return None


def _find_family(target: ModelProfile, models: Iterable[InstalledModel]) -> str:
    """Return the family of a target in the catalogue; "" if it is unknown."""
    path = Path(target.path)
    installed_model = next((m for m in models if path in (m.path, *m.other_paths)), None)
    if installed_model is not None:
        return _find_model_family(installed_model)
    model = curated.guess_model("", path.name)
    return model.family if model is not None else ""


def _find_model_family(model: InstalledModel) -> str:
    catalogue_model = curated.guess_model(model.repo, model.facts.name, model.path.name)
    return catalogue_model.family if catalogue_model is not None else ""


def _count_bytes_per_token(profile: ModelProfile) -> int:
    """Return the size of the weights that one token uses, in bytes: fewer than all in a mixture of experts."""
    if not profile.n_experts or not profile.n_experts_used:
        return profile.loaded_bytes
    expert_bytes = sum(t.size_bytes for t in profile.loaded_tensors if "_exps." in t.name)
    n_used = min(profile.n_experts_used, profile.n_experts)
    return profile.loaded_bytes - expert_bytes + expert_bytes * n_used // profile.n_experts


def _find_draft_problem(path: Path, target: ModelProfile) -> str:
    """Return why a file cannot draft for the target, as a predicate; "" if it can. Raises EdgechatError for a bad file.

    The result is saved for this version of edgechat, because the check reads vocabularies.
    """
    file = JsonFile(paths.cache_dir() / "draft-models.json", dict[str, str], max_bytes=_MAX_FILE_BYTES)
    results = file.read() or {}
    target_path, path = Path(target.path), path.absolute()
    stamps = f"{edgechat.__version__} {target_path} {read_stamp(target_path)} {path} {read_stamp(path)}"
    key = hashlib.sha256(stamps.encode(errors="surrogateescape")).hexdigest()[:32]
    if key not in results:
        header = read_header(path)
        check_header(header)
        problem = find_draft_problem(header, read_header(target_path))
        results = dict([*results.items(), (key, problem)][-_MAX_SAVED_CHECKS:])
        file.save(results)
    return results[key]
