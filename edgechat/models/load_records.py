"""Records of the memory of loaded models, and warnings about a load.

This module is separate from `loading`, so that a client that attaches to an engine imports no planner.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgechat.config import AUTO, OFF, Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.hardware.memory import read_peak_pss_bytes
from edgechat.humanize import format_count
from edgechat.models import context_limits, instances, observed_memory
from edgechat.planner.kv_memory import CELL_MULTIPLE
from edgechat.planner.load_plan import LoadPlan
from edgechat.prompt import renderer


def record_memory_kill(engine: EngineClient, load_plan: LoadPlan) -> bool:
    """Increase the next memory estimates if the system killed the engine because of its memory use.

    If the context had grown beyond its planned length, the estimate says nothing about it: then only the length up to
    which the context of this model grows is reduced. Returns whether the system killed the engine. Each death of the
    engine is recorded once.
    """
    was_killed = engine.take_memory_kill()
    if was_killed and load_plan.growth is not None and engine.peak_n_ctx > load_plan.options.n_ctx:
        context_limits.record_kill(load_plan.model_path, engine.peak_n_ctx)
    elif was_killed:
        observed_memory.record_kill(load_plan.model_path, load_plan.estimate.engine)
    return was_killed


def register_loaded_model(engine: EngineClient, load_plan: LoadPlan | None) -> None:
    """Save a record of the engine's planned memory, so that other edgechat processes do not plan to use this memory."""
    if engine.pid is not None and load_plan is not None:
        mapped_bytes = load_plan.estimate.weights if load_plan.options.use_mmap else 0
        if load_plan.drafter is not None:
            mapped_bytes += load_plan.drafter.mapped_weights
        instances.register(engine.pid, load_plan.model_path, load_plan.estimate.engine, mapped_bytes)


def prepare_unload(engine: EngineClient, load_plan: LoadPlan | None) -> None:
    """Delete the record of the loaded model and save its peak memory. Call this before the engine frees the model.

    A shared engine keeps the model and its record.
    """
    pid = engine.pid
    if load_plan is None:
        return
    if pid is None:
        record_memory_kill(engine, load_plan)
        return
    if not engine.is_shared:
        instances.unregister(pid)
    context_limits.record_success(load_plan.model_path, engine.peak_n_ctx)
    peak_bytes = read_peak_pss_bytes(pid)
    # While a context grows, memory also holds a copy of its sequences, which is not part of the plan.
    has_grown = engine.peak_n_ctx > load_plan.initial_n_ctx
    if peak_bytes and engine.has_loaded_one_model and not has_grown:
        memory = load_plan.estimate
        planned_bytes = memory.engine - memory.observed_excess
        if load_plan.growth is not None:
            planned_bytes -= memory.total - load_plan.growth.compute_bytes(load_plan.initial_n_ctx)
        observed_memory.record(load_plan.model_path, planned_bytes, peak_bytes)


def find_drafter_refusal(settings: Settings, load_plan: LoadPlan) -> str:
    """Return why a plan does not use the drafter that `settings` name, as a clause; "" if it does or they name none."""
    return load_plan.reasons.get("draft_model", "") if settings.draft_model not in {AUTO, OFF} else ""


def find_load_warnings(
    settings: Settings, model_path: Path, model_properties: protocol.Loaded, load_plan: LoadPlan
) -> list[str]:
    """Return warnings about YaRN, a missing chat template, and a context, threads or drafter other than configured."""
    warnings = []
    n_cpus = os.cpu_count() or 1
    if settings.n_ctx is not None and settings.n_ctx < model_properties.n_ctx and load_plan.growth is None:
        warnings.append(
            f"The context has {model_properties.n_ctx} tokens, not {settings.n_ctx}: llama.cpp rounds its length up to "
            f"a multiple of {CELL_MULTIPLE}."
        )
    if load_plan.options.yarn_factor != 1.0:
        warnings.append(
            f"{model_path.name} was trained with {format_count(model_properties.n_ctx_train, 'token')}; edgechat "
            "extends its context with YaRN. Replies to short prompts may get slightly worse."
        )
    if settings.n_threads is not None and settings.n_threads > n_cpus:
        warnings.append(
            f"This machine has {n_cpus} hardware threads; edgechat uses {n_cpus} instead of {settings.n_threads}."
        )
    refusal = find_drafter_refusal(settings, load_plan)
    if refusal and load_plan.drafter is not None:
        warnings.append(f"Drafting with {load_plan.drafter.name} of the model, not with the named drafter: {refusal}.")
    elif refusal:
        warnings.append(f"Decoding without the drafter: {refusal}.")
    if model_properties.drafter_error:
        warnings.append(f"Decoding without the drafter: {model_properties.drafter_error}")
    if model_properties.chat_template is None and not model_properties.is_embedding:
        warnings.append(
            f"{model_path.name} has no chat template; edgechat uses the format {renderer.PLAIN_TEMPLATE_NAME!r}, which "
            "can differ from the format that the model was trained with."
        )
    return warnings
