"""The offline bundle: installation without a network and a compiler, error messages, and removal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.models import write_parrot
from tests.packaging.conftest import as_newcomer, bare_path, can_cut_off, cut_off, mounted, pretend, recipe

pytestmark = pytest.mark.long
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    model = write_parrot(folder / "parrot.gguf", "Hello.")
    recipe("offline.py", "--python", PYTHON, "--with-model", model, "--with-wheel", cuda(folder), folder)
    return next(folder.glob("*.tar.gz"))


def cuda(folder: Path) -> Path:
    """A CUDA package of another build."""
    package, info = folder / "cuda" / "edgechat_cuda13", folder / "cuda" / "edgechat_cuda13-0.1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("")
    manifest = {"build_id": "", "llama_cpp_python": "", "llama_cpp_commit": "1234567", "compiler": "", "files": []}
    (package / "manifest.json").write_text(json.dumps(manifest))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgechat-cuda13\nVersion: 0.1.0\nLicense: MIT\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\nTag: py3-none-any\n")
    command = [sys.executable, "-m", "wheel", "pack", "--dest-dir", str(folder), str(package.parent)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture
def bundle(archive: Path, tmp_path: Path) -> Path:
    """The bundle unpacked in a directory with spaces and umlauts."""
    folder = tmp_path / "Meine Dateien, größer"
    folder.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.iterdir())


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with basic system tools and Python but no compiler."""
    names = "sh env sed uname ldd grep dirname du df awk cut ls tail mkdir rm rmdir mv cp cat chmod"
    folder = bare_path(tmp_path / "tools", names)
    (folder / "python3").symlink_to(Path(sys.base_prefix) / "bin" / f"python{PYTHON}")
    return folder


def sh(
    script: Path, home: Path, tools: Path, *arguments: str, before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of the bundle or an installed program."""
    shell = ["/bin/sh"] if script.suffix == ".sh" else []
    return as_newcomer(home, tools, *shell, script, *arguments, before=before, **environment)


def edgechat(home: Path, tools: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return sh(home / ".local" / "bin" / "edgechat", home, tools, *arguments)


def test_bundle_installs_runs_reinstalls_and_uninstalls(bundle: Path, tools: Path, tmp_path: Path) -> None:
    home = tmp_path / "user"
    started = time.monotonic()
    done = sh(bundle / "install.sh", home, tools)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    assert "Installed edgechat" in done.stdout
    answer = edgechat(
        home, tools, "ask", "-m", "starter", "--max-tokens", "8", "--temperature", "0", "What is gravity?"
    )
    assert answer.stdout.startswith("Gravity"), answer.stderr
    assert "parrot" in edgechat(home, tools, "models", "list").stdout
    mine = home / ".local" / "share" / "edgechat" / "models" / "mine.gguf"
    mine.parent.mkdir()
    mine.write_text("a model of the user")
    assert "edgechat_cuda13 is for llama.cpp 1234567" in answer.stderr  # installed and discovered
    again = sh(bundle / "install.sh", home, tools)
    assert again.returncode == 0, again.stderr
    assert "What is gravity?" in edgechat(home, tools, "history", "list").stdout
    gone = sh(bundle / "uninstall.sh", home, tools)
    assert gone.returncode == 0, gone.stderr
    assert not (home / ".local" / "bin" / "edgechat").exists()
    assert not (home / ".local" / "share" / "edgechat" / "venv").exists()
    assert (home / ".local" / "share" / "edgechat" / "history.db").exists()
    assert mine.exists()
    assert not (home / ".local" / "share" / "edgechat" / "bundle-models").exists()
    assert sh(bundle / "uninstall.sh", home, tools).returncode == 1


def test_installer_uses_pipx_if_available(bundle: Path, tools: Path, tmp_path: Path) -> None:
    home = tmp_path / "user"
    (tools / "pipx").symlink_to(Path(sys.executable).parent / "pipx")
    where = {"PIPX_HOME": str(home / "pipx"), "PIPX_BIN_DIR": str(home / ".local" / "bin")}
    done = sh(bundle / "install.sh", home, tools, **where)
    assert done.returncode == 0, done.stderr
    answer = edgechat(home, tools, "ask", "-m", "starter", "--max-tokens", "4", "What is gravity?")
    assert answer.stdout.startswith("Gravity"), answer.stderr
    assert "edgechat_cuda13 is for llama.cpp 1234567" in answer.stderr
    assert "pipx uninstall edgechat" in edgechat(home, tools, "uninstall").stdout
    gone = sh(bundle / "uninstall.sh", home, tools, **where)
    assert gone.returncode == 0, gone.stderr
    assert not (home / ".local" / "bin" / "edgechat").exists()


def test_killed_installation_can_be_repeated(bundle: Path, tools: Path, tmp_path: Path) -> None:
    home = tmp_path / "user"
    home.mkdir()
    for after_s in (1.5, 4.0):
        child = subprocess.Popen(
            ["/bin/sh", bundle / "install.sh"],
            env={"HOME": str(home), "PATH": str(tools)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(after_s)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    done = sh(bundle / "install.sh", home, tools)
    assert done.returncode == 0, done.stderr
    assert edgechat(home, tools, "--version").returncode == 0
    # A failed installation leaves the previous one unchanged.
    shutil.rmtree(bundle / "wheels")
    assert sh(bundle / "install.sh", home, tools).returncode == 1
    assert edgechat(home, tools, "--version").returncode == 0


def test_changed_byte_is_found_before_installing(bundle: Path, tools: Path, tmp_path: Path) -> None:
    wheel = max((bundle / "wheels").iterdir(), key=lambda w: w.stat().st_size)
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    done = sh(bundle / "install.sh", tmp_path / "user", tools)
    assert done.returncode == 1
    assert f"damaged: wheels/{wheel.name}" in done.stderr
    assert not (tmp_path / "user" / ".local").exists()


@pytest.mark.parametrize(
    ("name", "script", "message"),
    [
        ("python3", "echo 3.9", f"Python {PYTHON} to {PYTHON} is required (found: 3.9)"),
        ("ldd", "echo musl libc", "musl"),
        ("uname", "case $1 in -s) echo Linux;; *) echo riscv64;; esac", "on riscv64"),
        ("df", "echo; echo x 0 0 1000 0", "MB needed"),
    ],
)
def test_unsuitable_machine_is_reported(
    bundle: Path, tools: Path, tmp_path: Path, name: str, script: str, message: str
) -> None:
    pretend(tools, name, script)
    done = sh(bundle / "install.sh", tmp_path / "user", tools)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_old_glibc_is_reported(bundle: Path, tools: Path, tmp_path: Path) -> None:
    script = bundle / "install.sh"
    script.write_text(script.read_text().replace("2.34", "9.34"))
    done = sh(script, tmp_path / "user", tools)
    assert done.returncode == 1
    assert "glibc 9.34 or newer is required" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(not can_cut_off(), reason="it takes root")
def test_noexec_temporary_directory_and_full_disk(bundle: Path, tools: Path, tmp_path: Path) -> None:
    home, place = tmp_path / "user", tmp_path / "place"
    full = sh(bundle / "install.sh", home, tools, before=mounted(place, "size=90m"), EDGECHAT_PREFIX=str(place))
    assert full.returncode == 1
    assert "MB needed" in full.stderr
    noexec = mounted(place, "noexec")
    done = sh(bundle / "install.sh", home, tools, before=noexec, TMPDIR=str(place))
    assert done.returncode == 0, done.stderr
    answer = sh(
        home / ".local" / "bin" / "edgechat",
        home,
        tools,
        "ask",
        "-m",
        "starter",
        "--max-tokens",
        "4",
        "What is gravity?",
        before=noexec,
        TMPDIR=str(place),
    )
    assert answer.stdout.startswith("Gravity"), answer.stderr


def test_unknown_options_and_foreign_installations(bundle: Path, tools: Path, tmp_path: Path) -> None:
    home = tmp_path / "user"
    for script in ("install.sh", "uninstall.sh"):
        wrong = sh(bundle / script, home, tools, "--prugw")
        assert wrong.returncode == 2
        assert "Unknown option --prugw" in wrong.stderr
        shown = sh(bundle / script, home, tools, "--help")
        assert shown.returncode == 0
        assert f"sh {script}" in shown.stdout
    assert not (home / ".local").exists()
    pretend(tools, "edgechat", "echo I was asked to go")
    gone = sh(bundle / "uninstall.sh", home, tools, "--purge", "--yes")
    assert gone.returncode == 1
    assert "edgechat is not installed in" in gone.stderr
    assert "asked to go" not in gone.stdout
    (bundle / "SHA256SUMS").unlink()
    assert "damaged: SHA256SUMS" in sh(bundle / "install.sh", home, tools).stderr


def test_user_settings_of_pip_and_unusual_paths(bundle: Path, tools: Path, tmp_path: Path) -> None:
    home = tmp_path / "user"
    place = "odd \"pre'fix $x"
    done = subprocess.run(
        [*cut_off(), "/bin/sh", bundle / "install.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={
            "HOME": str(home),
            "PATH": str(tools),
            "EDGECHAT_PREFIX": place,
            "PIP_TARGET": str(tmp_path / "elsewhere"),
            "PIP_USER": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "elsewhere").exists()
    answer = sh(
        tmp_path / place / "bin" / "edgechat",
        home,
        tools,
        "ask",
        "-m",
        "starter",
        "--max-tokens",
        "4",
        "What is gravity?",
    )
    assert answer.stdout.startswith("Gravity"), answer.stderr
    prefix = str(tmp_path / place)
    gone = sh(bundle / "uninstall.sh", home, tools, "--purge", "--yes", EDGECHAT_PREFIX=prefix)
    assert gone.returncode == 0, gone.stderr
    assert not (home / ".local" / "share" / "edgechat").exists()


def test_unwritable_home_and_other_prefix(bundle: Path, tools: Path, tmp_path: Path) -> None:
    home = tmp_path / "user"
    home.mkdir()
    (home / ".local").write_text("")  # a file, because root may write to any directory
    done = sh(bundle / "install.sh", home, tools)
    assert done.returncode == 1
    assert "EDGECHAT_PREFIX" in done.stderr
    place = tmp_path / "another place"
    done = sh(bundle / "install.sh", home, tools, EDGECHAT_PREFIX=str(place))
    assert done.returncode == 0, done.stderr
    assert (place / "bin" / "edgechat").exists()


def test_archive_is_reproducible(archive: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        import offline  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    packed = []
    for number in range(2):
        folder = tmp_path / str(number)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        root = next(folder.iterdir())
        os.utime(root / "install.sh", (number, number))
        packed.append(offline.pack(root, folder / f"{number}.tar.gz").read_bytes())
    assert packed[0] == packed[1]
