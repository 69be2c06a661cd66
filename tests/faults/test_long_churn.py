"""A short run of the long churn: many changes, restores that fail at random, the state of a fresh sync."""

import pytest

from benchmarks.long_churn import TOOL_FAULTS, Settings, run
from kproxy_lab.lab import Lab
from tests.suite import mounts

pytestmark = pytest.mark.root


def test_a_churn_with_failures_ends_as_a_fresh_sync() -> None:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    mounts.needed()
    outcome = run(
        Settings(seconds=6, services=50, endpoints=3, rate=100, failures=0.4), progress=lambda _: None
    )
    assert outcome.differences == []
    assert outcome.changes.total() == 600
    assert outcome.failures.keys() <= set(TOOL_FAULTS)
    assert outcome.failures.total() > 0
    assert outcome.chains > 50
    assert outcome.growth < 8
