"""Selects how much of the matrix {test} x {mode} x {family} x {cases} a run covers.

`make test` runs every test in every mode that can do it, and alternates the rest: of two families, or cases
that a test lists with the marker `alternates`, a mode gets every second one, and the next mode the others. A
mode that shares its rules with another one runs some files of tests only (Mode.usual).
`make test-all` (KPROXY_MATRIX=all) runs the full product, and longer histories.
"""

import os
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest

EVERYTHING = os.environ.get("KPROXY_MATRIX") == "all"
SEED = int(os.environ.get("KPROXY_SEED", "0"))
"""Seed of the random histories; 0: the fixed ones. It is printed at the end of a run."""

HISTORIES = 4
"""`make test` runs one in this many of the examples of a history or property."""


def examples(number: int) -> int:
    """Return the number of examples of a property to run; `number` is that of `make test-all`."""
    return number if EVERYTHING or SEED else max(10, number // HISTORIES)


class Matrix:
    """Deselects what this run does not cover, except tests that are named one by one."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if any("::" in argument for argument in config.args):
            return
        kept = [item for item in items if applies(item)]
        if not EVERYTHING:
            kept = alternating(kept)
        left = set(items).difference(kept)
        if left:
            config.hook.pytest_deselected(items=[item for item in items if item in left])
            items[:] = kept


def applies(item: pytest.Item) -> bool:
    """Whether the item's mode has every capability that it needs, and this run wants it in that mode."""
    mode = _parameters(item).get("mode")
    usual = getattr(mode, "usual", None)  # other tests have modes of other types
    if usual is not None and not EVERYTHING:
        names_modes = any("mode" in marker.args[0] for marker in item.iter_markers("parametrize"))
        if not names_modes and not {item.path.name, getattr(item, "originalname", "")} & usual:
            return False
    needed = {capability for marker in item.iter_markers("needs") for capability in marker.args}
    return mode is None or not needed or needed <= mode.capabilities


def alternating(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Of items with alternating parameters, every second combination in each mode."""
    values: dict[tuple[str, str], list[str]] = defaultdict(list)
    kept = []
    for item in items:
        test = item.nodeid.partition("[")[0]
        turn = zlib.crc32(test.encode())
        names = _alternating(item)
        for name in [*names, "mode"] if names else ():
            known, value = values[test, name], repr(_parameters(item).get(name))
            if value not in known:
                known.append(value)
            turn += known.index(value)
        if not names or turn % 2 == 0:
            kept.append(item)
    return kept


def _alternating(item: pytest.Item) -> Sequence[str]:
    parameters = _parameters(item)
    if marker := item.get_closest_marker("alternates"):
        return [name for name in marker.args if name in parameters]
    # A test of one mode only has no other mode that covers the other family.
    many = "mode" in parameters and item.get_closest_marker("needs") is None
    return ["family"] if many and "family" in parameters else []


def _parameters(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec is not None else {}
