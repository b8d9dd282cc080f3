"""Too little memory, for real: control groups with a limit, other programs that take what there was."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgechat import config, paths
from edgechat.bench.quants import write_quants
from edgechat.catalogue.registry import read_records
from edgechat.config import Settings
from edgechat.hardware.memory import peak_pss_bytes, read_memory, tree_pss_bytes
from edgechat.models import instances, observed_memory
from edgechat.models.resources import current_machine
from tests.conftest import Cli, edgechat_command

MIB = 1 << 20
_GROUPS = Path("/sys/fs/cgroup")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups and /proc are Linux's")


class Limited:
    """A way to run a command with so much memory and no more."""

    def __init__(self, limit_bytes: int, group: Path | None) -> None:
        self.limit_bytes = limit_bytes
        self.group = group

    def run(self, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
        options: dict[str, object] = {"capture_output": True, "text": True, "timeout": 120} | more
        return subprocess.run(self._command(arguments), check=False, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload,no-any-return]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        if self.group is not None:
            return ["sh", "-c", f'echo $$ > "{self.group}/cgroup.procs"; exec "$@"', "sh", *arguments]
        return ["sh", "-c", f'ulimit -d {self.limit_bytes // 1024}; exec "$@"', "sh", *arguments]

    def was_killed(self) -> bool:
        """True if the system had to end a process in it."""
        if self.group is None:
            return False
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(OSError):
                lines = (self.group / name).read_text().splitlines()
                return any(line.split()[0] == "oom_kill" and int(line.split()[1]) for line in lines)
        return False


@pytest.fixture
def limited() -> Iterator[Callable[[int], Limited]]:
    """Makes control groups where this user may, and limits data segments where not."""
    made: list[Path] = []

    def make(limit_bytes: int) -> Limited:
        for parent, name in ((_GROUPS / "memory", "memory.limit_in_bytes"), (_GROUPS, "memory.max")):
            group = parent / f"edgechat-test-{os.getpid()}-{len(made)}"
            try:
                group.mkdir()
                made.append(group)
                (group / name).write_text(str(limit_bytes))
            except OSError:
                continue
            return Limited(limit_bytes, group)
        return Limited(limit_bytes, None)

    yield make
    for group in made:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
            if not group.exists():
                break
            time.sleep(0.1)


def test_the_limit_of_a_control_group_is_what_is_available(limited: Callable[[int], Limited]) -> None:
    code = (
        "from edgechat.hardware.memory import read_memory; m = read_memory(); print(m.total_bytes, m.available_bytes)"
    )
    group = limited(600 * MIB)
    total, available = map(int, group.run(sys.executable, "-c", code).stdout.split())
    assert total == 600 * MIB if group.group else total >= 600 * MIB
    assert 500 * MIB < available <= 600 * MIB


@pytest.mark.parametrize("hierarchy", ["unified", "memory"])
def test_limits_are_read_in_both_kinds_of_groups(tmp_path: Path, hierarchy: str) -> None:
    unified = hierarchy == "unified"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box/inner\n" if unified else "4:cpu:/\n9:memory:/box/inner\n")
    inner = tmp_path / "sys/fs/cgroup" / ("" if unified else "memory") / "box/inner"
    inner.mkdir(parents=True)
    limit, usage = ("memory.max", "memory.current") if unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (inner / limit).write_text("max" if unified else str(1 << 62))
    (inner / usage).write_text("5000")
    (inner.parent / limit).write_text(str(256 * MIB))
    (inner.parent / usage).write_text(str(100 * MIB))
    (inner.parent / "memory.stat").write_text(f"{'' if unified else 'total_'}inactive_file {40 * MIB}\nodd\n")
    found = read_memory(tmp_path)
    assert (found.total_bytes, found.available_bytes) == (256 * MIB, 196 * MIB)


def test_what_does_not_fit_in_the_limit_is_refused_and_not_killed(limited: Callable[[int], Limited]) -> None:
    group = limited(150 * MIB)
    refused = group.run(*edgechat_command("ask", "-m", "starter", "hi"))
    assert refused.returncode == 5, refused.stderr
    assert "are available" in refused.stderr
    assert not group.was_killed()


def test_a_context_that_was_asked_for_and_does_not_fit_is_refused(limited: Callable[[int], Limited]) -> None:
    plan = json.loads(
        subprocess.run(
            edgechat_command("plan", "starter", "--ctx", "4096", "--json", "--no-measure"), check=True,
            capture_output=True,
        ).stdout
    )["models"][0]  # fmt: skip
    # Keys and values in Q8_0 and small micro batches would still do.
    least = plan["total_bytes"] - plan["memory"]["kv_cache"] // 2 - plan["memory"]["compute"]
    group = limited(int(0.9 * least))
    refused = group.run(*edgechat_command("ask", "-m", "starter", "--ctx", "4096", "hi"))
    assert refused.returncode == 5, refused.stderr
    assert "4096" in refused.stderr
    assert not group.was_killed()


@pytest.mark.long
@pytest.mark.parametrize("limit_mib", [300, 600, 1000, 2000])
def test_within_any_limit_something_is_chosen_loaded_and_answers(
    limited: Callable[[int], Limited], starter: Path, limit_mib: int
) -> None:
    paths.models_dir().mkdir(parents=True)
    write_quants(starter, paths.models_dir(), ("Q2_K", "Q8_0", "F16"))
    group = limited(limit_mib * MIB)
    # With what it has to answer, it is to read a prompt of a whole micro batch.
    words = "word " * 600
    said = group.run(*edgechat_command("ask", "--max-tokens", "8", "--json", words))
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["stats"]["completion_tokens"] > 0
    assert not group.was_killed()
    used = sum(json.loads(said.stdout)["stats"]["peak_rss_bytes"].values())
    assert used < limit_mib * MIB * 1.2  # pages that several processes share count twice in that


BALLOON = """
import sys, time
data = bytearray(int(sys.argv[1]) << 20)
for i in range(0, len(data), 4096): data[i] = 1
print("full", flush=True)
sys.stdin.read()
"""

HOLD = """
import sys
from pathlib import Path
from edgechat.config import Settings
from edgechat.chat.session import Session
from edgechat.engine.client import EngineClient
from edgechat.store import ephemeral_store
import subprocess
balloon = None
class Client(EngineClient):
    def load(self, request, listen=lambda event: None):
        global balloon
        if balloon is None and int(sys.argv[2]):
            balloon = subprocess.Popen([sys.executable, "-c", sys.argv[3], sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            balloon.stdout.readline()
        return super().load(request, listen)
session = Session(ephemeral_store(), Settings(), Path(sys.argv[1]))
session.model.engine = Client()
session.open()
print(len(session.warnings), session.model.plan.options.n_ctx, *session.warnings[:1], flush=True)
if balloon is None: sys.stdin.read()
else:
    for event in session.send("word " * 300): pass
    print(event.answer.finish_reason, flush=True)
session.close()
if balloon is not None: balloon.stdin.close()
"""


def test_memory_that_another_program_takes_after_the_plan_was_made(
    limited: Callable[[int], Limited], starter: Path
) -> None:
    """The plan is for 8192 tokens; a balloon of 480 MiB leaves room for 4096 at most."""
    group = limited(700 * MIB)
    if group.group is None:
        pytest.skip("takes a control group")
    done = group.run(sys.executable, "-c", HOLD, str(starter), "480", BALLOON)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert first.startswith("1 "), done.stdout
    assert "memory ran out with" in first
    assert int(first.split()[1]) < 8192
    assert last in ("stop", "length")


def test_a_second_program_sees_what_the_first_holds(
    limited: Callable[[int], Limited], starter: Path, tmp_path: Path
) -> None:
    [other] = write_quants(starter, tmp_path, ("F16",))
    group = limited(650 * MIB)
    first = group.start(sys.executable, "-c", HOLD, str(starter), "0", "")
    assert first.stdout is not None
    first.stdout.readline()
    [holder] = instances.other_instances()
    assert holder.model_path == str(starter)
    assert "has" in (held := current_machine(Settings()).other_instances)
    assert str(holder.pid) in held
    second = group.run(*edgechat_command("ask", "-m", str(other), "hi"))
    first.communicate(timeout=30)
    if group.group is not None:
        assert second.returncode == 5, second.stderr
        assert f"process {holder.pid}" in second.stderr
        assert starter.name in second.stderr
        assert not group.was_killed()
    assert instances.other_instances() == []


def test_pages_that_another_engine_has_mapped_are_not_available(starter: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        before = current_machine(Settings()).available_bytes
        instances.announce(child.pid, str(starter), 2 << 30)
        assert before - current_machine(Settings()).available_bytes > 1 << 30
        # The very file is mapped once, however many have it.
        assert before - current_machine(Settings(), str(starter)).available_bytes < 1 << 30
    finally:
        child.communicate(b"")
    assert instances.other_instances() == []
    assert list(paths.instances_dir().iterdir()) == []


def test_what_a_model_took_beyond_its_plan_counts_in_the_next(cli: Cli, starter: Path) -> None:
    observed_memory.record(str(starter), 100 * MIB, 140 * MIB)
    observed_memory.record(str(starter), 100 * MIB, 90 * MIB)
    assert observed_memory.extra_bytes(str(starter)) == 40 * MIB
    assert observed_memory.extra_bytes("other.gguf") == 0
    row = json.loads(cli("plan", "starter", "--json", "--no-measure").stdout)["models"][0]
    assert row["memory"]["learned"] == 40 * MIB
    for _ in range(5):
        observed_memory.record(str(starter), 100 * MIB, 90 * MIB)
    assert observed_memory.extra_bytes(str(starter)) == 0
    paths.observed_memory_file().write_text("[1]")
    assert observed_memory.extra_bytes(str(starter)) == 0


def test_the_peak_of_a_load_is_recorded(cli: Cli, starter: Path) -> None:
    assert cli("ask", "--max-tokens", "4", "hi").returncode == 0
    [[name, values]] = json.loads(paths.observed_memory_file().read_text()).items()
    assert name.startswith(starter.name)
    assert len(values) == 1
    assert -300 * MIB < values[0] < 100 * MIB
    assert [Path(path) for path in read_records().last_used_at] == [starter]


def test_memory_of_processes_is_read_while_they_live() -> None:
    assert 0 < tree_pss_bytes(os.getpid()) <= read_memory().total_bytes
    assert peak_pss_bytes(os.getpid()) > 0
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert (tree_pss_bytes(child.pid), peak_pss_bytes(child.pid)) == (0, 0)
    stop = threading.Event()
    stop.set()


@pytest.mark.parametrize("value", ["-1GB", "0", "lots", "1e30"])
def test_budgets_that_are_none(cli: Cli, value: str) -> None:
    assert config.check("budget", value)
    for command in (("plan",), ("ask", "hi")):
        refused = cli(*command, "--budget", value)
        assert (refused.returncode, "no size" in refused.stderr) == (2, True)
