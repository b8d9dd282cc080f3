"""A resident engine with several clients: they share one process, and when one ends, the others go on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from edgechat.config import GREEDY, Settings
from edgechat.engine import protocol, resident_client
from edgechat.engine.client import EngineClient
from edgechat.engine.local_socket import socket_dir
from edgechat.engine.resident_files import ResidentFiles, list_records
from edgechat.errors import EngineDiedError, EngineError, PlanError
from edgechat.hardware.memory import is_process_stopped
from edgechat.models.loaded_model import LoadedModel
from tests.resident_engines import PROMPT, read_status, wait_until
from tests.waiting import delete_tree

SETTINGS = Settings(temperature=0.0, keep_alive=30, n_ctx=2048)
Open = Callable[..., LoadedModel]
# Each of the first 12 tokens of the reply is at least 0.5 (log probability) ahead of the next.
OTHER_PROMPT = PROMPT.replace("Count from 1 to 20.", "What is gravity?")

CLIENT = """
import sys
from pathlib import Path
from edgechat.config import GREEDY, Settings
from edgechat.engine import protocol
from edgechat.models.loaded_model import LoadedModel

model = LoadedModel("ask")
model.open(Path(sys.argv[1]), Settings(keep_alive=int(sys.argv[4]), n_ctx=2048))
request = protocol.Generate(
    id=model.engine.next_id(), text=sys.argv[3], max_tokens=int(sys.argv[2]), ignore_eog=True, sampling=GREEDY
)
for event in model.engine.generate(request):
    if isinstance(event, protocol.TokensGenerated):
        print(event.text, end="", flush=True)
model.close()
"""


@pytest.fixture
def open_model(starter: Path, resident: None) -> Iterator[Open]:
    """Open the starter in resident engines, which end with the test."""
    models: list[LoadedModel] = []

    def open_one(settings: Settings = SETTINGS, name: str = "chat") -> LoadedModel:
        models.append(LoadedModel(name))
        models[-1].open(starter, settings)
        return models[-1]

    yield open_one
    for model in models:
        model.close()


# Replaces the load of a model by a line of output and a wait.
BLOCKED_LOAD = """
import time
from edgechat.engine.client import EngineClient
EngineClient.load = lambda *arguments: (print("starts", flush=True), time.sleep(600))
"""


def start_client(
    starter: Path, max_tokens: int, *, keep_alive: int = 30, script: str = CLIENT
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(starter), str(max_tokens), PROMPT, str(keep_alive)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ask(model: LoadedModel, text: str = PROMPT, max_tokens: int = 12) -> str:
    return "".join(generate(model.engine, text, max_tokens))


def generate(engine: EngineClient, text: str, max_tokens: int) -> Iterator[str]:
    tokens = engine.tokenize(text)
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, max_tokens=max_tokens, sampling=GREEDY, ignore_eog=True,
        bypass_cache=True, speculate=False,
    )  # fmt: skip
    for event in engine.generate(request):
        if isinstance(event, protocol.TokensGenerated):
            yield event.text


def test_clients_share_one_process_and_get_their_own_replies(open_model: Open) -> None:
    first, second = open_model(), open_model(name="serve")
    assert first.engine.pid == second.engine.pid
    assert first.plan == second.plan
    assert second.model_properties is not None
    assert second.model_properties.load_s == 0.0
    expected = [ask(first, PROMPT), ask(first, OTHER_PROMPT)]
    replies: dict[int, str] = {}

    def run(index: int, model: LoadedModel, text: str) -> None:
        replies[index] = ask(model, text)

    threads = [
        threading.Thread(target=run, args=(0, first, PROMPT)),
        threading.Thread(target=run, args=(1, second, OTHER_PROMPT)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [replies[0], replies[1]] == expected
    status = read_status()
    assert sorted((c.name, c.pid, c.n_requests) for c in status.clients) == [
        ("chat", os.getpid(), 0), ("serve", os.getpid(), 0)
    ]  # fmt: skip
    assert status.decode_tps
    assert status.loaded is not None


def test_reply_is_that_of_a_private_engine(open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    open_model()
    shared_reply = ask(open_model(name="ask"))
    monkeypatch.setenv("EDGECHAT_ENGINE", "private")
    private = open_model()
    assert ask(private) == shared_reply
    [record] = list_records()
    assert private.engine.pid != record.pid


def test_starter_leaves_and_the_other_client_goes_on(open_model: Open) -> None:
    first = open_model()
    expected = ask(first)
    second = open_model(name="ask")
    first.close()
    assert ask(second) == expected
    assert wait_until(lambda: [c.name for c in read_status().clients] == ["ask"])


def test_only_the_requests_of_a_killed_client_are_cancelled(open_model: Open, starter: Path) -> None:
    model = open_model()
    expected = ask(model, max_tokens=40)
    other = start_client(starter, 400)
    assert other.stdout is not None
    assert other.stdout.read(5)  # it generates
    pieces = []
    for piece in generate(model.engine, PROMPT, 40):
        pieces.append(piece)
        if len(pieces) == 3:
            other.kill()
    assert "".join(pieces) == expected
    other.wait()
    assert wait_until(lambda: [c.n_requests for c in read_status().clients] == [0])
    other.stdout.close()


def test_engine_that_is_killed_is_replaced_once_for_all_clients(open_model: Open) -> None:
    first, second = open_model(), open_model(name="ask")
    expected, pid = ask(first), first.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: first.engine.needs_restart and second.engine.needs_restart)
    replies: list[str] = []

    def restart(model: LoadedModel) -> None:
        model.restart_if_dead()
        replies.append(ask(model))

    threads = [threading.Thread(target=restart, args=(model,)) for model in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == [expected, expected]
    assert first.engine.pid == second.engine.pid != pid


@pytest.mark.parametrize(
    ("name", "cause"),
    [("SIGKILL", "SIGKILL"), ("SIGSEGV", "SIGSEGV"), ("SIGABRT", "SIGABRT"), ("SIGBUS", "model file was truncated")],
)
def test_attached_client_learns_how_the_engine_ended(open_model: Open, name: str, cause: str) -> None:
    starter, attached = open_model(), open_model(name="ask")
    os.kill(attached.engine.pid or 0, getattr(signal, name))
    assert wait_until(lambda: starter.engine.needs_restart and attached.engine.needs_restart)
    errors = []
    for model in (starter, attached):
        with pytest.raises(EngineDiedError) as caught:
            model.engine.stats()
        errors.append(caught.value)
    assert [error.code for error in errors] == [-getattr(signal, name)] * 2
    assert all(cause in str(error) for error in errors)


@pytest.mark.parametrize("keep_alive", [0, -1])
def test_engine_ends_or_stays_after_its_last_client(open_model: Open, keep_alive: int) -> None:
    model = open_model(Settings(keep_alive=keep_alive, n_ctx=2048))
    pid = model.engine.pid
    model.close()
    if keep_alive == 0:
        assert wait_until(lambda: not [p for p in socket_dir().iterdir() if p.suffix in {".sock", ".json"}])
    else:
        time.sleep(1.5)  # an engine that ends does so within half a second
        assert [record.pid for record in list_records()] == [pid]
        assert open_model(name="ask").engine.pid == pid


def test_other_options_mean_another_engine(open_model: Open) -> None:
    first = open_model()
    second = open_model(Settings(n_ctx=512, keep_alive=30))
    assert first.engine.pid != second.engine.pid
    assert len(list(list_records())) == 2
    pids = {first.engine.pid, second.engine.pid}
    first.close()
    second.close()
    assert wait_until(lambda: len(resident_client._list_idle_engines()) == len(pids))
    assert resident_client.stop_idle_engine()
    assert len({record.pid for record in list_records()} & pids) == 1  # the one that was idle for longest has ended


def test_fixed_context_is_served_by_an_engine_whose_context_grows(open_model: Open) -> None:
    growing = open_model(Settings(keep_alive=30))
    assert open_model(Settings(keep_alive=30, n_ctx=1024)).engine.pid == growing.engine.pid


def test_two_programs_that_start_at_once_share_one_engine(open_model: Open, starter: Path) -> None:
    clients = [start_client(starter, 8) for _ in range(3)]
    replies = [client.communicate(timeout=300)[0] for client in clients]
    assert [client.returncode for client in clients] == [0, 0, 0]
    assert replies[0]
    assert len(set(replies)) == 1
    assert len(list(list_records())) == 1


def test_engine_without_a_model_ends_if_its_starter_is_killed(open_model: Open, starter: Path) -> None:
    client = start_client(starter, 8, keep_alive=-1, script=BLOCKED_LOAD + CLIENT)
    assert client.stdout is not None
    assert client.stdout.readline()  # the engine runs
    assert read_status().loaded is None
    client.kill()
    client.communicate()
    assert wait_until(lambda: not list(list_records()))
    assert ask(open_model())


def test_engine_of_another_installation_is_not_shared(open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_model()
    monkeypatch.setattr(resident_client, "read_installation", lambda: "0.0.1 another")
    second = open_model(name="ask")
    assert first.engine.pid != second.engine.pid
    first.close()
    assert wait_until(lambda: len(resident_client._list_idle_engines()) == 1)
    assert resident_client.stop_idle_engine(second.engine.pid)  # its memory is free for others
    assert [record.pid for record in list_records()] == [second.engine.pid]


def test_model_is_loaded_privately_if_sockets_cannot_be_used(open_model: Open) -> None:
    directory = socket_dir()
    directory.rmdir()
    directory.write_text("a file in place of the folder")
    model = open_model()
    assert ask(model)
    assert any("not shared" in warning for warning in model.warnings)
    assert not model.engine.is_shared
    directory.unlink()


def test_suspended_engine_blocks_nobody_and_can_be_stopped(open_model: Open) -> None:
    model = open_model()
    [record] = list_records()
    model.close()
    os.kill(record.pid, signal.SIGSTOP)
    assert wait_until(lambda: is_process_stopped(record.pid))
    assert resident_client.read_status(record) is None
    assert ask(open_model(Settings(n_ctx=512, keep_alive=30)))
    assert resident_client.stop_engine(record)
    assert not record.is_running


def test_clients_that_come_while_the_engine_ends_get_a_new_one(open_model: Open) -> None:
    rng = random.Random(0)
    settings = Settings(n_ctx=2048, keep_alive=0)
    for _ in range(8):
        model = open_model(settings)
        assert ask(model, max_tokens=2)
        model.close()
        time.sleep(rng.uniform(0, 0.7))


def test_engine_is_found_after_a_change_of_the_clock(open_model: Open) -> None:
    model = open_model()
    [record] = list_records()
    ResidentFiles(record.name).write_record(msgspec.structs.replace(record, started_at=record.started_at - 3600))
    assert open_model(name="ask").engine.pid == model.engine.pid


def test_model_with_a_relative_path_can_be_loaded_again_from_elsewhere(
    open_model: Open, starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_model()
    other.close()
    for record in list_records():
        resident_client.stop_engine(record)
    monkeypatch.chdir(starter.parent)
    model = LoadedModel()
    model.open(Path(starter.name), SETTINGS)
    assert model.plan is not None
    assert Path(model.plan.model_path).is_absolute()
    attached = open_model(name="ask")
    assert attached.engine.pid == model.engine.pid
    os.kill(model.engine.pid or 0, signal.SIGKILL)
    model.close()
    monkeypatch.chdir(tmp_path)
    assert wait_until(lambda: attached.engine.needs_restart)
    attached.restart_if_dead()
    assert ask(attached)


def test_record_is_complete_after_a_restart(open_model: Open) -> None:
    model = open_model(Settings(keep_alive=30))
    os.kill(model.engine.pid or 0, signal.SIGKILL)
    assert wait_until(lambda: model.engine.needs_restart)
    model.restart_if_dead()
    [record] = list_records()
    assert record.max_n_ctx > 0
    assert record.total_bytes > 0
    assert open_model(Settings(keep_alive=30, n_ctx=1024)).engine.pid == model.engine.pid


def test_engine_that_was_stopped_is_replaced_for_the_next_request(open_model: Open) -> None:
    model = open_model()
    expected = ask(model)
    [record] = list_records()
    assert resident_client.stop_engine(record)
    assert wait_until(lambda: model.engine.needs_restart)
    with pytest.raises(EngineDiedError, match="idle or was stopped"):
        model.engine.stats()
    model.restart_if_dead()
    assert ask(model) == expected


def test_reply_of_a_stopped_engine_ends_with_an_error(open_model: Open) -> None:
    model = open_model()
    [record] = list_records()
    pieces = generate(model.engine, "What is gravity?", 1500)
    assert next(pieces)
    assert resident_client.stop_engine(record)
    with pytest.raises(EngineDiedError, match="was stopped"):
        list(pieces)


def test_shared_engine_keeps_its_model_when_a_client_wants_another(open_model: Open) -> None:
    first, second = open_model(), open_model(name="ask")
    expected = ask(first)
    assert first.plan is not None
    with pytest.raises(EngineError, match="other programs may use"):
        second.engine.load(protocol.Load(id=second.engine.next_id(), plan=first.plan))
    assert ask(first) == expected


def test_model_beyond_the_budget_ends_no_engine_and_blames_nobody(open_model: Open) -> None:
    open_model().close()
    [record] = list_records()
    assert wait_until(lambda: not read_status().clients)
    with pytest.raises(PlanError) as caught:
        open_model(Settings(keep_alive=30, budget="20MB", n_ctx=512))
    assert "in use by" not in str(caught.value)
    assert record.is_running


def test_model_that_does_not_fit_names_the_programs_that_use_the_memory(
    open_model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_model()

    def refuse(*arguments: object, **options: object) -> None:
        raise PlanError("It does not fit.")

    monkeypatch.setattr("edgechat.models.loading._make_plan", refuse)
    with pytest.raises(PlanError, match=rf"does not fit\. .* is in use by chat \(process {os.getpid()}\)"):
        open_model(Settings(n_ctx=512))


def test_engine_that_cannot_write_its_files_serves_its_starter(
    open_model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ResidentFiles.create()
    files.fault.mkdir()
    monkeypatch.setattr(ResidentFiles, "create", lambda: files)
    model = open_model()
    assert ask(model)
    pid = model.engine.pid
    model.close()
    assert wait_until(lambda: not psutil.pid_exists(pid or 0))
    files.fault.rmdir()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_sees_and_reaches_nothing(open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(tempfile.mkdtemp(prefix="edgechat-home-", dir="/tmp"))
    home.chmod(0o755)  # everyone can enter the home, but not the folder of the sockets
    try:
        shutil.copytree(Path(os.environ["EDGECHAT_HOME"]) / "cache", home / "cache")
        monkeypatch.setenv("EDGECHAT_HOME", str(home))
        model = open_model()
        ask(model)
        [socket_file] = socket_dir().glob("*.sock")
        script = (
            "import os, socket, sys\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "for action in (lambda: os.listdir(os.path.dirname(sys.argv[1])), lambda: open(sys.argv[2]).read(),\n"
            "               lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1])):\n"
            "    try:\n        print(action())\n    except PermissionError:\n        print('refused')\n"
        )
        record = socket_file.with_suffix(".json")
        result = subprocess.run(
            [sys.executable, "-c", script, str(socket_file), str(record)], capture_output=True, text=True, check=True
        )
        assert result.stdout.split() == ["refused"] * 3
        model.close()
        for running in list_records():
            resident_client.stop_engine(running)
    finally:
        delete_tree(home)  # the engine that was stopped may still write its log
