"""Attacks by objects: what one tenant writes costs no other tenant more than its share."""

import functools

import pytest

from tests.tenants.attacks import TABLE, Attack
from tests.tenants.more_attacks import MORE
from tests.tenants.rig import TenantRig
from tests.tenants.selection import EXCESS_MS, FULL

pytestmark = [pytest.mark.root]

LOG_KB = 200
"""Limit of the log during a small attack."""

MEMORY_MB = 80.0
"""Limit of the growth of memory during a small attack."""


@pytest.mark.parametrize("attack", [*TABLE, *MORE], ids=lambda attack: attack.title)
def test_attack(rig: TenantRig, attack: Attack) -> None:
    size = attack.full if FULL else attack.small
    rig.start()
    counts = rig.suffer(
        attack.title,
        functools.partial(attack.strike, **size),
        functools.partial(attack.prepare, **size),
    )
    assert counts.lost == 0
    assert counts.unwell == 0, "a probe was not answered with 200"
    assert rig.cluster.running
    assert counts.same, rig.differences[:5]
    if FULL:
        assert counts.excess <= EXCESS_MS
    else:
        assert counts.log_kb <= LOG_KB
        assert counts.peak_mb - counts.before_mb <= MEMORY_MB
