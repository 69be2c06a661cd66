"""How much of the matrix {test} x {mode} x {family} x {cases} a run goes through.

`make test` runs every test in every mode that can do it, and alternates the rest: of two families, or cases
that a test lists with the marker `alternates`, a mode gets every second one, and the next mode the others.
`make test-all` (KPROXY_MATRIX=all) runs the full product, and longer histories.
"""

import os
import zlib
from collections.abc import Iterable

import pytest

EVERYTHING = os.environ.get("KPROXY_MATRIX") == "all"
SEED = int(os.environ.get("KPROXY_SEED", "0"))
"""Seed of the random histories; 0: the fixed ones. It is printed at the end of a run."""

HISTORIES = 4
"""Of the examples of a history or property, `make test` tries one in this many."""


def examples(number: int) -> int:
    """How many examples of a property to try, of the number that `make test-all` tries."""
    return number if EVERYTHING or SEED else max(10, number // HISTORIES)


class Matrix:
    """Deselects what this run does not go through, but for tests that are named one by one."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if any("::" in argument for argument in config.args):
            return
        left = [item for item in items if not applies(item) or not (EVERYTHING or chosen(item))]
        if left:
            config.hook.pytest_deselected(items=left)
            gone = set(left)
            items[:] = [item for item in items if item not in gone]


def applies(item: pytest.Item) -> bool:
    """Whether the item's mode has every capability that it needs."""
    callspec = getattr(item, "callspec", None)
    mode = callspec.params.get("mode") if callspec is not None else None
    needed = {capability for marker in item.iter_markers("needs") for capability in marker.args}
    return mode is None or not needed or needed <= mode.capabilities


def chosen(item: pytest.Item) -> bool:
    """Whether `make test` runs the item."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return True
    indices: dict[str, int] = callspec.indices
    marker = item.get_closest_marker("alternates")
    names: Iterable[str] = marker.args if marker else ()
    # A test of one mode alone has no other mode in which it meets the other family.
    if marker is None and "mode" in indices and item.get_closest_marker("needs") is None:
        names = ("family",)
    turns = [indices[name] for name in names if name in indices]
    if not turns:
        return True
    name = getattr(item, "originalname", item.name)
    return (sum(turns) + indices.get("mode", 0) + zlib.crc32(name.encode())) % 2 == 0
