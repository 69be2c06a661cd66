"""What `explain` says of the kernel's rules is what packets do; KPROXY_EXPLAIN=1000 sends so many of each."""

import random
from collections.abc import Iterator

import pytest

from kproxy.kernel.xtables.types import Variant
from kproxy.modes.iptables import explain
from kproxy.plan.outcomes import PacketVerdict
from kproxy_lab.lab import Lab
from tests.explain import foreign
from tests.explain.judge import Judge, run, settings
from tests.explain.world import World, probes
from tests.peer.objects import SPEC

CASES = {
    **{
        f"iptables-{variant}-{layout}": settings(
            proxy_mode="iptables", iptables_variant=variant, iptables_layout=layout
        )
        for variant in Variant
        for layout in ("standard", "scalable")
    },
    "nftables": settings(proxy_mode="nftables"),
    "ipvs": settings(proxy_mode="ipvs", iptables_variant=Variant.LEGACY),
}


@pytest.fixture
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(SPEC) as made:
        yield made


@pytest.mark.root
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.ipvs] if name.startswith("ipvs") else []) for name in CASES],
)
def test_every_packet_goes_where_the_interpreter_says(lab: Lab, case: str) -> None:
    judge = lab.node.call(Judge, lab, CASES[case])
    _compare(lab, judge, case, seed=17)


@pytest.mark.root
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.ipvs] if name.startswith("ipvs") else []) for name in CASES],
)
def test_so_does_every_packet_among_rules_of_other_programs(lab: Lab, case: str) -> None:
    judge = lab.node.call(Judge, lab, CASES[case])
    lab.node.call(judge.program, World.random(random.Random(1), 3))
    if case == "nftables":
        foreign.plant_nft(lab.node)
    else:
        foreign.plant_iptables(lab.node, CASES[case].iptables_variant or Variant.NFT)
    _compare(lab, judge, case, seed=18)
    if case.startswith("iptables-nft"):
        lab.node.call(_compare_readings, judge)


def _compare_readings(judge: Judge) -> None:
    """Chains that are read when a packet enters them say the same as a dump of all."""
    for family in judge.families:
        sent = judge.with_sources(probes(random.Random(19), [*judge.plans[family].values()], family, 40))
        found = []
        for few in (0, 1 << 20):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(explain, "_FEW_CHAINS", few)
                found.append(judge.predict(judge.read(family), sent))
        by_chain, dumped = found
        assert by_chain == dumped
        assert {way.verdict for ways in dumped for way in ways} >= {PacketVerdict.FORWARD}


def _compare(lab: Lab, judge: Judge, case: str, seed: int) -> None:
    for family, found in run(lab, judge, seed).items():
        assert not found.wrong, f"{family}: {len(found.wrong)} of {found.total}\n" + "\n".join(
            found.wrong[:5]
        )
        assert {"forward", "forward masquerade"} <= found.kinds.keys(), found.kinds
        print(f"{case} {family}: {found.agreed}/{found.total} {dict(found.kinds)}")  # noqa: T201
