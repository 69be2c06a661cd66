"""The named cases compared by rules: the same chains with the same rules."""

import time

import pytest

from tests.peer import rules
from tests.peer.cases import CASES
from tests.peer.cases.words import Case
from tests.peer.differences import IDLE, View
from tests.peer.objects import service, slices
from tests.peer.site import DEADLINE, Runner, Site

pytestmark = pytest.mark.root

PAIRS = (("kube-proxy nft", "kproxy nft"), ("kube-proxy legacy", "kproxy legacy"))


MANY = 1001
"""One endpoint more than kube-proxy writes comments for (largeClusterEndpointsThreshold)."""


@pytest.mark.parametrize("affinity", ["None", "ClientIP"])
def test_rules_of_a_service_of_a_thousand_endpoints_are_the_same(affinity: str, site: Site) -> None:
    halves = [slices("web", suffix=suffix, families=[4])[0] for suffix in "ab"]
    for number in range(MANY):
        address = f"10.244.{128 + number // 250}.{1 + number % 250}"
        halves[number % 2]["endpoints"].append({"addresses": [address], "conditions": {"ready": True}})
    site.write(service("web", sessionAffinity=affinity), *halves)
    site.settle()
    runners = {str(runner.contender): runner for runner in site.runners}
    for names in PAIRS:
        kube_proxy, kproxy = (runners[name] for name in names)
        found = _differences(kube_proxy, kproxy, site)
        assert not found, f"{names[1]}:\n" + "\n".join(line[:500] for line in found[:5])
        chains = rules.parse(_saved(kproxy, "iptables"))
        assert sum(chain.startswith("KUBE-SEP-") for _, chain in chains) > MANY


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rules_are_the_same(case: Case, site: Site) -> None:
    version = site.peer.version
    if version < case.since or version >= case.until:
        pytest.skip(f"kube-proxy {version[0]}.{version[1]} does otherwise")
    runners = {str(runner.contender): runner for runner in site.runners}
    for number in site.play(case):
        services = site.services()
        own_choice = {s["metadata"]["name"] for s in services} & {IDLE, "left"}
        if View(services).any_contested or own_choice:
            pytest.skip("whose rules count is kproxy's own choice here")
        for names in PAIRS:
            kube_proxy, kproxy = (runners[name] for name in names)
            found = _differences(kube_proxy, kproxy, site)
            assert not found, f"after step {number}, {names[1]}:\n" + "\n".join(found)


def _differences(kube_proxy: Runner, kproxy: Runner, site: Site) -> list[str]:
    """Return the differences of both rulesets in either family, once they no longer change."""
    deadline = time.monotonic() + DEADLINE
    while True:
        found = [
            each
            for stem in ("iptables", "ip6tables")
            for each in rules.differences(_saved(kube_proxy, stem), _saved(kproxy, stem), site.peer.version)
        ]
        # Unused chains are deleted after the sync that the barrier waits for.
        if not found or time.monotonic() > deadline:
            return found


def _saved(runner: Runner, stem: str) -> str:
    return runner.lab.node.run([f"{stem}-{runner.contender.variant}-save"]).stdout
