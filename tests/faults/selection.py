"""Which fault runs in which modes: a cheap selection by default, all of them with KPROXY_FAULTS=all.

Faults of the API server, the clock or the log do not depend on the mode: one mode runs all of them, the
others those that affect how they write.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.packets.modes import MODES, Mode

EVERYTHING = os.environ.get("KPROXY_FAULTS") == "all"

LONG = pytest.mark.skipif(not EVERYTHING, reason="takes minutes in a user-mode kernel; KPROXY_FAULTS=all")

KILLS = int(os.environ.get("KPROXY_KILLS", "0"))
"""How often to kill kproxy at random moments; 0: a cheap number in each mode."""

RESULTS = Path(os.environ["KPROXY_FAULTS_RESULTS"]) if "KPROXY_FAULTS_RESULTS" in os.environ else None
"""The file of results that a run updates; None: none."""

_BY_NAME: dict[str, ParameterSet] = {}
for _each in MODES:
    _set = pytest.param(_each, id=str(_each)) if isinstance(_each, Mode) else _each
    assert _set.id is not None
    _BY_NAME[str(_set.id)] = _set

NAMES = tuple(_BY_NAME)

IPVS = _BY_NAME["ipvs"]
"""For tests that need a kernel of their own."""


def modes(*names: str, never: Collection[str] = ()) -> pytest.MarkDecorator:
    """Run a test in these modes; with KPROXY_FAULTS=all in all modes except `never`."""
    wanted = [name for name in NAMES if name not in never] if EVERYTHING else names
    chosen = [_BY_NAME[name] for name in wanted]
    return pytest.mark.parametrize("mode", chosen, indirect=True)


def cases(
    argument: str,
    names: Iterable[str],
    first: str,
    others: Mapping[str, Collection[str]],
    never: Collection[str] = (),
) -> pytest.MarkDecorator:
    """Run a test with every name in mode `first` and with some names in `others`.

    With KPROXY_FAULTS=all, with every name in every mode except `never`, where the test does not apply.
    """
    wanted = {first: tuple(names)} | {mode: tuple(some) for mode, some in others.items()}
    if EVERYTHING:
        wanted = dict.fromkeys((name for name in NAMES if name not in never), wanted[first])
    return pytest.mark.parametrize(
        ("mode", argument),
        [
            pytest.param(*_BY_NAME[mode].values, name, id=f"{mode}-{name}", marks=_BY_NAME[mode].marks)
            for mode, some in wanted.items()
            for name in some
        ],
        indirect=["mode"],
    )
