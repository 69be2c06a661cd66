"""Hairpin masquerade by one rule for all services: for endpoints that reach themselves through their service.

kube-proxy has a rule for each endpoint, before translation. After translation such a packet has the same
source and destination. iptables has no match for that; a classic BPF program compares the two (xt_bpf).
The IPVS modes look up such packets in a set, because IPVS translates without rules.
"""

import re
from collections.abc import Iterable

from kproxy.addresses import Family
from kproxy.backends.iptables import names
from kproxy.backends.iptables.base_chains import base_chains
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.names import ChainId

_LOAD, _KEEP, _MATCH, _NO_MATCH = "32 0 0 {}", "7 0 0 0", "6 0 0 1", "6 0 0 0"

_LOOP_BACK = re.compile(r"--match-set K(?:PROXY|UBE)-(?:6-)?LOOP-BACK dst,dst,src ")


def ipvs_loop_backs(rules: Iterable[str]) -> tuple[str, ...]:
    """Return the rules with which an IPVS mode of kproxy or kube-proxy masquerades hairpin packets.

    Without them, a pod that a virtual server sends to itself gets no answer while it uses the same source
    port, because conntrack keeps the first packet's decision not to masquerade.
    """
    return tuple(rule for rule in rules if _LOOP_BACK.search(rule) is not None)


def hairpin_chains(config: IptablesConfig) -> dict[ChainId, str]:
    """The base chains that differ from kube-proxy's: hairpin packets are marked and accepted in FORWARD."""
    mark, match = config.mark, hairpin_match(config.family)
    ends = {
        ("nat", names.KUBE_POSTROUTING): (
            f"-A {names.KUBE_POSTROUTING} {match}-j MARK --set-xmark {mark}/{mark}\n",
            "",
        ),
        ("filter", names.KUBE_FORWARD): ("", f"-A {names.KUBE_FORWARD} {match}-j ACCEPT\n"),
    }
    standard = base_chains(config)
    return {chain: f"{first}{standard[chain]}{last}" for chain, (first, last) in ends.items()}


def hairpin_match(family: Family) -> str:
    """The match of a translated packet that goes back to its source.

    The program loads each word of the source and compares it with that of the destination: at bytes 12 and 16
    of an IPv4 header (RFC 791), 8 and 24 of an IPv6 header (RFC 8200).
    """
    source, destination, words = (12, 16, 1) if family is Family.IPV4 else (8, 24, 4)
    program: list[str] = []
    for n in range(words):
        to_end = 4 * (words - n - 1) + 1
        program += [
            _LOAD.format(source + 4 * n),
            _KEEP,
            _LOAD.format(destination + 4 * n),
            f"29 0 {to_end} 0",
        ]
    program += [_MATCH, _NO_MATCH]
    return (
        '-m conntrack --ctstate DNAT -m comment --comment "kubernetes endpoint that reaches itself" '
        f'-m bpf --bytecode "{len(program)},{",".join(program)}" '
    )
