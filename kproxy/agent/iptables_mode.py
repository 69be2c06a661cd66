"""The iptables mode on this kernel: find the programs, probe what they can do, put the backends together."""

from collections.abc import Mapping

import structlog

from kproxy.addresses import Family
from kproxy.agent.config import ProxyConfig
from kproxy.agent.departure import Departure
from kproxy.agent.node import FamilyFacts
from kproxy.agent.table_removal import remove_tables
from kproxy.backends.base import Backend
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.backends.iptables.render import INVALID_COUNTER, LOCALHOST_COUNTER
from kproxy.backends.iptables.watch import ChangeWatch
from kproxy.kernel import nfacct, sysctl
from kproxy.kernel.xtables.types import RestoreError, Variant, Xtables

log = structlog.stdlib.get_logger(__name__)

ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"
TCP_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"


class IptablesMode:
    """The iptables mode; what the kernel can do is probed once at start.

    `departing` takes away what an IPVS mode left here, once the first sync is done.
    """

    def __init__(self, config: ProxyConfig, tables: Mapping[Family, Xtables], departing: Departure) -> None:
        self._config = config
        self.tables = tables
        self._departing = departing
        self._backends: dict[Family, IptablesBackend] = {}
        self._watches: dict[object, ChangeWatch] = {}
        self._liberal = _is_liberal()
        self._counters = {
            family: {name: _countable(xtables, name) for name in (INVALID_COUNTER, LOCALHOST_COUNTER)}
            for family, xtables in tables.items()
        }

    @property
    def families(self) -> tuple[Family, ...]:
        """The families whose programs were found."""
        return tuple(self.tables)

    def configure(self, family: Family, facts: FamilyFacts) -> Backend:
        """The backend of a family."""
        config = self._settings(family, facts)
        if config.localhost:
            allow_localhost_node_ports()
        layout = StandardLayout(config)
        backend = self._backends.get(family)
        if backend is None:
            backend = rules_backend(layout, self.tables[family], self._watches)
            self._backends[family] = backend
        else:
            backend.reconfigure(layout)
        return backend

    def settled(self) -> None:
        """Let what another mode left here go."""
        remove_tables()
        self._departing.begin()

    def tend(self) -> float | None:
        """See to what an IPVS mode left here."""
        return self._departing.tend()

    def _settings(self, family: Family, facts: FamilyFacts) -> IptablesConfig:
        counters = self._counters[family]
        return IptablesConfig(
            family=family,
            masquerade_bit=self._config.masquerade_bit,
            masquerade_all=self._config.masquerade_all,
            local_traffic=facts.local_traffic,
            localhost_node_ports=facts.localhost_node_ports,
            node_port_addresses=facts.node_port_addresses,
            random_fully=self.tables[family].random_fully,
            drop_invalid=not self._liberal,
            count_invalid=counters[INVALID_COUNTER],
            count_localhost=counters[LOCALHOST_COUNTER],
        )


def rules_backend(layout: Layout, xtables: Xtables, watches: dict[object, ChangeWatch]) -> IptablesBackend:
    """Build what writes the rules of one family.

    The nft rulesets of both families share one change counter, and so one entry of `watches`.
    """
    ruleset = xtables.variant if xtables.variant is Variant.NFT else layout.family
    watch = watches.setdefault(ruleset, ChangeWatch(xtables.stamp))
    return IptablesBackend(layout, xtables, watch)


def allow_localhost_node_ports() -> None:
    """Let packets from 127.0.0.0/8 be routed after translation; KUBE-FIREWALL guards what that opens."""
    try:
        if sysctl.ensure(ROUTE_LOCALNET, 1):
            log.info("sysctl_set", name=ROUTE_LOCALNET, value=1, reason="node ports on localhost")
    except sysctl.SysctlError as error:
        log.warning(
            "sysctl_failed", name=error.name, reason=error.reason, effect="no node ports on localhost"
        )


def _is_liberal() -> bool:
    try:
        return sysctl.read(TCP_BE_LIBERAL) != "0"
    except sysctl.SysctlError:
        return False


def _countable(xtables: Xtables, name: str) -> bool:
    """Whether the kernel has nfacct counters, and iptables the match for them."""
    try:
        if not nfacct.ensure(name):
            return False
    except nfacct.NfacctError as error:
        log.info("nfacct_unavailable", counter=name, reason=str(error))
        return False
    chain = "KPROXY-PROBE"
    try:
        xtables.restore(
            f"*filter\n:{chain} - [0:0]\n-A {chain} -m nfacct --nfacct-name {name}\nCOMMIT\n".encode()
        )
        xtables.restore(f"*filter\n:{chain} - [0:0]\n-X {chain}\nCOMMIT\n".encode())
    except RestoreError as error:
        log.info("nfacct_unavailable", counter=name, reason=error.message)
        return False
    return True
