"""What must not be imported, and where."""

from __future__ import annotations

import subprocess
import sys

import pytest


def modules_after(code: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_the_client_process_never_sees_native_code_or_numpy() -> None:
    loaded = modules_after(
        "import edgechat.tui.app, edgechat.chat.session, edgechat.cli.root, edgechat.cli.doctor\n"
        "edgechat.cli.doctor.examine()"
    )
    assert not loaded & {"numpy", "llama_cpp", "llama_cpp.llama_cpp", "gguf", "jinja2"}
    assert not loaded & {"edgechat.runtime.bindings", "edgechat.runtime.model", "edgechat.engine.server"}


def test_neither_does_the_server() -> None:
    loaded = modules_after("import edgechat.serve.app, edgechat.serve.server, edgechat.cli.serve")
    assert not loaded & {"numpy", "llama_cpp", "llama_cpp.llama_cpp", "gguf", "jinja2", "llguidance", "textual"}
    assert not loaded & {"edgechat.runtime.bindings", "edgechat.runtime.model", "edgechat.engine.server"}


def test_help_imports_next_to_nothing() -> None:
    loaded = modules_after("import edgechat.cli.root")
    assert not loaded & {"textual", "msgspec", "psutil", "platformdirs", "jinja2", "subprocess", "asyncio"}


@pytest.mark.parametrize("room", ["hardware", "modelfile", "catalogue", "planner", "chat.messages", "config"])
def test_rooms_import_alone(room: str) -> None:
    modules_after(f"import edgechat.{room}")
