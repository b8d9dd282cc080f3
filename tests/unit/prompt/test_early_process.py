"""The render process that starts before the command line is parsed."""

from __future__ import annotations

import subprocess
import sys

from edgechat.hardware.memory import is_process_running, read_process_start_time
from edgechat.prompt import early_process
from edgechat.prompt.renderer import PLAIN_TEMPLATE, PromptMessage, Renderer
from tests.waiting import until


def test_started_process_is_used_once_by_a_renderer() -> None:
    early_process.start()
    process = early_process.take()
    assert process is not None
    assert early_process.take() is None
    renderer = Renderer(process)
    renderer.start()
    try:
        prompt = renderer.render(PLAIN_TEMPLATE, [PromptMessage("user", "Hi")], bos="", eos="", control_tokens=[])
        assert prompt.text == "User: Hi\n\nAssistant:"
        assert process[0].poll() is None
    finally:
        renderer.close()
    assert process[0].poll() is not None


def test_process_of_a_command_that_fails_ends() -> None:
    script = (
        "import sys; from edgechat.prompt import early_process; from edgechat.cli.main import main; "
        "start = early_process.start; "
        "early_process.start = lambda: (start(), print(early_process._started[0][0].pid, flush=True)); "
        "sys.argv = ['edgechat', 'ask', '--unknown']; main()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        pid = int(command.stdout.readline())
        started_at = read_process_start_time(pid)
        _, error = command.communicate()
    assert command.returncode == 2
    assert b"unknown" in error
    until(lambda: not is_process_running(pid, started_at))


def test_help_and_commands_without_a_model_start_no_process() -> None:
    for arguments in (["ask", "--help"], ["history", "list"], ["--version"]):
        script = (
            "import sys; from edgechat.prompt import early_process; from edgechat.cli.main import main; "
            f"early_process.start = lambda: sys.exit(99); sys.argv = {['edgechat', *arguments]!r}; main()"
        )
        assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0
