"""The matches and targets that iptables rules of every mode need from a kernel and its iptables.

Every match and target that a layout can write is listed here as a rule that uses it; a test compares this
list with the rendered layouts. A feature that is not essential has a substitute, or only some services need
it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from kproxy.addresses import Family
from kproxy.backends.iptables import names

PROBE_NAME = names.PROBE
"""The name of the chain and the set of probes; each probe removes them."""


class Feature(NamedTuple):
    """A match or target: `rule` uses it in `table`; `module` is the kernel's name for it.

    `without` names the effect if it is missing.
    """

    name: str
    table: str
    rule: str
    module: str
    essential: bool = True
    without: str = ""


_ADDRESS = {Family.IPV4: "192.0.2.1", Family.IPV6: "[2001:db8::1]"}
_REFUSAL = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}
_MASK = {
    Family.IPV4: "255.255.255.255",
    Family.IPV6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
}
_REJECT_MODULE = {Family.IPV4: "ipt_REJECT", Family.IPV6: "ip6t_REJECT"}


def common_features(family: Family) -> tuple[Feature, ...]:
    """The matches and targets that rules of a family use in every mode and layout."""
    return (
        Feature("match comment", "filter", '-m comment --comment "a trial"', "xt_comment"),
        Feature(
            "match conntrack", "filter", "-m conntrack --ctstate NEW,RELATED,ESTABLISHED", "xt_conntrack"
        ),
        Feature("match addrtype", "nat", "-m addrtype --dst-type LOCAL", "xt_addrtype"),
        Feature("match mark", "nat", "-m mark --mark 0x4000/0x4000", "xt_mark"),
        Feature(
            "match statistic",
            "nat",
            "-m statistic --mode random --probability 0.5",
            "xt_statistic",
        ),
        Feature(
            "match recent",
            "nat",
            f"-m recent --rcheck --seconds 10800 --reap --name {PROBE_NAME} --mask {_MASK[family]} --rsource",
            "xt_recent",
            essential=False,
            without="services with session affinity are refused",
        ),
        Feature("match tcp", "nat", "-p tcp -m tcp --dport 80", "xt_tcpudp"),
        Feature("match udp", "nat", "-p udp -m udp --dport 80", "xt_tcpudp"),
        Feature(
            "match sctp",
            "nat",
            "-p sctp -m sctp --dport 80",
            "xt_sctp",
            essential=False,
            without="services with protocol SCTP are refused",
        ),
        Feature("target MARK", "nat", "-j MARK --set-xmark 0x4000/0x4000", "xt_mark"),
        Feature("target MASQUERADE", "nat", "-j MASQUERADE --random-fully", "xt_MASQUERADE"),
        Feature("target DNAT", "nat", f"-p tcp -j DNAT --to-destination {_ADDRESS[family]}:80", "xt_nat"),
        Feature(
            "target REJECT",
            "filter",
            f"-j REJECT --reject-with {_REFUSAL[family]}",
            _REJECT_MODULE[family],
        ),
    )


LEAST_REVISIONS: Mapping[str, int] = {
    "match addrtype": 1,
    "match conntrack": 1,
    "match recent": 1,
    "target MARK": 2,
}
"""The first revisions with the options that the rules use (net/netfilter/xt_*.c)."""
