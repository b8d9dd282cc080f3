"""The offline bundle: installation without a network and a compiler, error messages, and removal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.archives import unpack
from tests.conftest import ROOT
from tests.models import write_parrot
from tests.packaging.conftest import as_newcomer, bare_path, can_cut_off, cut_off, mounted, pretend, recipe_with
from tests.waiting import until

pytestmark = pytest.mark.long
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
QUESTION = ("ask", "-m", "starter", "--max-tokens", "4", "--temperature", "0", "What is gravity?")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory, wheelhouse: Path) -> Path:
    """Return the directory of a bundle, which tests must not change."""
    folder = tmp_path_factory.mktemp("bundle")
    model = write_parrot(folder / "parrot.gguf", "Hello.")
    options = ("--python", PYTHON, "--with-model", model, "--with-wheel", cuda(folder))
    recipe_with(wheelhouse, "offline.py", *options, folder)
    unpack(next(folder.glob("*.tar.gz")), folder / "unpacked")
    return next((folder / "unpacked").iterdir())


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
def bundle(unpacked: Path, tmp_path: Path) -> Path:
    """The bundle in a directory with spaces and umlauts. Wheels are hard links: replace them instead of writing."""

    def link(source: str, target: str) -> None:
        (os.link if source.endswith(".whl") else shutil.copy2)(source, target)

    folder = tmp_path / "Meine Dateien, größer" / unpacked.name
    shutil.copytree(unpacked, folder, copy_function=link)
    return folder


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
    kill_installer(bundle, home, tools)
    done = sh(bundle / "install.sh", home, tools)
    assert done.returncode == 0, done.stderr
    assert "Installed edgechat" in done.stdout
    answer = edgechat(home, tools, *QUESTION)
    assert answer.stdout.startswith("Gravity"), answer.stderr
    assert "parrot" in edgechat(home, tools, "models", "list").stdout
    mine = home / ".local" / "share" / "edgechat" / "models" / "mine.gguf"
    mine.parent.mkdir()
    mine.write_text("a model of the user")
    assert "edgechat_cuda13 is for llama.cpp 1234567" in answer.stderr  # installed and discovered
    again = sh(bundle / "install.sh", home, tools)
    assert again.returncode == 0, again.stderr
    assert "What is gravity?" in edgechat(home, tools, "history", "list").stdout
    # A failed installation leaves the previous one unchanged.
    shutil.rmtree(bundle / "wheels")
    assert sh(bundle / "install.sh", home, tools).returncode == 1
    assert edgechat(home, tools, "--version").returncode == 0
    gone = sh(bundle / "uninstall.sh", home, tools)
    assert gone.returncode == 0, gone.stderr
    assert not (home / ".local" / "bin" / "edgechat").exists()
    assert not (home / ".local" / "share" / "edgechat" / "venv").exists()
    assert (home / ".local" / "share" / "edgechat" / "history.db").exists()
    assert mine.exists()
    assert not (home / ".local" / "share" / "edgechat" / "bundle-models").exists()
    assert sh(bundle / "uninstall.sh", home, tools).returncode == 1


def kill_installer(bundle: Path, home: Path, tools: Path) -> None:
    """Start the installer and kill it when it has installed some packages."""
    home.mkdir()
    child = subprocess.Popen(
        ["/bin/sh", bundle / "install.sh"],
        env={"HOME": str(home), "PATH": str(tools)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    packages = home / ".local" / "share" / "edgechat" / "venv-new" / "lib" / f"python{PYTHON}" / "site-packages"
    until(lambda: packages.exists() and len(os.listdir(packages)) > 5, 600)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def test_installer_uses_pipx_if_available(bundle: Path, tools: Path, tmp_path: Path) -> None:
    home = tmp_path / "user"
    (tools / "pipx").symlink_to(Path(sys.executable).parent / "pipx")
    where = {"PIPX_HOME": str(home / "pipx"), "PIPX_BIN_DIR": str(home / ".local" / "bin")}
    done = sh(bundle / "install.sh", home, tools, **where)
    assert done.returncode == 0, done.stderr
    answer = edgechat(home, tools, *QUESTION)
    assert answer.stdout.startswith("Gravity"), answer.stderr
    assert "edgechat_cuda13 is for llama.cpp 1234567" in answer.stderr
    assert "pipx uninstall edgechat" in edgechat(home, tools, "uninstall").stdout
    gone = sh(bundle / "uninstall.sh", home, tools, **where)
    assert gone.returncode == 0, gone.stderr
    assert not (home / ".local" / "bin" / "edgechat").exists()


def test_changed_byte_is_found_before_installing(bundle: Path, tools: Path, tmp_path: Path) -> None:
    wheel = max((bundle / "wheels").iterdir(), key=lambda w: w.stat().st_size)
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.unlink()
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
def test_full_disk_is_reported(bundle: Path, tools: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    before = mounted(place, "size=90m")
    full = sh(bundle / "install.sh", tmp_path / "user", tools, before=before, EDGECHAT_PREFIX=str(place))
    assert full.returncode == 1
    assert "MB needed" in full.stderr


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
    """The directory of temporary files allows no programs, where a test can mount one."""
    home, temporary = tmp_path / "user", tmp_path / "temporary"
    temporary.mkdir()
    before = mounted(temporary, "noexec") if can_cut_off() else ""
    place = "odd \"pre'fix $x"
    done = subprocess.run(
        [*cut_off(before), "/bin/sh", bundle / "install.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={
            "HOME": str(home),
            "PATH": str(tools),
            "TMPDIR": str(temporary),
            "EDGECHAT_PREFIX": place,
            "PIP_TARGET": str(tmp_path / "elsewhere"),
            "PIP_USER": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "elsewhere").exists()
    program = tmp_path / place / "bin" / "edgechat"
    answer = sh(program, home, tools, *QUESTION, before=before, TMPDIR=str(temporary))
    assert answer.stdout.startswith("Gravity"), answer.stderr
    prefix = str(tmp_path / place)
    gone = sh(bundle / "uninstall.sh", home, tools, "--purge", "--yes", EDGECHAT_PREFIX=prefix)
    assert gone.returncode == 0, gone.stderr
    assert not (home / ".local" / "share" / "edgechat").exists()


def test_unwritable_home_is_reported(bundle: Path, tools: Path, tmp_path: Path) -> None:
    home = tmp_path / "user"
    home.mkdir()
    (home / ".local").write_text("")  # a file, because root may write to any directory
    done = sh(bundle / "install.sh", home, tools)
    assert done.returncode == 1
    assert "EDGECHAT_PREFIX" in done.stderr


def test_archive_is_reproducible(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        import offline  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    packed = []
    for number in range(2):
        root = tmp_path / str(number) / "edgechat"
        for name in ("wheels/b.whl", "wheels/a.whl", "models/model.gguf", "install.sh")[:: 1 - 2 * number]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name * 1000)
            os.utime(root / name, (number, number))
        packed.append(offline.pack(root, tmp_path / f"{number}.tar.gz").read_bytes())
    assert packed[0] == packed[1]
