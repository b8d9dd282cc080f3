"""A model that is loaded, and all that it takes to ask it: its engine, its chat template, its plan."""

from __future__ import annotations

from pathlib import Path

from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import KILLED, EngineClient
from edgechat.errors import ComputeError, EdgechatError, EngineDiedError, EngineError, ModelFileError
from edgechat.modelfile.split import read_header
from edgechat.models.loading import LoadCallback, announce_loaded, load_model, load_warnings, load_without_gpu, unload
from edgechat.planner.plan import LoadPlan
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.renderer import Renderer


class LoadedModel:
    """One model at a time; `open` it, `close` it at the end. Its processes start when they are needed."""

    def __init__(self) -> None:
        self.engine = EngineClient()
        self.plan: LoadPlan | None = None
        self.loaded: protocol.Loaded | None = None
        """What the engine said of it the last time; it stays while a dead engine is replaced."""
        self.warnings: list[str] = []
        """What is not as the user may think."""
        self._builder: PromptBuilder | None = None
        self._renderer = Renderer()

    @property
    def builder(self) -> PromptBuilder:
        """What makes prompts for it. Raises EngineError if nothing is loaded."""
        if self._builder is None:
            raise EngineError("no model is loaded yet")
        return self._builder

    @property
    def is_open(self) -> bool:
        """True once a model was loaded."""
        return self._builder is not None

    def open(
        self, path: Path, settings: Settings, listen: LoadCallback = lambda event: None, *, may_embed: bool = False
    ) -> protocol.Loaded:
        """Check a model file, plan, and load it in place of what was there. Raises EdgechatError.

        A model that makes vectors instead of texts is refused unless `may_embed`; what was there stays then.
        """
        header = read_header(path)
        if header.is_embedding and not may_embed:
            raise ModelFileError(
                f"{path.name} makes vectors of texts, it cannot chat; `edgechat serve -m` offers it to other programs"
            )
        unload(self.engine, self.plan)
        self.plan, loaded, said = load_model(self.engine, header, settings, listen, self._renderer.start)
        self.warnings += said + load_warnings(settings, path, loaded)
        self.set_loaded(loaded)
        return loaded

    def set_loaded(self, loaded: protocol.Loaded) -> None:
        """Make prompts for what the engine has loaded."""
        self.loaded = loaded
        self._builder = PromptBuilder(self.engine, self._renderer, loaded)

    def revive(self) -> None:
        """Load the model again if its engine died. Raises EdgechatError."""
        if self.engine.needs_restart:
            self.engine.restart_if_dead()
            announce_loaded(self.engine, self.plan)

    def fall_back_to_cpu(self, error: EngineError, settings: Settings) -> bool:
        """Let the CPU compute from here on, if it was a GPU that failed; True if it does."""
        crashed = isinstance(error, EngineDiedError) and error.code is not None and error.code != -KILLED
        failed = self.plan
        if failed is None or not failed.options.n_gpu_layers or not (crashed or isinstance(error, ComputeError)):
            return False
        try:
            self.plan, loaded = load_without_gpu(self.engine, failed, settings)
        except EdgechatError:  # what went wrong first is what is to be said
            return False
        self.set_loaded(loaded)
        return True

    def close(self) -> None:
        """End the processes; who hears an answer gets EngineDiedError."""
        unload(self.engine, self.plan)
        self.engine.close()
        self._renderer.close()
