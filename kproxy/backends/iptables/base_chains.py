"""The rules that do not depend on services: base chains, and the jumps into them.

Order matters in two places. Jumps are inserted at the head of the built-in chains one after the other, so the
last one ends up first, as with kube-proxy. All masquerade rules are in table nat, which is written before any
service, so a new node forwards no packet without masquerading it.
"""

import msgspec

from kproxy.addresses import Family, host_cidr, is_loopback
from kproxy.backends.iptables import names
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.names import INVALID_COUNTER, ChainId

TABLES = ("mangle", "nat", "filter")

NAT_SERVICES: ChainId = ("nat", names.KUBE_SERVICES)
NAT_NODE_PORTS: ChainId = ("nat", names.KUBE_NODEPORTS)
FILTER_SERVICES: ChainId = ("filter", names.KUBE_SERVICES)
FILTER_EXTERNAL: ChainId = ("filter", names.KUBE_EXTERNAL_SERVICES)
FILTER_FIREWALL: ChainId = ("filter", names.KUBE_PROXY_FIREWALL)
FILTER_NODE_PORTS: ChainId = ("filter", names.KUBE_NODEPORTS)

SHARED: dict[str, ChainId] = {
    "nat_services": NAT_SERVICES,
    "nat_node_ports": NAT_NODE_PORTS,
    "filter_services": FILTER_SERVICES,
    "filter_external": FILTER_EXTERNAL,
    "filter_firewall": FILTER_FIREWALL,
    "filter_node_ports": FILTER_NODE_PORTS,
}
"""Chains that services share, by the field of SharedLines with a service's lines in them."""

_NEW = "-m conntrack --ctstate NEW "


class Jump(msgspec.Struct, frozen=True):
    """A rule in a built-in chain that jumps to a KUBE-* chain, placed behind the jumps to chains `after`."""

    table: str
    chain: str
    line: str
    after: tuple[str, ...] = ()

    @property
    def insertion(self) -> str:
        """The command that puts the rule first in its chain."""
        return self.insertion_at(1)

    def insertion_at(self, place: int) -> str:
        """The command that inserts the rule at a place of its chain, counted from 1."""
        rule = self.line.removeprefix(f"-A {self.chain} ")
        return f"-I {self.chain} {rule}" if place == 1 else f"-I {self.chain} {place} {rule}"


def jump(
    table: str, chain: str, target: str, comment: str, match: str = "", *, after: tuple[str, ...] = ()
) -> Jump:
    """Build a jump; `match` are further matches, placed before the comment."""
    comment_match = f'-m comment --comment "{comment}" ' if comment else ""
    return Jump(table, chain, f"-A {chain} {match}{comment_match}-j {target}\n", after)


JUMPS: tuple[Jump, ...] = (
    jump(
        "filter", "INPUT", names.KUBE_EXTERNAL_SERVICES, "kubernetes externally-visible service portals", _NEW
    ),
    jump(
        "filter",
        "FORWARD",
        names.KUBE_EXTERNAL_SERVICES,
        "kubernetes externally-visible service portals",
        _NEW,
    ),
    jump("filter", "INPUT", names.KUBE_NODEPORTS, "kubernetes health check service ports"),
    jump("filter", "FORWARD", names.KUBE_SERVICES, "kubernetes service portals", _NEW),
    jump("filter", "OUTPUT", names.KUBE_SERVICES, "kubernetes service portals", _NEW),
    jump("filter", "FORWARD", names.KUBE_FORWARD, "kubernetes forwarding rules"),
    jump("filter", "INPUT", names.KUBE_PROXY_FIREWALL, "kubernetes load balancer firewall", _NEW),
    jump("filter", "OUTPUT", names.KUBE_PROXY_FIREWALL, "kubernetes load balancer firewall", _NEW),
    jump("filter", "FORWARD", names.KUBE_PROXY_FIREWALL, "kubernetes load balancer firewall", _NEW),
    jump("nat", "OUTPUT", names.KUBE_SERVICES, "kubernetes service portals"),
    jump("nat", "PREROUTING", names.KUBE_SERVICES, "kubernetes service portals"),
    jump("nat", "POSTROUTING", names.KUBE_POSTROUTING, "kubernetes postrouting rules"),
    jump("filter", "INPUT", names.KUBE_FIREWALL, ""),
    jump("filter", "OUTPUT", names.KUBE_FIREWALL, ""),
)
"""In the order in which kube-proxy ensures them; the kubelet makes the last two as well."""


def base_chains(config: IptablesConfig) -> dict[ChainId, str | None]:
    """The base chains and their rules; None for a chain that must exist but whose rules others write."""
    chains: dict[ChainId, str | None] = {(table, names.CANARY): "" for table in TABLES}
    invalid = ""
    if config.drop_invalid:
        counter = f"-m nfacct --nfacct-name  {INVALID_COUNTER} " if config.count_invalid else ""
        invalid = f"-A {names.KUBE_FORWARD} -m conntrack --ctstate INVALID {counter}-j DROP\n"
    chains |= masquerade_chains(config, before_forward=invalid)
    chains["filter", names.KUBE_FIREWALL] = _localnet_guard() if config.localhost else None
    return chains


def masquerade_chains(
    config: IptablesConfig, *, first: str = "", before_forward: str = ""
) -> dict[ChainId, str]:
    """The chains that mark, masquerade and forward service traffic.

    `first` is put at the start of KUBE-POSTROUTING, `before_forward` at the start of KUBE-FORWARD.
    """
    mark = config.mark
    post = f"-A {names.KUBE_POSTROUTING} "
    forward = f"-A {names.KUBE_FORWARD} "
    return {
        ("nat", names.KUBE_MARK_MASQ): f"-A {names.KUBE_MARK_MASQ} -j MARK --set-xmark {mark}/{mark}\n",
        ("nat", names.KUBE_POSTROUTING): (
            f"{first}"
            f"{post}-m mark ! --mark {mark}/{mark} -j RETURN\n"
            f"{post}-j MARK --set-xmark {mark}/0x0\n"
            f'{post}-m comment --comment "kubernetes service traffic requiring SNAT" -j {config.masquerade}\n'
        ),
        ("filter", names.KUBE_FORWARD): (
            f"{before_forward}"
            f'{forward}-m comment --comment "kubernetes forwarding rules" '
            f"-m mark --mark {mark}/{mark} -j ACCEPT\n"
            f'{forward}-m comment --comment "kubernetes forwarding conntrack rule" '
            f"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        ),
    }


def _localnet_guard() -> str:
    """Drop packets from other hosts to 127.0.0.0/8, which route_localnet would admit (CVE-2020-8558)."""
    return (
        f"-A {names.KUBE_FIREWALL} ! -s 127.0.0.0/8 -d 127.0.0.0/8 "
        f'-m comment --comment "block incoming localnet connections" '
        f"-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
    )


def node_port_jumps(config: IptablesConfig) -> tuple[str, ...]:
    """The last rules of nat KUBE-SERVICES: which local addresses accept node ports."""
    start = f"-A {names.KUBE_SERVICES} "
    comment = (
        '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" '
    )
    if config.node_port_addresses is None:
        guard = ""
        if config.family is Family.IPV6:
            guard = "! -d ::1/128 "
        elif not config.localhost:
            guard = "! -d 127.0.0.0/8 "
        return (f"{start}{guard}{comment}-m addrtype --dst-type LOCAL -j {names.KUBE_NODEPORTS}\n",)
    return tuple(
        f"{start}-d {host_cidr(address)} {comment}-j {names.KUBE_NODEPORTS}\n"
        for address in config.node_port_addresses
        if config.localhost or not is_loopback(address)
    )
