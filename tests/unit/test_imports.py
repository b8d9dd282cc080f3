"""Imports: which modules each process loads, and which it must not load."""

from __future__ import annotations

import subprocess
import sys

import pytest


def imported_by(code: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_client_process_imports_no_native_code_and_no_numpy() -> None:
    loaded = imported_by(
        "import edgechat.tui.app, edgechat.chat.session, edgechat.cli.root, edgechat.cli.doctor\n"
        "edgechat.cli.doctor.diagnose()"
    )
    assert not loaded & {"numpy", "llama_cpp", "llama_cpp.llama_cpp", "gguf", "jinja2"}
    assert not loaded & {"edgechat.runtime.bindings", "edgechat.runtime.model", "edgechat.engine.server"}


def test_server_process_imports_no_native_code_and_no_numpy() -> None:
    loaded = imported_by("import edgechat.serve.app, edgechat.serve.server, edgechat.cli.serve")
    assert not loaded & {"numpy", "llama_cpp", "llama_cpp.llama_cpp", "gguf", "jinja2", "llguidance", "textual"}
    assert not loaded & {"edgechat.runtime.bindings", "edgechat.runtime.model", "edgechat.engine.server"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc/stat")
def test_measurements_of_the_engine_import_no_psutil() -> None:
    """The library would take memory that the plan of the engine does not have."""
    loaded = imported_by("from edgechat.hardware.contention import Stopwatch\nStopwatch(2).stop()")
    assert "psutil" not in loaded


def test_help_imports_only_click() -> None:
    loaded = imported_by("import edgechat.cli.root")
    assert not loaded & {"textual", "msgspec", "psutil", "platformdirs", "jinja2", "subprocess", "asyncio"}


def test_render_process_and_grammar_check_do_not_import_the_protocol_of_the_engine() -> None:
    loaded = imported_by("import edgechat.prompt.sandbox")
    assert not loaded & {"edgechat.engine.protocol", "edgechat.engine.frames", "edgechat.planner.load_plan"}
    loaded = imported_by("import edgechat.engine.grammar_check")
    assert not loaded & {"edgechat.engine.protocol", "edgechat.engine.frames"}


def test_session_imports_neither_the_planner_nor_the_choice_of_replies() -> None:
    """A command that attaches to an engine makes no plan and usually generates one reply."""
    loaded = imported_by("import edgechat.chat.session, edgechat.store")
    assert not loaded & {"psutil", "filelock", "difflib", "edgechat.planner.plan", "edgechat.store.recovery"}
    assert not loaded & {"edgechat.prompt.agreement.picker", "edgechat.engine.death", "edgechat.models.loading"}


def test_renderer_imports_little_so_that_its_process_starts_early() -> None:
    loaded = imported_by("import edgechat.prompt.renderer")
    assert not loaded & {"edgechat.engine.protocol", "edgechat.config", "edgechat.modelfile.header"}


@pytest.mark.parametrize("package", ["hardware", "modelfile", "catalogue", "planner", "chat.messages", "config"])
def test_package_can_be_imported_alone(package: str) -> None:
    imported_by(f"import edgechat.{package}")


def test_chat_without_a_remote_imports_nothing_of_remotes() -> None:
    loaded = imported_by(
        "import edgechat.chat.session, edgechat.chat.model_targets, edgechat.tui.app, edgechat.cli.ask, "
        "edgechat.cli.session_factory, edgechat.config"
    )
    names = (
        "edgechat.remote.",
        "edgechat.chat.remote_",
        "edgechat.catalogue.download.http",
        "httpx2",
        "keyring",
        "edgechat.route_settings",
        "edgechat.chat.route",
    )
    assert not [module for module in loaded if module.startswith(names)]
