"""Too little memory: cgroup limits, and other programs that take memory after the plan."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgechat import config, paths
from edgechat.bench.quants import write_quants
from edgechat.catalogue.registry import read_records
from edgechat.config import Settings
from edgechat.models import instances
from edgechat.models.resources import current_machine
from tests.conftest import Cli, edgechat_command
from tests.fuzzing import IS_EXHAUSTIVE

MIB = 1 << 20
_CGROUPS = Path("/sys/fs/cgroup")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs cgroups and /proc")


class MemoryLimit:
    """Runs commands with a memory limit: in a cgroup, or with a limited data segment without one."""

    def __init__(self, limit_bytes: int, group: Path | None) -> None:
        self.limit_bytes = limit_bytes
        self.group = group

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        if self.group is not None:
            return ["sh", "-c", f'echo $$ > "{self.group}/cgroup.procs"; exec "$@"', "sh", *arguments]
        return ["sh", "-c", f'ulimit -d {self.limit_bytes // 1024}; exec "$@"', "sh", *arguments]

    def has_killed(self) -> bool:
        """Return True if the kernel killed a process in the cgroup for its memory."""
        if self.group is None:
            return False
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(OSError):
                lines = (self.group / name).read_text().splitlines()
                return any(line.split()[0] == "oom_kill" and int(line.split()[1]) for line in lines)
        return False


@pytest.fixture
def limited() -> Iterator[Callable[[int], MemoryLimit]]:
    """Create memory limits, with cgroups if this user may create them."""
    groups: list[Path] = []

    def create(limit_bytes: int) -> MemoryLimit:
        for parent, name in ((_CGROUPS / "memory", "memory.limit_in_bytes"), (_CGROUPS, "memory.max")):
            group = parent / f"edgechat-test-{os.getpid()}-{len(groups)}"
            try:
                group.mkdir()
                groups.append(group)
                (group / name).write_text(str(limit_bytes))
            except OSError:
                continue
            return MemoryLimit(limit_bytes, group)
        return MemoryLimit(limit_bytes, None)

    yield create
    for group in groups:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
            if not group.exists():
                break
            time.sleep(0.1)


def test_cgroup_limit_bounds_the_available_memory(limited: Callable[[int], MemoryLimit]) -> None:
    code = (
        "from edgechat.hardware.memory import read_memory; m = read_memory(); print(m.total_bytes, m.available_bytes)"
    )
    limit = limited(600 * MIB)
    total, available = map(int, limit.run(sys.executable, "-c", code).stdout.split())
    assert total == 600 * MIB if limit.group else total >= 600 * MIB
    assert 500 * MIB < available <= 600 * MIB


def test_model_above_the_limit_is_refused_and_not_killed(limited: Callable[[int], MemoryLimit]) -> None:
    limit = limited(150 * MIB)
    refused = limit.run(*edgechat_command("ask", "-m", "starter", "hi"))
    assert refused.returncode == 5, refused.stderr
    assert "are available" in refused.stderr
    assert not limit.has_killed()


def test_context_set_by_the_user_above_the_limit_is_refused(limited: Callable[[int], MemoryLimit]) -> None:
    plan = json.loads(
        subprocess.run(
            edgechat_command("plan", "starter", "--ctx", "4096", "--json", "--no-measure"), check=True,
            capture_output=True,
        ).stdout
    )["models"][0]  # fmt: skip
    # The most frugal plan has a KV cache in Q8_0 and small micro-batches.
    least = plan["total_bytes"] - plan["memory"]["kv_cache"] // 2 - plan["memory"]["compute"]
    limit = limited(int(0.9 * least))
    refused = limit.run(*edgechat_command("ask", "-m", "starter", "--ctx", "4096", "hi"))
    assert refused.returncode == 5, refused.stderr
    assert "4096" in refused.stderr
    assert not limit.has_killed()


@pytest.fixture(scope="module")
def quantize(starter: Path, warm_verdicts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that quantises the starter model, once for each preset."""

    @functools.cache
    def write_quant(preset: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
            return write_quants(starter, tmp_path_factory.mktemp("quants"), (preset,))[0]

    return write_quant


@pytest.mark.long
@pytest.mark.parametrize("limit_mib", [300, 600, 1000, 2000] if IS_EXHAUSTIVE else [300, 1000])
def test_a_model_replies_within_any_limit(
    limited: Callable[[int], MemoryLimit], quantize: Callable[[str], Path], limit_mib: int
) -> None:
    paths.models_dir().mkdir(parents=True)
    for path in map(quantize, ("Q2_K", "Q8_0", "F16")):
        (paths.models_dir() / path.name).hardlink_to(path)
    limit = limited(limit_mib * MIB)
    prompt = "word " * 600  # fills a whole micro-batch
    run = limit.run(*edgechat_command("ask", "--max-tokens", "8", "--json", prompt))
    assert run.returncode == 0, run.stderr
    stats = json.loads(run.stdout)["stats"]
    assert stats["completion_tokens"] > 0
    assert not limit.has_killed()
    # Pages that several processes share count twice in this sum.
    assert sum(stats["peak_rss_bytes"].values()) < limit_mib * MIB * 1.2


BALLOON = """
import sys, time
data = bytearray(int(sys.argv[1]) << 20)
for i in range(0, len(data), 4096): data[i] = 1
print("full", flush=True)
sys.stdin.read()
"""

SESSION = """
import subprocess
import sys
from pathlib import Path
from edgechat.config import Settings
from edgechat.chat.session import Session
from edgechat.engine.client import EngineClient
from edgechat.store import open_ephemeral_store
balloon = None
class Client(EngineClient):
    def load(self, request, on_event=lambda event: None):
        global balloon
        if balloon is None and int(sys.argv[2]):
            balloon = subprocess.Popen(
                [sys.executable, "-c", sys.argv[3], sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            balloon.stdout.readline()
        return super().load(request, on_event)
session = Session(open_ephemeral_store(), Settings(), Path(sys.argv[1]))
session.model.engine = Client()
session.open()
print(len(session.warnings), session.model.plan.options.n_ctx, *session.warnings[:1], flush=True)
if balloon is None: sys.stdin.read()
else:
    for event in session.send("word " * 300): pass
    print(event.reply.finish_reason, flush=True)
session.close()
if balloon is not None: balloon.stdin.close()
"""


def test_smaller_plan_is_loaded_after_memory_ran_out(
    limited: Callable[[int], MemoryLimit], quantize: Callable[[str], Path]
) -> None:
    """The plan has a context of 8192 tokens, for which the balloon of 420 MiB leaves too little memory.

    All CPUs copy the weights of Q4_0 to another layout, so that loading them needs memory.
    """
    limit = limited(700 * MIB)
    if limit.group is None:
        pytest.skip("needs a cgroup")
    run = limit.run(sys.executable, "-c", SESSION, str(quantize("Q4_0")), "420", BALLOON)
    assert run.returncode == 0, run.stderr
    first, last = run.stdout.splitlines()[0], run.stdout.splitlines()[-1]
    assert first.startswith("1 "), run.stdout
    assert "Memory ran out with" in first
    assert int(first.split()[1]) < 8192
    assert last in ("stop", "length")


GROWTH = """
import subprocess
import sys
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import ContextOverflowError
from edgechat.hardware.free_memory import read_free_memory
from edgechat.planner.context_growth import ContextGrowth, ContextSize
from edgechat.planner.load_plan import make_manual_plan
share, cell_bytes = float(sys.argv[2]), 23040  # the starter model has 30 layers with 3 heads of 64 in F16
sizes = tuple(ContextSize(n, n * cell_bytes) for n in (256, 8192))
plan = make_manual_plan(sys.argv[1], n_ctx=8192, n_threads=2, n_batch=64, growth=ContextGrowth(sizes=sizes))
engine = EngineClient()
engine.load(protocol.Load(id=engine.next_id(), plan=plan))
free = read_free_memory()
needed_bytes = 3072 * cell_bytes + min(256 << 20, free.total_bytes // 16)
n_balloon_mib = (free.available_bytes - int(share * needed_bytes)) >> 20
balloon = subprocess.Popen(
    [sys.executable, "-c", sys.argv[3], str(n_balloon_mib - 12)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)  # Python itself takes 12 MiB
balloon.stdout.readline()
def ask(n_tokens):
    request = protocol.Generate(id=engine.next_id(), tokens=[100 + i % 50 for i in range(n_tokens)], max_tokens=4)
    try:
        for event in engine.generate(request):
            if isinstance(event, protocol.ContextGrowthRefused):
                print("refused", event.n_ctx, event.needed_bytes > event.available_bytes, flush=True)
    except ContextOverflowError as error:
        print(error, flush=True)
    else:
        print(event.finish_reason, event.stats.completion_tokens, flush=True)
ask(2880)
ask(100)
print(engine.stats().current_n_ctx, flush=True)
engine.close()
balloon.kill()
"""


@pytest.mark.parametrize(("share", "grows"), [(0.85, False), (1.15, True)])
def test_context_grows_only_if_memory_suffices(
    limited: Callable[[int], MemoryLimit], starter: Path, *, share: float, grows: bool
) -> None:
    """Another program leaves a share of the memory that the prompt needs."""
    limit = limited(700 * MIB)
    if limit.group is None:
        pytest.skip("needs a cgroup")
    run = limit.run(sys.executable, "-c", GROWTH, str(starter), str(share), BALLOON)
    assert run.returncode == 0, run.stderr
    assert not limit.has_killed()
    lines = run.stdout.splitlines()
    if grows:
        assert lines[:2] == ["length 4", "length 4"]
        assert int(lines[2]) >= 3072
    else:
        assert lines[0] == "refused 256 True"
        assert "2,880 tokens, but the context holds 256 tokens" in lines[1]
        assert lines[2:] == ["length 4", "256"]


OPTIMIST = """
import sys
import msgspec
from edgechat.cli.main import main
from edgechat.models import loading
read_machine, n_bytes = loading.current_machine, int(sys.argv[1])
def read_too_much(*arguments):
    machine = read_machine(*arguments)
    return msgspec.structs.replace(machine, available_bytes=machine.available_bytes + n_bytes)
loading.current_machine = read_too_much
sys.argv = ["edgechat", "ask", "--max-tokens", "4", "-m", sys.argv[2], "word " * 600]
main()
"""


@pytest.mark.long
@pytest.mark.parametrize("limit_mib", [160, 220])
def test_killed_plan_is_not_repeated_for_ever(
    limited: Callable[[int], MemoryLimit], starter: Path, limit_mib: int
) -> None:
    """The plans assume 300 MB more than there are, as for a buffer that the planner does not know."""
    limit = limited(limit_mib * MIB)
    if limit.group is None:
        pytest.skip("needs a cgroup")
    codes: list[int] = []
    while len(codes) < 8 and (not codes or codes[-1] == 4):
        codes.append(limit.run(sys.executable, "-c", OPTIMIST, str(300 * MIB), str(starter)).returncode)
    assert codes[-1] in (0, 5), codes
    assert limit.has_killed()


def test_second_program_plans_with_the_memory_left_by_the_first(
    limited: Callable[[int], MemoryLimit], starter: Path, quantize: Callable[[str], Path]
) -> None:
    other = quantize("F16")
    limit = limited(650 * MIB)
    first = limit.start(sys.executable, "-c", SESSION, str(starter), "0", "")
    assert first.stdout is not None
    first.stdout.readline()
    [instance] = instances.other_instances()
    assert instance.model_path == str(starter)
    assert f"process {instance.pid}" in current_machine(Settings()).other_instances_text
    second = limit.run(*edgechat_command("ask", "-m", str(other), "hi"))
    first.communicate(timeout=120)
    if limit.group is not None:
        assert second.returncode == 5, second.stderr
        assert f"process {instance.pid}" in second.stderr
        assert starter.name in second.stderr
        assert not limit.has_killed()
    assert instances.other_instances() == []


def test_peak_memory_of_a_load_is_recorded(cli: Cli, starter: Path) -> None:
    assert cli("ask", "--max-tokens", "4", "hi").returncode == 0
    [[name, values]] = json.loads(paths.observed_memory_file().read_text()).items()
    assert name.startswith(starter.name)
    assert len(values) == 1
    assert -300 * MIB < values[0] < 100 * MIB
    assert [Path(path) for path in read_records().last_used_at] == [starter]


@pytest.mark.parametrize("value", ["-1GB", "0", "lots", "1e30"])
def test_invalid_budget_is_refused(run_here: Cli, value: str) -> None:
    assert config.check("budget", value)
    for command in (("plan",), ("ask", "hi")):
        refused = run_here(*command, "--budget", value)
        assert (refused.returncode, "must be a size" in refused.stderr) == (2, True)
