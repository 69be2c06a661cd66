"""What a run goes through by default: every test in each of its modes, every family, and all if asked."""

import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.packets.modes import MODES, Mode

ROOT = Path(__file__).parents[2]
NAMES = [getattr(each, "id", None) or str(each) for each in MODES]
FEWER = {each.name: each.usual for each in MODES if isinstance(each, Mode) and each.usual is not None}
"""The modes that share their rules with another one, and the files and tests that they run by default."""


def collected(*arguments: str, **environment: str) -> list[str]:
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-n", "0", "-o", "addopts=", "-q", *arguments]
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("KPROXY_", "PYTEST_"))}
    done = subprocess.run(
        argv, cwd=ROOT, env=keep | environment, capture_output=True, text=True, timeout=120, check=True
    )
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.fixture(scope="module")
def usual() -> list[str]:
    return collected("tests/packets", "tests/faults", "--ipvs-kernels", "0")


@pytest.fixture(scope="module")
def everything() -> list[str]:
    return collected("tests/packets", "tests/faults", "--ipvs-kernels", "0", KPROXY_MATRIX="all")


def split(nodeid: str) -> tuple[str, list[str]]:
    name, _, parameters = nodeid.partition("[")
    return name, parameters.rstrip("]").split("-") if parameters else []


def test_each_test_runs_in_each_mode_that_the_whole_matrix_has_for_it(
    usual: list[str], everything: list[str]
) -> None:
    def modes(ids: list[str]) -> dict[str, set[str]]:
        found: defaultdict[str, set[str]] = defaultdict(set)
        for nodeid in ids:
            name, parameters = split(nodeid)
            found[name] |= {"", *parameters} & {"", *NAMES}
        return found

    wanted = modes(everything)
    for name in wanted:
        file, _, test = name.partition("::")
        wanted[name] -= {mode for mode, usual in FEWER.items() if not {Path(file).name, test} & usual}
    assert modes(usual) == {name: found for name, found in wanted.items() if found}
    assert set(usual) < set(everything)


def test_each_family_is_met_by_every_test_and_by_every_mode(usual: list[str], everything: list[str]) -> None:
    def pairs(ids: list[str]) -> set[tuple[str, str]]:
        found = set()
        for nodeid in ids:
            name, parameters = split(nodeid)
            found |= {(name, family) for family in {"IPv4", "IPv6"} & set(parameters)}
        return found

    missed = pairs(everything) - pairs(usual)
    assert missed == set()
    met = Counter(
        (mode, family)
        for nodeid in usual
        for mode in NAMES
        for family in ("IPv4", "IPv6")
        if {mode, family} <= set(split(nodeid)[1])
    )
    assert all(met[mode, family] > (0 if mode in FEWER else 30) for mode, family in met), met
    assert {mode for mode, _ in met} == set(NAMES)


def test_a_mode_is_not_asked_for_what_it_cannot_do(everything: list[str]) -> None:
    assert not [i for i in everything if "tests/packets/test_ipvs.py" in i and "ipvs" not in split(i)[1]]


def test_a_test_that_is_named_runs_whatever_its_turn(usual: list[str], everything: list[str]) -> None:
    left = next(iter(sorted(set(everything) - set(usual))))
    assert collected(left, "--ipvs-kernels", "0") == [left]
