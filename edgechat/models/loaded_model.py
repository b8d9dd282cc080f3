"""A loaded model: its engine process, its chat template, and its load plan."""

from __future__ import annotations

from pathlib import Path

from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import KILL_SIGNAL, EngineClient
from edgechat.errors import ComputeError, EdgechatError, EngineDiedError, EngineError, ModelFileError
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models.events import LoadCallback
from edgechat.models.loading import announce_loaded, load_model, load_warnings, load_without_gpu, unload
from edgechat.planner.load_plan import LoadPlan
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.renderer import Renderer


class LoadedModel:
    """Owner of at most one loaded model. `open` loads or replaces the model, `close` ends its processes."""

    def __init__(self) -> None:
        self.engine = EngineClient()
        self.plan: LoadPlan | None = None
        self.loaded: protocol.Loaded | None = None
        """The engine's response to the last load, which stays valid while an engine that died is restarted."""
        self.warnings: list[str] = []
        """Warnings of all loads so far, for display."""
        self._builder: PromptBuilder | None = None
        self._renderer = Renderer()

    @property
    def builder(self) -> PromptBuilder:
        """Prompt builder for the loaded model. Raises EngineError if no model is loaded."""
        if self._builder is None:
            raise EngineError("No model is loaded yet.")
        return self._builder

    @property
    def is_open(self) -> bool:
        """True after a model was loaded."""
        return self._builder is not None

    def open(
        self, path: Path, settings: Settings, on_event: LoadCallback = lambda event: None, *, may_embed: bool = False
    ) -> protocol.Loaded:
        """Check a model file, then plan and load it in place of the current model. Raises EdgechatError.

        Without `may_embed`, an embedding model is refused, and the current model stays loaded.
        """
        header = read_header(path)
        if header.is_embedding and not may_embed:
            raise ModelFileError(
                f"{path.name} is an embedding model and cannot chat. `edgechat serve -m` offers it over HTTP."
            )
        profile = ModelProfile.from_header(header)
        unload(self.engine, self.plan)
        self.plan, loaded, warnings = load_model(self.engine, profile, settings, on_event, self._renderer.start)
        self.warnings += warnings + load_warnings(settings, path, loaded)
        self.set_loaded(loaded)
        return loaded

    def set_loaded(self, loaded: protocol.Loaded) -> None:
        """Create the prompt builder for the model that the engine has loaded."""
        self.loaded = loaded
        self._builder = PromptBuilder(self.engine, self._renderer, loaded)

    def revive(self) -> None:
        """Load the model again if its engine died. Raises EdgechatError."""
        if self.engine.needs_restart:
            self.engine.restart_if_dead()
            announce_loaded(self.engine, self.plan)

    def fall_back_to_cpu(self, error: EngineError, settings: Settings) -> bool:
        """Load the model again without a GPU if `error` is a failure of the GPU. Returns True on success."""
        crashed = isinstance(error, EngineDiedError) and error.code is not None and error.code != -KILL_SIGNAL
        failed = self.plan
        if failed is None or not failed.options.n_gpu_layers or not (crashed or isinstance(error, ComputeError)):
            return False
        try:
            self.plan, loaded = load_without_gpu(self.engine, failed, settings)
        except EdgechatError:  # the caller reports the first error
            return False
        self.set_loaded(loaded)
        return True

    def close(self) -> None:
        """End the engine and render processes; a request in progress raises EngineDiedError."""
        unload(self.engine, self.plan)
        self.engine.close()
        self._renderer.close()
