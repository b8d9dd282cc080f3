#!/usr/bin/env python3
"""Write a bill of materials (CycloneDX JSON) and the full licence texts of a folder of wheels.

    contents.py WHEELS SBOM.json THIRD_PARTY_LICENSES.txt

Both depend only on the wheels, so the same wheels give the same files.
"""

from __future__ import annotations

import email.message
import hashlib
import json
import sys
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from starter_wheel import toolchain

_LICENCE_NAMES = ("license", "licence", "copying", "notice", "authors")
_BUNDLE = "edgechat/_native/"
_STARTER = "SmolLM2-135M-Instruct"


class Part(NamedTuple):
    """Component of a package, for the bill of materials."""

    name: str
    version: str
    licence: str
    """Licence as the component states it; "" if it states none."""
    texts: tuple[str, ...]
    """Licence texts."""
    file: str
    """Name of the wheel or file that contains the component."""
    sha256: str
    """Hash of the wheel; "" for a component outside wheels."""
    url: str


def main() -> int:
    """Write both files as named on the command line."""
    folder, sbom, licences = (Path(argument) for argument in sys.argv[1:])
    write(folder, sbom, licences)
    return 0


def write(folder: Path, sbom: Path, licences: Path, *more: Part) -> None:
    """Write both files for the wheels in `folder` and for `more` components."""
    parts = [*more, *(part for wheel in sorted(folder.glob("*.whl")) for part in parts_of(wheel))]
    sbom.write_text(json.dumps(bill(parts), indent=1, ensure_ascii=False) + "\n", "utf-8")
    licences.write_text("\n".join(_page(part) for part in parts), "utf-8")


def parts_of(wheel: Path) -> Iterator[Part]:
    """Yield the project of a wheel and the third-party components inside it."""
    sha256, about = toolchain.digest(wheel), metadata(wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        texts = [n for n in names if ".dist-info/" in n and n.rpartition("/")[2].lower().startswith(_LICENCE_NAMES)]
        yield Part(
            str(about["Name"]), str(about["Version"]), licence_of(about),
            tuple(_text(archive, n) for n in sorted(texts)), wheel.name, sha256, f"https://pypi.org/project/{about['Name']}/",
        )  # fmt: skip
        if f"{_BUNDLE}manifest.json" in names:
            commit = json.loads(archive.read(f"{_BUNDLE}manifest.json"))["llama_cpp_commit"]
            text = _text(archive, f"{_BUNDLE}LICENSE.llama.cpp")
            yield Part("llama.cpp", commit, "MIT", (text,), wheel.name, sha256, "https://github.com/ggml-org/llama.cpp")
            text = _text(archive, f"{_BUNDLE}LICENSE.nlohmann-json")
            url = "https://github.com/nlohmann/json"
            yield Part("nlohmann-json", f"of llama.cpp {commit}", "MIT", (text,), wheel.name, sha256, url)
        if any(_STARTER in n for n in names):
            url = f"https://huggingface.co/HuggingFaceTB/{_STARTER}"
            yield Part(_STARTER, "Q4_1", "Apache-2.0", tuple(_text(archive, n) for n in texts), wheel.name, sha256, url)


def metadata(wheel: Path) -> email.message.Message:
    """Return the METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def plain(name: str) -> str:
    """Normalise a project name for comparison, as package indexes do."""
    return name.lower().replace("_", "-").replace(".", "-")


def name_of(wheel: Path) -> str:
    """Return the normalised project name of a wheel."""
    return plain(wheel.name.split("-")[0])


def licence_of(about: email.message.Message) -> str:
    """Return the SPDX expression in the metadata, or else the licence from the classifiers or the License field."""
    expression = about["License-Expression"]
    if expression:
        return str(expression)
    classifiers = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    return " and ".join(classifiers) or str(about["License"] or "").partition("\n")[0]


def _text(archive: zipfile.ZipFile, name: str) -> str:
    return archive.read(name).decode("utf-8", "replace").strip()


def _page(part: Part) -> str:
    rule = "=" * 100
    texts = "\n\n".join(part.texts) or f"({part.file} contains no licence text.)"
    return f"{rule}\n{part.name} {part.version}: {part.licence or 'see below'}\n{part.url}\n{rule}\n\n{texts}\n"


def bill(parts: list[Part]) -> dict[str, Any]:
    """Return the bill of materials; its serial number is derived from its content."""
    components = [_component(part) for part in parts]
    digest = hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "serialNumber": f"urn:uuid:{uuid.UUID(digest[:32], version=4)}", "components": components,
    }  # fmt: skip


def _component(part: Part) -> dict[str, Any]:
    is_package = part.url.startswith("https://pypi.org/")
    kind = {_STARTER: "machine-learning-model", "edgechat": "application"}.get(part.name, "library")
    component: dict[str, Any] = {
        "type": kind, "bom-ref": f"{part.name}@{part.version}:{part.file}", "name": part.name, "version": part.version,
        "properties": [{"name": "edgechat:file", "value": part.file}],
    }  # fmt: skip
    if part.url:
        component["externalReferences"] = [{"type": "website", "url": part.url}]
    if is_package:
        component["purl"] = f"pkg:pypi/{plain(part.name)}@{part.version}"
        component["hashes"] = [{"alg": "SHA-256", "content": part.sha256}]
    if part.licence:
        component["licenses"] = [{"license": {"name": part.licence}}]
    return component


if __name__ == "__main__":
    sys.exit(main())
