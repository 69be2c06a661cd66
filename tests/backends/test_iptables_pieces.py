"""A large service is written step by step, so that others wait for one step; the result is the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.backends.iptables import pieces
from kproxy.backends.iptables.layout import StandardLayout
from kproxy.backends.iptables.pieces import is_large, steps
from kproxy.backends.iptables.rules import ServiceRules, SharedLines
from kproxy.backends.iptables.scalable import ScalableLayout
from kproxy.kernel.xtables.types import Variant
from tests.backends.iptables_node import IptablesNode
from tests.builders import endpoint_slice, port, service

PORTS = [port(80 + n, f"p{n}") for n in range(6)]
CHAINS = st.dictionaries(
    st.builds(lambda kind, n: f"KUBE-{kind}-{n}", st.sampled_from(["SVC", "SEP", "EXT"]), st.integers(0, 20)),
    st.integers(0, 4).map(lambda n: "-A RULE\n" * n),
)
RULES = st.builds(
    lambda chains, line: ServiceRules(chains, SharedLines(nat_services=(line,))),
    CHAINS,
    st.sampled_from(["-A a\n", "-A b\n"]),
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 20)


@given(RULES, RULES, st.integers(0, 8))
def test_each_step_is_small_and_chains_exist_while_others_refer_to_them(
    old: ServiceRules, new: ServiceRules, cut: int
) -> None:
    reached = list(itertools.islice(steps(old, new), cut))
    reached += steps(reached[-1] if reached else old, new)
    assert reached[-1] == new
    switched = False
    for before, after in itertools.pairwise([old, *reached]):
        came = after.chains.keys() - before.chains.keys()
        went = before.chains.keys() - after.chains.keys()
        for chains, texts in ((came, after.chains), (went, before.chains)):
            assert sum(1 + texts[chain].count("\n") for chain in chains) < pieces.PIECE + 5
        changes = {
            c for c in before.chains.keys() & after.chains.keys() if before.chains[c] != after.chains[c]
        }
        if changes or before.shared != after.shared:
            assert not switched, "what packets meet changes in one step"
            switched = True
            assert after.chains.keys() >= new.chains.keys()
        # Endpoint chains come before the chains that lead to them, and go after these.
        if any("-SEP-" in chain for chain in new.chains.keys() - after.chains.keys()):
            assert not any("-SVC-" in chain for chain in came) or any("-SEP-" in chain for chain in came)


def test_a_change_of_few_chains_is_not_large() -> None:
    small = ServiceRules({"KUBE-SVC-1": "-A KUBE-SVC-1\n" * 100})
    assert not is_large(small, ServiceRules({"KUBE-SVC-1": "-A KUBE-SVC-1\n" * 101}))
    assert is_large(ServiceRules(), small)
    assert is_large(small, ServiceRules())


@pytest.mark.parametrize("layout", [StandardLayout, ScalableLayout])
def test_others_are_written_first_and_the_kernel_ends_as_from_scratch(
    layout: type[StandardLayout | ScalableLayout],
) -> None:
    node = IptablesNode(Variant.NFT, layout=layout)
    node.put(service("small", "10.96.0.2"), endpoint_slice("10.1.9.1", service="small"))
    node.done()

    def drain(*, steps: int) -> None:
        """Sync with no time, as often as it takes."""
        node.plan()
        for number in itertools.count(1):
            report = node.backend.sync(0.0)
            assert report.error is None
            assert not report.failed
            if not report.unfinished:
                break
            assert report.unfinished == {"ns1/big"}
            if number == 1:
                assert any("10.1.9." in line for line in report_lines())
        assert number >= steps
        assert node.state() == node.fresh()
        assert node.backend.check(full=True) == ()

    def report_lines() -> list[str]:
        return [str(each) for each in node.state()["nat"].values()]

    pods = [f"10.1.1.{n}" for n in range(1, 9)]
    node.put(service("big", "10.96.0.3", ports=PORTS), endpoint_slice(*pods, service="big", ports=PORTS))
    node.put(None, endpoint_slice("10.1.9.2", service="small"))
    drain(steps=3)
    node.put(None, endpoint_slice(*(f"10.1.2.{n}" for n in range(1, 9)), service="big", ports=PORTS))
    drain(steps=1 if layout is ScalableLayout else 6)
    node.drop("ns1/big")
    drain(steps=3)
