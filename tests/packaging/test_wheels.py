"""The wheelhouse: installation without a network and a compiler, and the content of wheels."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.conftest import ROOT

pytestmark = pytest.mark.long


def test_wheel_contains_no_working_tree_files(wheelhouse: Path) -> None:
    names = zipfile.ZipFile(next(wheelhouse.glob("edgechat-[0-9]*.whl"))).namelist()
    assert "edgechat/_native/manifest.json" in names
    assert not [n for n in names if "_native_link" in n or n.endswith(".gguf") or n.startswith("tests")]
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_wheel_has_a_platform_tag_and_is_small(wheelhouse: Path) -> None:
    (wheel,) = wheelhouse.glob("edgechat-[0-9]*.whl")
    assert wheel.name.endswith(f"-py3-none-manylinux_2_34_{platform.machine()}.whl")
    assert wheel.stat().st_size < 20e6


def test_contents_and_licences_are_listed(wheelhouse: Path, tmp_path: Path) -> None:
    contents = []
    for number in range(2):
        sbom, licences = tmp_path / f"{number}.json", tmp_path / f"{number}.txt"
        subprocess.run([sys.executable, ROOT / "packaging" / "contents.py", wheelhouse, sbom, licences], check=True)
        contents.append(sbom.read_bytes() + licences.read_bytes())
    assert contents[0] == contents[1]
    found = json.loads(sbom.read_text())
    names = {component["name"] for component in found["components"]}
    assert {"edgechat", "llama.cpp", "SmolLM2-135M-Instruct", "llguidance", "textual", "numpy"} <= names
    files = {p["value"] for c in found["components"] for p in c["properties"]}
    assert files == {wheel.name for wheel in wheelhouse.iterdir()}
    assert all(component.get("licenses") for component in found["components"])
    text = licences.read_text()
    assert text.count("Apache License") >= 2
    assert "No text of it" not in text
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.read_text()) is None


def test_wheels_are_reproducible(wheelhouse: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, pathlib, wheels; wheels.build_own_wheels(pathlib.Path(sys.argv[1]))",
            str(again),
        ],
        check=True,
        cwd=ROOT / "packaging",
        env=os.environ | {"EDGECHAT_CPU_VARIANTS": "dev"},
    )
    assert len(list(again.iterdir())) == 3
    for wheel in again.iterdir():
        assert wheel.read_bytes() == (wheelhouse / wheel.name).read_bytes(), wheel.name


def test_libraries_do_not_contain_build_paths(wheelhouse: Path) -> None:
    with zipfile.ZipFile(next(wheelhouse.glob("edgechat-[0-9]*.whl"))) as archive:
        libraries = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    assert sum(library.count(b"/vendor/llama.cpp/ggml/src/") for library in libraries) > 9
    assert not [library for library in libraries if re.search(rb"\0/[^\0]*/vendor/llama.cpp", library)]
