"""Sets in the real kernel, in network namespaces of their own, seen through the ipset program too."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from kproxy.addresses import Family
from kproxy.backends.ipvs.names import sets
from kproxy.kernel.ipset.codec import reason
from kproxy.kernel.ipset.types import (
    MAX_ELEMENTS,
    Entry,
    EntryChange,
    Ipset,
    IpsetError,
    SetKind,
    SetSpec,
)
from tests.kernel.namespace import fresh_network, kernel_sets
from tests.support.fake_ipvs import FakeIpset

pytestmark = pytest.mark.root

OWN = {Family.IPV4: "10.0.0.1", Family.IPV6: "fd00::1"}
NETS = {Family.IPV4: "10.0.0.0/8", Family.IPV6: "fd00::/16"}
families = pytest.mark.parametrize("family", list(Family), ids=str)


def examples(family: Family) -> list[tuple[SetSpec, Entry]]:
    """An entry of every kind and protocol."""
    own, known = OWN[family], sets(family)
    host = f"{own}/{family.host_bits}"
    return [
        (known.addresses, Entry(own)),
        *((known.cluster_ip, Entry(own, protocol, 80)) for protocol in ("TCP", "UDP", "SCTP")),
        (known.loop_back, Entry(own, "UDP", 53, own)),
        (known.source_cidr, Entry(own, "TCP", 443, NETS[family])),
        (known.source_cidr, Entry(own, "TCP", 443, host)),
    ]


@families
@fresh_network
def test_what_is_added_is_there_and_ipset_says_so_too(family: Family) -> None:
    ipset = kernel_sets()
    for spec in sets(family).all:
        ipset.create(spec)
        ipset.create(spec)
    changes = [EntryChange(spec, entry, add=True) for spec, entry in examples(family)]
    assert ipset.apply([*changes, *changes]) == {}
    for spec in sets(family).all:
        assert ipset.entries(spec) == {entry for of, entry in examples(family) if of == spec}
    header = ipset.headers()[sets(family).cluster_ip.name]
    assert (header.type, header.family, header.max_elements) == ("hash:ip,port", family, MAX_ELEMENTS)
    assert header.entries == 3
    if shutil.which("ipset"):
        saved = subprocess.run(["ipset", "save"], check=True, capture_output=True, text=True).stdout
        lines = {line for line in saved.splitlines() if line.startswith("add ")}
        assert lines == {f"add {spec.name} {entry}" for spec, entry in examples(family)}
    removals = [EntryChange(spec, entry, add=False) for spec, entry in examples(family)]
    assert ipset.apply([*removals, *removals]) == {}
    assert all(not ipset.entries(spec) for spec in sets(family).all)
    for spec in sets(family).all:
        ipset.destroy(spec.name)
        ipset.destroy(spec.name)
    assert ipset.headers() == {}


@fresh_network
def test_more_entries_fit_than_kube_proxy_allows() -> None:
    ipset, spec = kernel_sets(), sets(Family.IPV4).cluster_ip
    ipset.create(spec)
    entries = [Entry(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", "TCP", 80) for n in range(70_000)]
    assert ipset.apply([EntryChange(spec, entry, add=True) for entry in entries]) == {}
    assert ipset.headers()[spec.name].entries == 70_000
    assert ipset.entries(spec) == set(entries)


@fresh_network
def test_a_set_that_a_rule_uses_is_not_destroyed() -> None:
    ipset, spec = kernel_sets(), sets(Family.IPV4).cluster_ip
    ipset.create(spec)
    rule = ["iptables", "-A", "INPUT", "-m", "set", "--match-set", spec.name, "dst,dst"]
    if shutil.which("iptables") is None or subprocess.run(rule, check=False, capture_output=True).returncode:
        pytest.skip("no iptables with the set match")
    with pytest.raises(IpsetError, match="in use by a rule"):
        ipset.destroy(spec.name)
    assert ipset.headers()[spec.name].references == 1


def _both() -> list[Ipset]:
    return [kernel_sets(), FakeIpset()]


@fresh_network
def test_the_kernel_in_memory_refuses_as_the_real_one() -> None:
    spec = sets(Family.IPV4).cluster_ip
    missing = EntryChange(spec, Entry("10.0.0.1", "TCP", 80), add=True)
    outcomes = []
    for ipset in _both():
        refused = dict(ipset.apply([missing]))
        ipset.create(spec)
        with pytest.raises(IpsetError, match=r"exist"):
            ipset.create(SetSpec(spec.name, SetKind.IP, Family.IPV4))
        outcomes.append((refused, dict(ipset.apply([missing])), ipset.entries(spec)))
    assert outcomes[0] == outcomes[1]


def test_refusals_have_words() -> None:
    assert reason(4352) == "the set is full"
    assert reason(1) == "Operation not permitted"
    assert reason(9999) == "ipset error 9999"
