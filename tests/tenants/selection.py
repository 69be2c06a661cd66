"""Sizes of the attacks: small ones by default, those of a real adversary with KPROXY_TENANTS=all."""

import os
from pathlib import Path

import pytest

from tests.packets.modes import MODES, Mode

FULL = os.environ.get("KPROXY_TENANTS") == "all"

_MODES = {str(each if isinstance(each, Mode) else each.id): each for each in MODES}


def modes(*small: str, never: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Run a test in these modes; in full runs in all modes except `never`."""
    names = [name for name in _MODES if name not in never] if FULL else small
    return pytest.mark.parametrize("mode", [_MODES[name] for name in names], indirect=True, ids=str)


MINUTES = float(os.environ.get("KPROXY_TENANTS_MINUTES", "10" if FULL else "0"))
"""How long random objects are thrown; 0: a few objects."""

SEED = int(os.environ.get("KPROXY_TENANTS_SEED", "15"))

RESULTS = Path(os.environ["KPROXY_TENANTS_RESULTS"]) if "KPROXY_TENANTS_RESULTS" in os.environ else None
"""The file of results that a run updates; None: none."""

REFERENCE = os.environ.get("KPROXY_TENANTS_COLUMN") == "before"
"""Write the figures of this run as those to compare with, which later runs keep."""

EXCESS_MS = 200.0
"""Limit of a victim's delay beyond the usual, in milliseconds (issue 15); checked in full runs only."""

P99_MS = 500.0
"""Limit of the victim's 99th percentile under random objects, in milliseconds; checked in full runs only."""

GROWTH = 2.0
"""Limit of the memory under random objects, as a multiple of that before; checked in full runs only."""
