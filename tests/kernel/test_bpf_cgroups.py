"""The root of cgroup2 is found; a part of the hierarchy that looks like it is recognized with a reason."""

import subprocess
import sys
from pathlib import Path

import pytest

from kproxy.kernel.bpf.cgroups import cgroup2_mounts, find_root
from kproxy.kernel.bpf.types import BpfError, BpfFailure

_LINE = "41 31 0:38 {root} {path} rw,relatime shared:7 - {kind} cgroup2 rw\n"
_OTHER = "24 1 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def mounts(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(_OTHER + "".join(lines), encoding="utf-8")
    return path


def refusal(mountinfo: Path) -> str:
    with pytest.raises(BpfError) as caught:
        find_root(mounts=mountinfo)
    assert caught.value.kind is BpfFailure.MISSING
    return caught.value.message


def test_a_node_without_cgroup2_says_so(tmp_path: Path) -> None:
    assert "no cgroup2 is mounted" in refusal(mounts(tmp_path))


def test_a_private_namespace_is_told_apart_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "cgroup").mkdir()
    message = refusal(mounts(tmp_path, _LINE.format(root="/", path=tmp_path / "cgroup", kind="cgroup2")))
    assert "private cgroup namespace" in message
    assert str(tmp_path / "cgroup") in message


def test_a_mount_of_a_part_is_named_with_the_part(tmp_path: Path) -> None:
    (tmp_path / "cgroup").mkdir()
    line = _LINE.format(root="/kubepods/pod7", path=tmp_path / "cgroup", kind="cgroup2")
    assert "shows the cgroup /kubepods/pod7" in refusal(mounts(tmp_path, line))


def test_a_mount_that_is_hidden_is_named_with_its_error(tmp_path: Path) -> None:
    line = _LINE.format(root="/", path=tmp_path / "gone", kind="cgroup2")
    assert f"{tmp_path / 'gone'}: No such file" in refusal(mounts(tmp_path, line))


def test_the_first_mount_with_the_inode_of_the_root_is_taken(tmp_path: Path) -> None:
    """/proc has inode 1 for its root too."""
    (tmp_path / "part").mkdir()
    part = _LINE.format(root="/", path=tmp_path / "part", kind="cgroup2")
    whole = _LINE.format(root="/", path="/proc", kind="cgroup2")
    assert find_root(mounts=mounts(tmp_path, part, whole)) == Path("/proc")


def test_blanks_in_paths_are_read(tmp_path: Path) -> None:
    path = mounts(tmp_path, _LINE.format(root="/a\\040b", path="/c\\011d\\134e", kind="cgroup2"))
    (found,) = cgroup2_mounts(path)
    assert (found.root, str(found.path)) == ("/a b", "/c\td\\e")


@pytest.mark.parametrize("path", ["/proc", "/nowhere/at/all"])
def test_a_configured_directory_that_is_no_cgroup_is_refused(path: str) -> None:
    with pytest.raises(BpfError) as caught:
        find_root(path)
    assert caught.value.kind is BpfFailure.MISSING
    assert f"cgroupRoot {path}" in caught.value.message


def test_a_configured_cgroup_wins(cgroup: Path) -> None:
    assert find_root(str(cgroup)) == cgroup
    assert find_root() == cgroup.parent
    assert find_root().stat().st_ino == 1


@pytest.mark.root
def test_a_real_cgroup_namespace_has_another_root(cgroup: Path, tmp_path: Path) -> None:
    """The namespace begins at the cgroup of the process that makes it: here a child of the root."""
    code = (
        "from kproxy.kernel.bpf import cgroups, types\n"
        "try: print(cgroups.find_root())\n"
        "except types.BpfError as error: print(error)\n"
    )
    (tmp_path / "cgroup").mkdir()
    shell = 'umount -a -t cgroup2 && mount -t cgroup2 none "$1" && exec "$2" -c "$3"'
    argv = [
        "unshare",
        "--cgroup",
        "--mount",
        "sh",
        "-c",
        shell,
        "sh",
        str(tmp_path / "cgroup"),
        sys.executable,
        code,
    ]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(f"no cgroup namespace can be made: {ended.stderr.strip()}")
    assert "private cgroup namespace" in ended.stdout
