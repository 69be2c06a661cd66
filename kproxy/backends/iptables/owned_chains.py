"""Every base chain that kproxy or kube-proxy makes in any mode, so that it can be removed.

The running mode keeps its own chains. Those of a former mode, or of a former kube-proxy, are removed once the
new rules are written; a cleanup removes all.
"""

import re

from kproxy.backends.iptables import names
from kproxy.backends.iptables.base_chains import JUMPS
from kproxy.backends.iptables.canonical import canonical_rule

OWNED_CHAINS: dict[str, frozenset[str]] = {
    "mangle": frozenset(
        {names.CANARY, names.KUBE_PROXY_FIREWALL, names.KUBE_IPVS_MISSED, names.KUBE_IPVS_OWN}
    ),
    "nat": frozenset(
        {
            names.KUBE_SERVICES,
            names.KUBE_NODEPORTS,
            names.KUBE_POSTROUTING,
            names.KUBE_MARK_MASQ,
            names.CANARY,
            names.KUBE_IPVS_SERVICES,
            names.KUBE_IPVS_LOCAL,
            names.KUBE_IPVS_SHORTCUT,
            *names.KUBE_PROXY_IPVS_NAT,
        }
    ),
    "filter": frozenset(
        {
            names.KUBE_SERVICES,
            names.KUBE_EXTERNAL_SERVICES,
            names.KUBE_FORWARD,
            names.KUBE_NODEPORTS,
            names.KUBE_PROXY_FIREWALL,
            names.KUBE_FIREWALL,
            names.CANARY,
            names.KUBE_IPVS_FILTER,
            names.KUBE_IPVS_FORWARD,
            *names.KUBE_PROXY_IPVS_FILTER,
        }
    ),
}
"""By table."""

KUBELETS_TOO = frozenset({("filter", names.KUBE_FIREWALL), ("nat", names.KUBE_MARK_MASQ)})
"""Chains that the kubelet makes as well; on a node with a kubelet they are not removed."""


def is_known(table: str, chain: str) -> bool:
    """Whether a chain is one of these, or a dispatch chain of the scalable layout; not for service chains."""
    return chain in OWNED_CHAINS.get(table, ()) or chain.startswith(names.DISPATCH_PREFIXES.get(table, ()))


_JUMPS = frozenset((jump.table, canonical_rule(jump.line)) for jump in JUMPS)
_PLAIN_JUMP = re.compile(
    r"-A (?:PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) (?:-m conntrack --ctstate NEW )?"
    r'-m comment --comment "kube[^"]*" -j \S+'
)


def is_jump(table: str, rule: str) -> bool:
    """Whether a rule of a built-in chain is a jump that kproxy or kube-proxy makes, in any mode."""
    return _PLAIN_JUMP.fullmatch(rule.strip()) is not None or (table, canonical_rule(rule)) in _JUMPS
