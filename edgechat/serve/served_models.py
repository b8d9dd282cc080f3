"""Served models by name, and the choice of the model that answers a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from edgechat.errors import UsageError
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelKind, ModelQueue

LATEST_TAG: Final = ":latest"
"""Tag that clients of Ollama add to names without a tag."""


class ServedModels:
    """The served models. All dialects find them here, by their names and aliases.

    Letter case and the tag `latest` make no difference. Many programs have a fixed model name, such as `gpt-4o`. So a
    name that is not served means the only served model of the kind that the request needs, unless `is_strict` is set
    or there are several such models.
    """

    def __init__(
        self, queues: Sequence[ModelQueue], aliases: Mapping[str, str] | None = None, *, is_strict: bool = False
    ) -> None:  # fmt: skip
        """Create the table of names; `aliases` has the name of a model by alias. Raises UsageError for wrong ones."""
        self.queues = list(queues)
        self._is_strict = is_strict
        self._queue_by_name = {queue.name: queue for queue in queues}
        for alias, name in (aliases or {}).items():
            if name not in {queue.name for queue in queues}:
                names = ", ".join(queue.name for queue in queues)
                raise UsageError(f"--alias {alias}: no model {name!r} is served. Served models: {names}.")
            if self.find_exact(alias) is not None:
                raise UsageError(f"--alias {alias}: a served model has this name. Choose another alias.")
            self._queue_by_name[alias] = self._queue_by_name[name]
            self._queue_by_name[alias].aliases.append(alias)

    @property
    def names(self) -> list[str]:
        """Names of all models in the order in which they were given, then their aliases."""
        return list(self._queue_by_name)

    def items(self) -> list[tuple[str, ModelQueue]]:
        """Return each name and alias with its model."""
        return list(self._queue_by_name.items())

    def find_exact(self, name: str) -> ModelQueue | None:
        """Return the model that has this name or alias; None for none."""
        full_name = find_name(name, self._queue_by_name)
        return None if full_name is None else self._queue_by_name[full_name]

    def find(self, name: str | None, kind: ModelKind) -> ModelQueue | None:
        """Return the model for a request that needs a model of this kind.

        Without a name, this is the first model of the kind. A model with the name is returned even if it has another
        kind, so that the caller can report that. None if the name is not served and another model must not answer.
        """
        models_of_kind = [queue for queue in self.queues if queue.kind == kind]
        if not name:
            return (models_of_kind or self.queues)[0]
        queue = self.find_exact(name)
        if queue is None and not self._is_strict and len(models_of_kind) == 1:
            return models_of_kind[0]
        return queue

    def get(self, name: str | None, kind: ModelKind) -> ModelQueue:
        """Return the model for a request, as `find` does. Raises ApiError (404) if there is none."""
        queue = self.find(name, kind)
        if queue is None:
            raise self.make_unknown_error(name or "")
        return queue

    def make_unknown_error(self, name: str) -> ApiError:
        """Build the error for a name that is not served. It lists the names."""
        message = f"Model {name!r} is not served. Available models: {', '.join(self.names)}."
        return ApiError(404, message, param="model", code="model_not_found")


def find_name(name: str, names: Mapping[str, object]) -> str | None:
    """Return which of `names` a request means: letter case and the tag `latest` make no difference; None for none."""
    if not name or name in names:
        return name or None
    folded_name = name.removesuffix(LATEST_TAG).casefold()
    return next((n for n in names if n.removesuffix(LATEST_TAG).casefold() == folded_name), None)


def parse_aliases(values: Sequence[str], queues: Sequence[ModelQueue]) -> dict[str, str]:
    """Parse values of `--alias` to the name of a model by alias. Raises UsageError.

    A value is `ALIAS` for the first model or `MODEL=ALIAS`, where several aliases are separated by commas.
    """
    names: dict[str, str] = {}
    for value in values:
        model, separator, aliases = value.partition("=")
        if not separator:
            model, aliases = queues[0].name, value
        for alias in aliases.split(","):
            if not alias.strip():
                raise UsageError(f"--alias {value!r} has an empty name. Example: --alias gpt-4o")
            if names.setdefault(alias.strip(), model.strip()) != model.strip():
                raise UsageError(f"--alias: {alias.strip()!r} is given for two models. Choose another alias.")
    return names
