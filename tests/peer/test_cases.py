"""The named cases: after each step, packets have the same outcome with kube-proxy and with kproxy."""

import pytest

from tests.peer.cases import CASES
from tests.peer.cases.words import Case
from tests.peer.site import Site

pytestmark = pytest.mark.root


@pytest.mark.parametrize("case", CASES, ids=str)
def test_packets_fare_alike(case: Case, site: Site) -> None:
    version = site.peer.version
    if version < case.since:
        pytest.skip(f"kube-proxy {version[0]}.{version[1]} is older than {case.since[0]}.{case.since[1]}")
    if version >= case.until:
        pytest.skip("the order in which kube-proxy reads slices is random, and so is what it does here")
    for number in site.play(case):
        found = site.differences()
        assert not found, f"after step {number}:\n" + "\n".join(found)
