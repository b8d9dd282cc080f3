"""Control groups of this process: nested groups of both versions, containers and unusual mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.hardware.cgroups import list_groups


def write_membership(root: Path, text: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


def list_paths(root: Path, controller: str, version: int) -> list[str]:
    mount = root / "sys/fs/cgroup"
    groups = [g for g in list_groups(controller, root) if g.version == version]
    return [str(g.directory.relative_to(mount)) for g in groups]


def test_group_and_all_its_parents_are_listed_in_version_2(tmp_path: Path) -> None:
    write_membership(tmp_path, "0::/user.slice/app.scope\n")
    assert list_paths(tmp_path, "cpu", 2) == [
        "user.slice/app.scope", "user.slice", ".",
        "unified/user.slice/app.scope", "unified/user.slice", "unified",
    ]  # fmt: skip
    assert list_paths(tmp_path, "cpu", 1) == []


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_group_of_the_controller_is_listed_in_version_1(tmp_path: Path, controllers: str) -> None:
    write_membership(tmp_path, f"5:memory:/other\n4:{controllers}:/box/inner\n1:name=systemd:/\n")
    expected = {"cpu/box/inner", "cpu/box", "cpu", f"{controllers}/box/inner", f"{controllers}/box", controllers}
    assert set(list_paths(tmp_path, "cpu", 1)) == expected
    assert "memory/other" in list_paths(tmp_path, "memory", 1)


def test_group_outside_the_container_lists_only_the_mount(tmp_path: Path) -> None:
    write_membership(tmp_path, "0::/../../host.slice\n")
    assert list_paths(tmp_path, "cpu", 2) == [".", "unified"]


@pytest.mark.parametrize("text", ["", "nonsense", "0", "::", "0::"])
def test_unreadable_membership_lists_no_group_below_the_mount(tmp_path: Path, text: str) -> None:
    write_membership(tmp_path, text)
    assert all(path in {".", "unified"} for path in list_paths(tmp_path, "cpu", 2))
    assert list(list_groups("cpu", tmp_path / "none")) == []
