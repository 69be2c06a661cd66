"""How many product files know a mode outside its own rooms; the numbers may only fall."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kproxy

ROOT = Path(kproxy.__file__).parent
ROOMS = ("backends/{0}/", "modes/{0}/")
BUILT_ON = {"nftables": ("modes/ebpf/",)}
"""Rooms of modes that put something in front of another mode, which they know."""
KERNEL = "kernel/"
"""Interfaces of the kernel have the kernel's own names; they are no mode's."""

MOST = {"iptables": 33, "ipvs": 19, "nftables": 18, "ebpf": 10}
"""Files in which the code, docstrings and comments aside, has the name in it."""

_DOCSTRING = re.compile(r'"""(?:[^"]|"(?!""))*"""', re.DOTALL)
_COMMENT = re.compile(r"#.*")


def naming(mode: str) -> list[str]:
    found = []
    own = tuple(room.format(mode) for room in ROOMS) + BUILT_ON.get(mode, ())
    for file in sorted(ROOT.rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        if path.startswith((*own, KERNEL)):
            continue
        code = _COMMENT.sub("", _DOCSTRING.sub("", file.read_text()))
        if mode in code.lower():
            found.append(path)
    return found


@pytest.mark.parametrize("mode", MOST)
def test_no_more_files_know_a_mode_than_before(mode: str) -> None:
    found = naming(mode)
    assert len(found) <= MOST[mode], f"{mode} is named in: {', '.join(found)}"


def test_no_branch_on_the_mode_outside_its_rooms() -> None:
    branch = re.compile(r"(?:==|!=|\bin|\bcase)\s*[({]?\s*['\"](?:iptables|ipvs|nftables|ebpf)['\"]")
    product = (file for file in sorted(ROOT.rglob("*.py")) if "kernel" not in file.parts)
    assert [str(file.relative_to(ROOT)) for file in product if branch.search(file.read_text())] == []
