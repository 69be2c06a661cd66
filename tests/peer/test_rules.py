"""The named cases once more, by the rules that come of them: the same chains with the same rules."""

import time

import pytest

from tests.peer import rules
from tests.peer.cases import CASES
from tests.peer.cases.words import Case
from tests.peer.differences import View
from tests.peer.site import DEADLINE, Runner, Site

pytestmark = pytest.mark.root

PAIRS = (("kube-proxy nft", "kproxy nft"), ("kube-proxy legacy", "kproxy legacy"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rules_are_the_same(case: Case, site: Site) -> None:
    version = site.peer.version
    if version < case.since or version >= case.until:
        pytest.skip(f"kube-proxy {version[0]}.{version[1]} does otherwise")
    runners = {str(runner.contender): runner for runner in site.runners}
    for number, step in enumerate(case.steps):
        site.write(*step.write, validate=step.validate)
        for kind, name in step.delete:
            site.delete(kind, name)
        site.settle()
        services = site.services()
        if View(services).any_contested or any(s["metadata"]["name"] == "left" for s in services):
            pytest.skip("whose rules count is kproxy's own choice here")
        for names in PAIRS:
            theirs, ours = (runners[name] for name in names)
            found = _differences(theirs, ours, site)
            assert not found, f"after step {number}, {names[1]}:\n" + "\n".join(found)


def _differences(theirs: Runner, ours: Runner, site: Site) -> list[str]:
    """What differs between the two in either family, once both have come to rest."""
    deadline = time.monotonic() + DEADLINE
    while True:
        found = [
            each
            for stem in ("iptables", "ip6tables")
            for each in rules.differences(_saved(theirs, stem), _saved(ours, stem), site.peer.version)
        ]
        # Chains that nobody needs any more go after the sync that the fence has seen.
        if not found or time.monotonic() > deadline:
            return found


def _saved(runner: Runner, stem: str) -> str:
    return runner.lab.node.run([f"{stem}-{runner.contender.variant}-save"]).stdout
