"""A dump of another machine says the same as the kernel that it was taken from."""

import random
from collections.abc import Iterator

import pytest

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import ExplainError
from kproxy.modes.packet_walk import RulesOfAllModes
from kproxy.modes.registry import mode_registry
from kproxy.plan.outcomes import Outcome
from kproxy_lab.lab import Lab
from tests.explain import foreign
from tests.explain.judge import Judge, settings
from tests.explain.policies import some
from tests.explain.world import World, probes
from tests.peer.objects import SPEC


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(SPEC) as made:
        yield made


def _bare(outcomes: tuple[Outcome, ...]) -> list[tuple[object, ...]]:
    return [(o.verdict, o.endpoint, o.masquerade, round(o.probability, 6)) for o in outcomes]


@pytest.mark.root
@pytest.mark.parametrize(
    ("config", "commands"),
    [
        (settings(proxy_mode="nftables"), dict.fromkeys(Family, "nft -j list ruleset")),
        (
            settings(proxy_mode="iptables", iptables_variant=Variant.NFT),
            {Family.IPV4: "iptables-nft-save -c", Family.IPV6: "ip6tables-nft-save"},
        ),
    ],
    ids=["nft", "iptables-save"],
)
def test_a_dump_says_the_same_as_the_kernel(
    lab: Lab, config: ProxyConfig, commands: dict[Family, str]
) -> None:
    rng = random.Random(3)
    judge = lab.node.call(Judge, lab, config)
    walker = RulesOfAllModes(mode_registry().rule_readers(config))
    is_nft = config.proxy_mode == "nftables"
    world = World.random(rng, 12)
    world.policies = some(random.Random(5)) if is_nft else {}  # iptables-save prints no other tables
    lab.node.call(judge.program, world)
    if is_nft:
        foreign.plant_nft(lab.node)
    by_policies = False
    for family, command in commands.items():
        text = lab.node.run(command.split()).stdout
        plans = list(judge.plans[family].values())
        sent = [each for each in probes(rng, plans, family, 150) if is_nft or not each.sticky]
        dumped = walker.load_dump(text, family)

        held = lab.node.call(judge.read, family)
        for probe, of_kernel, of_dump in zip(
            sent,
            lab.node.call(judge.predict, held, sent),
            lab.node.call(judge.predict, dumped, sent),
            strict=True,
        ):
            assert _bare(of_dump) == _bare(of_kernel), (probe, of_dump, of_kernel)
            by_policies |= any(" kproxy-policy " in step for each in of_dump for step in each.steps)
    assert by_policies == is_nft
    if is_nft:
        lab.node.run(["nft", "delete", "table", "inet", "firewall"])
    lab.node.run(["nft", "flush", "ruleset"])


def test_what_is_no_dump_is_refused() -> None:
    walker = RulesOfAllModes(mode_registry().rule_readers(settings(proxy_mode="nftables")))
    with pytest.raises(ExplainError, match="iptables-save"):
        walker.load_dump("hello", Family.IPV4)
    with pytest.raises(ExplainError, match="iptables-save"):
        walker.load_dump("*nat\n-A PREROUTING -j ACCEPT\n", Family.IPV4)
