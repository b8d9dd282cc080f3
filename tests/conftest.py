"""Fixtures for all tests; each test has its own EDGECHAT_HOME and never touches the user's files."""

from __future__ import annotations

import gc
import locale
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from edgechat.catalogue.library import starter_model
from edgechat.serve.connections import raise_connection_limit

ROOT = Path(__file__).resolve().parent.parent
# Without limits of time, which a busy machine exceeds without a fault. By default each run has the same examples, so
# that a failure belongs to the change under test; `make fuzz` tries new ones.
_NO_TIME_LIMITS = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("same", _NO_TIME_LIMITS, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("fuzz", _NO_TIME_LIMITS, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
# Each test starts its own engine, which ends with the test; the fixture `resident` deletes the variable. It is set here
# for the fixtures of a session, too.
os.environ["EDGECHAT_ENGINE"] = "private"
# Cases of a parametrized test that `--fast` keeps.
_MAX_FAST_CASES = 2
# Variables that pytest changes, and that edgechat sets once for its process when it loads a library.
_CHANGED_BY_FIRST_USE = {
    "PYTEST_CURRENT_TEST", "LLAMA_CPP_LIB_PATH", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET",
    "HF_HUB_DISABLE_PROGRESS_BARS",
}  # fmt: skip
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure() -> None:
    """Make the process of the tests the same however it was started.

    Raises the limit of open files, which an HTTP server raises for its process: one of the tests opens more than a
    thousand connections. Programs that are started in the background or by `nohup` ignore signals, and so would all
    children of the tests.
    """
    raise_connection_limit()
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="leave out slow tests, and all but two cases of each parametrized test"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Apply the option `--fast`."""
    if not config.getoption("--fast"):
        return
    n_cases: Counter[str] = Counter()
    kept_items: list[pytest.Item] = []
    for item in items:
        function = item.nodeid.partition("[")[0]
        n_cases[function] += 1
        if n_cases[function] <= _MAX_FAST_CASES and item.get_closest_marker("slow") is None:
            kept_items.append(item)
    kept_set = set(kept_items)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept_set])
    items[:] = kept_items


@pytest.fixture(scope="session")
def warm_verdicts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a verdict file with the results of backend self-tests on this machine."""
    home = tmp_path_factory.mktemp("warm")
    subprocess.run(
        edgechat_command("doctor", "--json"), env=os.environ | {"EDGECHAT_HOME": str(home)}, check=True,
        capture_output=True,
    )  # fmt: skip
    return home / "cache" / "backends.json"


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """Check that a test leaves its process as it was, so that the tests after it do not depend on their order."""
    before = _read_process_state()
    yield
    assert _read_process_state() == before, "the test changed its process for the tests after it"


def _read_process_state() -> dict[str, object]:
    state: dict[str, object] = {
        "disabled log level": logging.root.manager.disable,
        "log level": logging.root.level,
        "current directory": os.getcwd(),  # noqa: PTH109
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "environment": {k: v for k, v in os.environ.items() if k not in _CHANGED_BY_FIRST_USE},
    }
    if sys.platform != "win32":
        import resource

        state["niceness"] = os.nice(0)
        state["limits"] = [resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")]
    return state


@pytest.fixture(autouse=True)
def home(
    unchanged_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """Set EDGECHAT_HOME to a new directory for the settings, data and cache of this test."""
    directory = tmp_path / "home"
    for name in [n for n in os.environ if n.startswith("EDGECHAT_")]:
        monkeypatch.delenv(name)
    # Texts of tests must not reach the clipboard of the desktop, or of a tmux in which the tests run.
    for name in ("TMUX", "TMUX_PANE", "STY", "DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EDGECHAT_HOME", str(directory))
    monkeypatch.setenv("EDGECHAT_ENGINE", "private")
    if request.node.get_closest_marker("cold") is None and "unit" not in request.node.path.parts:
        request.getfixturevalue("warm")
    return directory


@pytest.fixture
def resident(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the programs of this test share engines, which end after the test."""
    from tests.resident_engines import end_engines

    monkeypatch.delenv("EDGECHAT_ENGINE")
    yield
    end_engines()


@pytest.fixture
def warm(tmp_path: Path, warm_verdicts: Path) -> None:
    """Put the results of backend self-tests into the cache of this test; unit tests have none by default."""
    cache = tmp_path / "home" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    shutil.copy(warm_verdicts, cache)


@pytest.fixture(autouse=True)
def close_apps() -> Iterator[None]:
    """Close the chat applications that a test created."""
    yield
    app_driver = sys.modules.get("tests.tui.app_driver")
    if app_driver is not None:
        app_driver.close_apps()


@pytest.fixture(scope="session")
def starter() -> Path:
    """Return the path of the starter model."""
    return starter_model()


def remove_notes(stderr: str) -> str:
    """Return the lines of the standard error of `edgechat ask` without those that report no problem.

    The self-test of a backend and the load of a model are announced only if they take seconds, on a busy machine.
    """
    notes = ("edgechat: The reply was cut after ", "edgechat: Testing the backend ", "edgechat: Loading the model")
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith(notes))


def edgechat_command(*arguments: str) -> list[str]:
    """Return the command line that runs the installed program with `arguments`."""
    return [str(Path(sys.executable).parent / "edgechat"), *arguments]


@pytest.fixture
def cli() -> Cli:
    """Return a function that runs `edgechat` without a terminal; keyword arguments go to subprocess.run."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        defaults: dict[str, object] = {"capture_output": True, "text": True, "timeout": 300}
        if "input" not in options:
            defaults["stdin"] = subprocess.DEVNULL
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            edgechat_command(*arguments), check=False, **defaults | options
        )

    return run
