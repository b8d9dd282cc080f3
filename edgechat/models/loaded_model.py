"""A loaded model with its engine process, chat template and load plan."""

from __future__ import annotations

from pathlib import Path

from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.engine.engine_process import EXIT_TIMEOUT_S
from edgechat.errors import ComputeError, EdgechatError, EngineDiedError, EngineError, ModelCrashError, ModelFileError
from edgechat.modelfile.checks import check_header
from edgechat.modelfile.split import read_header
from edgechat.modelfile.vocabulary import check_vocabulary
from edgechat.models.events import LoadCallback
from edgechat.models.load_records import (
    find_load_warnings,
    prepare_unload,
    record_memory_kill,
    register_loaded_model,
)
from edgechat.models.sharing import open_model, replace_engine
from edgechat.planner.load_plan import LoadPlan
from edgechat.process import KILL_SIGNAL
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.renderer import Renderer
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.thinking import is_thinking_on


class LoadedModel:
    """Owner of the processes of one loaded model. `open` loads or replaces the model; `close` ends the processes."""

    def __init__(self, client_name: str = "chat", renderer: Renderer | None = None) -> None:
        self.client_name = client_name
        """Command of this client, which `edgechat engine status` shows."""
        self.engine = EngineClient()
        self.plan: LoadPlan | None = None
        self.model_properties: protocol.Loaded | None = None
        """The engine's response to the last load. It remains valid while the engine is restarted after a crash."""
        self.warnings: list[str] = []
        """Warnings of all loads so far, which are shown to the user."""
        self._settings = Settings()
        self._needs_new_plan = False
        """True if the current plan used more memory than the system had."""
        self._builder: PromptBuilder | None = None
        self._renderer = renderer or Renderer()

    @property
    def builder(self) -> PromptBuilder:
        """Prompt builder for the loaded model. Raises EngineError if no model is loaded."""
        if self._builder is None:
            raise EngineError("No model is loaded yet.")
        return self._builder

    @property
    def is_open(self) -> bool:
        """True if a model has been loaded."""
        return self._builder is not None

    def open(
        self,
        path: Path,
        settings: Settings,
        on_event: LoadCallback = lambda event: None,
        *,
        allow_embedding: bool = False,
    ) -> protocol.Loaded:
        """Check a model file, then plan and load it in place of the current model. Raises EdgechatError.

        Without `allow_embedding`, raises ModelFileError for an embedding model and keeps the current model loaded.
        """
        header = read_header(path.absolute())  # other clients of a shared engine have other current directories
        if header.is_embedding and not allow_embedding:
            kind = "a reranker" if header.is_reranker else "an embedding model"
            raise ModelFileError(f"{path.name} is {kind} and cannot chat. Serve it with `edgechat serve -m`.")
        if header.kind == "heads":
            raise ModelFileError(
                f"{path.name} contains only heads that draft tokens for another model. Load that model, and use this "
                "file with --draft-model."
            )
        check_header(header)
        self._settings = settings
        prepare_unload(self.engine, self.plan)
        try:
            self.plan, model_properties, warnings = open_model(
                self.engine, header, settings, on_event, lambda: self._renderer.prepare(header.chat_template),
                self.client_name, self._replace_engine,
            )  # fmt: skip
        except ModelCrashError:
            check_vocabulary(header)  # raises a clearer error if the vocabulary is the cause
            raise
        self.warnings += warnings + find_load_warnings(settings, path, model_properties, self.plan)
        self.set_model_properties(model_properties)
        return model_properties

    def set_model_properties(self, model_properties: protocol.Loaded) -> None:
        """Save the engine's response to a load, and create the prompt builder for the loaded model."""
        self.model_properties = model_properties
        self._needs_new_plan = False
        self._builder = PromptBuilder(self.engine, self._renderer, model_properties)
        if not model_properties.is_embedding:
            settings = self._settings
            think = is_thinking_on(reasoning=settings.reasoning, thinking=settings.thinking, decode_tps=None)
            self._builder.formats.prepare(PromptOptions(bool(think)))

    def restart_if_dead(self) -> None:
        """Restart the engine and load the model again if the engine died. Raises EdgechatError.

        If the system killed the engine because of its memory use, the model is loaded with a new plan, which may use
        less memory.
        """
        if not self.engine.needs_restart:
            return
        if self.engine.is_shared:
            self.engine.restart_if_dead()  # calls `_replace_engine`
            return
        if self.plan is not None and record_memory_kill(self.engine, self.plan):
            self._needs_new_plan = True
        if self.plan is not None and self._needs_new_plan:
            from edgechat.models.loading import reload_model

            self.plan, model_properties = reload_model(self.engine, self.plan, self._settings)
            self.set_model_properties(model_properties)
        else:
            self.engine.restart_if_dead()
            register_loaded_model(self.engine, self.plan)

    def _replace_engine(self) -> None:
        """Replace a shared engine that has ended. Raises EdgechatError."""
        if self.plan is not None:
            self.plan, model_properties, _ = replace_engine(self.engine, self.plan, self._settings)
            self.set_model_properties(model_properties)

    def fall_back_to_cpu(self, error: EngineError, settings: Settings) -> bool:
        """Load the model on the CPU if `error` is a GPU failure; return whether the model was loaded again."""
        is_crash = isinstance(error, EngineDiedError) and error.code is not None and error.code != -KILL_SIGNAL
        failed_plan = self.plan
        if failed_plan is None or not failed_plan.options.uses_gpu or not (is_crash or isinstance(error, ComputeError)):
            return False
        from edgechat.models.loading import reload_model

        try:
            if self.engine.is_shared:  # other clients may use it
                self.engine.leave(None)
            self.plan, model_properties = reload_model(self.engine, failed_plan, settings, ())
        except EdgechatError:  # the caller reports the GPU failure
            return False
        self.set_model_properties(model_properties)
        return True

    def unload(self) -> None:
        """Leave the engine, and free its memory if no other client uses it. `open` loads a model again."""
        prepare_unload(self.engine, self.plan)
        self.engine.leave(None)
        self.plan = self.model_properties = self._builder = None

    def close(self, timeout_s: float = EXIT_TIMEOUT_S) -> None:
        """End the engine process and the render process; requests in progress raise EngineDiedError.

        The engine process is killed after `timeout_s`. A shared engine is only left.
        """
        prepare_unload(self.engine, self.plan)
        self.engine.close(timeout_s)
        self._renderer.close()
