"""Rules that the kernel lists are recognised, and only those."""

from __future__ import annotations

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.nftables import names
from kproxy.backends.nftables.affinity import sticky
from kproxy.backends.nftables.chains import (
    Chain,
    OwnList,
    external,
    external_local,
    firewall,
    internal,
    own,
    pick,
)
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.script import Script, rules_of
from kproxy.kernel.nft.listed import listed
from kproxy.kernel.nft.netlink import NetlinkNft
from tests.kernel import nft_oracle
from tests.kernel.namespace import fresh_network
from tests.kernel.test_nft_reading import HASHED, chains_of


def _config(family: Family, *, interface: str = "") -> NftablesConfig:
    prefix = "10.244.0.0/15" if family is Family.IPV4 else "fd00:244::/56"
    local = LocalTraffic(interface=interface) if interface else LocalTraffic(cidr=prefix)
    return NftablesConfig(family, local_traffic=local)


def _every_chain(config: NftablesConfig) -> dict[str, Chain]:
    """A chain of every kind, and the fixed ones."""
    family = config.family
    here, everywhere = pick(family, 3, 1, local=True), pick(family, 5, 1)
    return {
        **chains_of(family),
        **dict([here, everywhere, pick(family, 1, 0), firewall(family, HASHED)]),
        "all-own": own(family, 17, OwnList((7, 1 << 30), 70, 1000), [True, False]),
        **dict([internal(config, "all-own"), external(config, everywhere[0])]),
        **dict([external_local(config, "all-own", here[0])]),
        "idle": sticky(family, HASHED, 6, [], 0, [5, 6])[:2],
        **rules_of(config),
    }


def _written(config: NftablesConfig) -> dict[str, Chain]:
    """Write every chain; return those without anonymous sets."""
    chains = _every_chain(config)
    script = Script(config)
    script.declare(config)
    script.chains({name: rules for name, rules in chains.items() if name not in rules_of(config)})
    script.base(config)
    NetlinkNft().commit(script.transaction())
    return {name: rules for name, rules in chains.items() if listed(config.family, rules) is not None}


def _lines(family: Family) -> dict[str, tuple[str, ...]]:
    """What stands for each rule that the kernel holds, without its handle."""
    found = NetlinkNft().reading(family, names.TABLE, elements=False)
    assert found is not None
    return {
        name: tuple(line.partition(" ")[2] for line in lines if not line.startswith("type "))
        for name, lines in found.chains.items()
    }


@pytest.mark.parametrize("interface", ["", "cbr0", "veth+"])
@pytest.mark.parametrize("family", list(Family))
@fresh_network
def test_every_rule_without_an_anonymous_set_is_recognised(family: Family, interface: str) -> None:
    config = _config(family, interface=interface)
    chains = _written(config)
    assert {"all-own", "cluster-all-own", f"firewall-{HASHED}", "idle", "nat-output"} <= chains.keys()
    found = _lines(family)
    assert {name: found[name] for name in chains} == {name: listed(family, chains[name]) for name in chains}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("random mod 70", "random mod 69"),
        ("offset 7 ", "offset 8 "),
        ("meta l4proto 17", "meta l4proto 6"),
        ("@slots-1000", "@slots-7"),
        (" @endpoint-0", " @local-endpoint-0"),
    ],
)
@fresh_network
def test_another_rule_in_its_place_is_not(before: str, after: str) -> None:
    config = _config(Family.IPV4)
    rules = _written(config)["all-own"]
    other = tuple(rule.replace(before, after) for rule in rules)
    assert other != rules
    script = Script(config)
    script.declare_missing(["slots-7"])
    script.chains({"all-own": other})
    NetlinkNft().commit(script.transaction())
    found = _lines(Family.IPV4)["all-own"]
    assert found != listed(Family.IPV4, rules)
    assert found == listed(Family.IPV4, other)


@pytest.mark.parametrize("ending", ["counter", 'comment "others"', "log"])
@fresh_network
def test_a_rule_with_something_more_is_not(ending: str) -> None:
    config = _config(Family.IPV4)
    rules = _written(config)["cluster-all-own"]
    chain = "ip kproxy cluster-all-own"
    nft_oracle.write(f"flush chain {chain}\n")
    for rule in rules:
        words = f"{rule} {ending}" if ending.startswith("comment") else f"{ending} {rule}"
        nft_oracle.write(f"add rule {chain} {words}\n")
    found = _lines(Family.IPV4)["cluster-all-own"]
    assert len(found) == len(rules)
    assert not set(found) & set(listed(Family.IPV4, rules) or ())
