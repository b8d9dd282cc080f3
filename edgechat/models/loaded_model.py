"""A loaded model with its engine process, chat template and load plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgechat.config import Settings
from edgechat.engine import protocol, resident_client
from edgechat.engine.client import EngineClient
from edgechat.engine.engine_process import EXIT_TIMEOUT_S
from edgechat.engine.generation import DrafterState
from edgechat.engine.resumption import RequestRecord
from edgechat.errors import (
    ContextOverflowError,
    EdgechatError,
    EngineError,
    ModelCrashError,
    ModelFileError,
    PlanError,
)
from edgechat.modelfile.checks import check_header
from edgechat.modelfile.split import read_header
from edgechat.modelfile.vocabulary import check_vocabulary
from edgechat.models.events import CpuFallback, LoadCallback, ModelLoadProgressed
from edgechat.models.load_records import (
    find_drafter_refusal,
    find_load_warnings,
    prepare_unload,
    record_memory_kill,
    register_loaded_model,
)
from edgechat.models.sharing import open_model, replace_engine
from edgechat.planner.load_plan import LoadPlan
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.renderer import Renderer
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.thinking import is_thinking_on

# Time for a shared engine whose GPU failed to send its last events and end.
_FAILED_ENGINE_TIMEOUT_S: Final = 10.0


def _find_cause(error: EdgechatError) -> str:
    """Return the first sentence of an error, without its full stop."""
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")


def _has_drafter_crashed(plan: LoadPlan) -> bool:
    if plan.drafter is None:
        return False
    from edgechat.runtime import drafter_crashes

    return bool(drafter_crashes.find_crash(plan.model_path, plan.drafter.kind, plan.drafter.model_path))


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
        self._must_use_cpu = False
        """True if the GPU failed with the open model."""
        self._failed_plan: LoadPlan | None = None
        """Plan whose GPU failed, if the CPU could not load the model either."""
        self.cpu_notice = ""
        """Sentence about a change from the GPU to the CPU that has not been reported yet; "" for none."""
        self._drafter_error = ""
        """Error of the model drafter that has been reported; "" without one."""
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
                self.client_name, self._restart_engine,
            )  # fmt: skip
        except ModelCrashError:
            check_vocabulary(header)  # raises a clearer error if the vocabulary is the cause
            raise
        self._must_use_cpu, self.cpu_notice = False, ""
        self.warnings += warnings + find_load_warnings(settings, path, model_properties, self.plan)
        self.set_model_properties(model_properties)
        self._drafter_error = model_properties.drafter_error  # one of the warnings
        return model_properties

    def set_model_properties(self, model_properties: protocol.Loaded) -> None:
        """Save the engine's response to a load, and create the prompt builder for the loaded model."""
        self.model_properties = model_properties
        self._needs_new_plan = False
        self._drafter_error = ""
        self._builder = PromptBuilder(self.engine, self._renderer, model_properties)
        if not model_properties.is_embedding:
            settings = self._settings
            think = is_thinking_on(reasoning=settings.reasoning, thinking=settings.thinking, decode_tps=None)
            self._builder.formats.prepare(PromptOptions(bool(think)))

    @property
    def needs_restart(self) -> bool:
        """True if a model was loaded, but the engine has died since, is restarted, or has failed to load it again."""
        return self.engine.needs_restart

    @property
    def drafter_refusal(self) -> str:
        """Why the drafter that the settings name is not used, as a clause; "" if it is, or if they name none."""
        if self.plan is None or self.model_properties is None:
            return ""
        is_named = self.plan.drafter is not None and self.plan.drafter.is_named
        error = self.model_properties.drafter_error.rstrip(".") if is_named else ""  # the engine could not open it
        return find_drafter_refusal(self._settings, self.plan) or error

    def find_drafter_failure(self, state: DrafterState | None) -> str:
        """Return the error of a model drafter in this `state`; "" without one, or if it has been reported before."""
        error = state.error if state is not None and not state.is_open else ""
        is_new = error != self._drafter_error
        self._drafter_error = error
        return error if is_new else ""

    def restart_if_dead(self) -> None:
        """Restart the engine and load the model again if the engine died. Raises EdgechatError.

        If the system killed the engine because of its memory use, the model is loaded with a new plan, which may use
        less memory. If the GPU has failed, or the model cannot be loaded on it any more, the CPU is used;
        `take_cpu_notice` then returns a sentence about it.
        """
        if self.needs_restart:
            self.engine.restart_if_dead()  # calls `_restart_engine`

    def _restart_engine(self, failed_plan: LoadPlan) -> None:
        """Load the model of `failed_plan` again, whose engine process has ended, on the GPU or the CPU.

        The engine client calls this for the first request after the end, whatever the request is, and in one thread at
        a time. Raises EdgechatError.
        """
        if self.plan is not None and self.plan.model_path == failed_plan.model_path:
            failed_plan = self.plan  # with the reasons for this client, which shares the engine with others
        if failed_plan.options.uses_gpu and self.engine.died_on_gpu:
            self._must_use_cpu = True
        try:
            self._load_again(failed_plan)
        except (EngineError, ModelFileError, PlanError) as error:
            if not failed_plan.options.uses_gpu or self._must_use_cpu:
                raise
            self.engine.check_not_closed()
            from edgechat.models.gpu_failures import may_be_gpu_failure, record_gpu_failure

            self._must_use_cpu = True
            if not self.engine.is_shared:
                self.engine.end_process()
            self._load_again(failed_plan)
            if may_be_gpu_failure(error):  # not the model file, which the CPU has loaded
                record_gpu_failure(error, failed_plan)
            self.cpu_notice = f"The model could not be loaded on the GPU again ({_find_cause(error)}). It uses the CPU."

    def _load_again(self, failed_plan: LoadPlan) -> None:
        """Load the model of `failed_plan`, with the same plan, or with a new one if that plan cannot work."""
        gpus = () if self._must_use_cpu else None
        if self.engine.is_shared:
            plan, model_properties, _ = replace_engine(
                self.engine, failed_plan, self._settings, self._restart_engine, gpus
            )  # fmt: skip
        else:
            if record_memory_kill(self.engine, failed_plan):
                self._needs_new_plan = True
            if not (self._needs_new_plan or self._must_leave_gpu(failed_plan) or _has_drafter_crashed(failed_plan)):
                self.engine.load_again()
                register_loaded_model(self.engine, failed_plan)
                return
            from edgechat.models.loading import reload_model

            plan, model_properties = reload_model(self.engine, failed_plan, self._settings, gpus)
        self.plan = plan
        self.set_model_properties(model_properties)
        if not plan.options.uses_gpu and self._must_leave_gpu(failed_plan):
            self.cpu_notice = "The GPU failed. The model uses the CPU from now on."

    def _must_leave_gpu(self, plan: LoadPlan) -> bool:
        """Return whether a plan uses a GPU that failed, in use or in a test."""
        if not plan.options.uses_gpu or self._must_use_cpu:
            return plan.options.uses_gpu
        from edgechat.models.gpu_failures import is_gpu_refused

        return is_gpu_refused(plan)

    def take_cpu_notice(self) -> str:
        """Return a sentence about a restart with the CPU in place of the GPU; "" for none, and in a later call."""
        notice, self.cpu_notice = self.cpu_notice, ""
        return notice

    def generate(self, request: protocol.Generate) -> Iterator[protocol.AnyEvent | ModelLoadProgressed | CpuFallback]:
        """Generate replies and yield the events, as `EngineClient.generate` does.

        If the GPU fails, the model is loaded with the CPU, which continues the replies after the text so far. Raises
        EngineError, also after a second failure.
        """
        record = RequestRecord(request)
        self.restart_if_dead()
        if notice := self.take_cpu_notice():
            yield CpuFallback(notice=notice)
        plan = self.plan  # another thread can replace it after a failure
        try:
            for event in self.engine.generate(request):
                record.add(event)
                yield event
        except EngineError as error:
            if not self._can_continue_on_cpu(error, plan):
                raise
            failure = error
        else:
            return
        if self.plan is None or self.plan.options.uses_gpu:  # no other thread has loaded the model with the CPU
            yield ModelLoadProgressed(phase="loading", message="The GPU failed. Loading the model with the CPU")
            if not self.fall_back_to_cpu(failure, plan):
                raise failure
        self.cpu_notice = ""
        yield CpuFallback(notice=f"The GPU failed ({_find_cause(failure)}). The reply continues on the CPU.")
        try:
            yield from self.engine.generate(record.make_request())
        except ContextOverflowError as error:
            if not record.has_replies:
                raise
            raise EngineError(str(error)) from error  # the text so far must be kept

    def _can_continue_on_cpu(self, error: EdgechatError, plan: LoadPlan | None) -> bool:
        if plan is None or not plan.options.uses_gpu:
            return False
        from edgechat.models.gpu_failures import can_continue_on_cpu

        return can_continue_on_cpu(error)

    def fall_back_to_cpu(self, error: EngineError, plan: LoadPlan | None = None) -> bool:
        """Load the model with the CPU if `error` can be a GPU failure; return whether the CPU has the model now.

        `plan` is the load plan at the time of the failed request; it defaults to the current one. A failure that
        nothing but the GPU can have caused is recorded, so that later loads use the CPU. If the model cannot be loaded,
        the reason is appended to the text of `error`; only `restart_if_dead` then tries again.
        """
        failed_plan = plan or self.plan
        if failed_plan is None or failed_plan is self._failed_plan or not self._can_continue_on_cpu(error, failed_plan):
            return False
        from edgechat.models.gpu_failures import is_gpu_failure, record_gpu_failure

        if is_gpu_failure(error):
            record_gpu_failure(error, failed_plan)
        self._must_use_cpu = True  # also if another thread is the first to notice the end of the process
        try:
            # Its memory must be free before the next plan is made.
            self.engine.end_failed_process(error.process_number, _FAILED_ENGINE_TIMEOUT_S)
            self.engine.restart_if_dead()
        except EdgechatError as load_error:
            self._failed_plan = failed_plan
            error.args = (f"{error}\nThe model could not be loaded with the CPU: {load_error}",)
            return False
        self.cpu_notice = ""  # the caller reports the failure
        return self.plan is not None and not self.plan.options.uses_gpu

    def unload(self, *, ends_engine: bool = False) -> None:
        """Leave the engine, which frees its memory if no other client uses it, and end the render process.

        A shared engine stays in memory for a while; with `ends_engine`, it ends at once if nobody uses it. `open` loads
        a model again.
        """
        pid = self.engine.pid if ends_engine and self.engine.is_shared else None
        prepare_unload(self.engine, self.plan)
        self.engine.leave(None)
        if pid is not None:
            resident_client.end_left_engine(pid)
        self._renderer.end_process()
        self.plan = self.model_properties = self._builder = None

    def close(self, timeout_s: float = EXIT_TIMEOUT_S) -> None:
        """End the engine process and the render process; requests in progress raise EngineDiedError.

        The engine process is killed after `timeout_s`. A shared engine is only left.
        """
        prepare_unload(self.engine, self.plan)
        self.engine.close(timeout_s)
        self._renderer.close()
