"""Random objects within the API's limits: another tenant's changes stay quick, and nothing ends.

The seed is that of KPROXY_TENANTS_SEED, and printed with the table. A full run throws them for ten minutes.
"""

import time

import pytest

from tests.tenants.attacker import Attacker
from tests.tenants.random_objects import RandomObjects
from tests.tenants.rig import TenantRig
from tests.tenants.selection import FULL, GROWTH, MINUTES, P99_MS, SEED, modes

THROWN = 60
"""Objects of a short run."""

SMALL = 60_000
"""Bytes of an object at most, in a short run."""

PAUSE = 0.05 if FULL else 0.01
"""Seconds between two objects."""

GROWTH_MB = 100.0
"""Limit of the growth of memory in a short run."""


def throw_for(minutes: float, attacker: Attacker) -> None:
    objects = RandomObjects(SEED, attacker) if FULL else RandomObjects(SEED, attacker, largest=SMALL)
    deadline = time.monotonic() + minutes * 60
    while not attacker.stopped and (time.monotonic() < deadline or objects.thrown < THROWN):
        objects.throw()
        attacker.pause(PAUSE)


@pytest.mark.root
@pytest.mark.timeout(120 + MINUTES * 120)
@modes("nftables")
def test_random_objects(rig: TenantRig) -> None:
    rig.start()
    counts = rig.suffer(
        "random objects", lambda attacker: throw_for(MINUTES, attacker), longest=60 + MINUTES * 70
    )
    assert counts.lost == 0
    assert counts.unwell == 0, "a probe was not answered with 200"
    assert rig.cluster.running
    assert counts.same, rig.differences[:5]
    if FULL:
        assert counts.p99 <= P99_MS
        assert counts.peak_mb <= GROWTH * counts.before_mb
    else:
        assert counts.peak_mb - counts.before_mb <= GROWTH_MB
