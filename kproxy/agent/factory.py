"""Put the backends of a mode together for this kernel: find the programs, probe what they can do."""

from collections.abc import Mapping

import structlog

from kproxy.addresses import Family
from kproxy.agent.config import ProxyConfig
from kproxy.agent.node import FamilyFacts
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import StandardLayout
from kproxy.backends.iptables.render import INVALID_COUNTER, LOCALHOST_COUNTER
from kproxy.backends.iptables.watch import ChangeWatch
from kproxy.kernel import nfacct, sysctl
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import RestoreError, Variant, Xtables, XtablesUnavailable

log = structlog.stdlib.get_logger(__name__)

ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"
TCP_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"


class NoFamilyUsable(RuntimeError):
    """Neither IP family can be served on this node; `reasons` says why for each."""

    def __init__(self, reasons: Mapping[Family, str]) -> None:
        super().__init__("; ".join(f"{family}: {reason}" for family, reason in reasons.items()))
        self.reasons = reasons


class Kernel:
    """The kernel of this node as the iptables mode needs it, probed once at start."""

    def __init__(self, tables: Mapping[Family, Xtables]) -> None:
        self.tables = tables
        self._watches: dict[object, ChangeWatch] = {}
        self._liberal = _is_liberal()
        self._counters = {
            family: {name: _countable(xtables, name) for name in (INVALID_COUNTER, LOCALHOST_COUNTER)}
            for family, xtables in tables.items()
        }

    def iptables_config(self, family: Family, config: ProxyConfig, facts: FamilyFacts) -> IptablesConfig:
        """Resolve the settings of one family."""
        counters = self._counters[family]
        return IptablesConfig(
            family=family,
            masquerade_bit=config.masquerade_bit,
            masquerade_all=config.masquerade_all,
            local_traffic=facts.local_traffic,
            localhost_node_ports=facts.localhost_node_ports,
            node_port_addresses=facts.node_port_addresses,
            random_fully=self.tables[family].random_fully,
            drop_invalid=not self._liberal,
            count_invalid=counters[INVALID_COUNTER],
            count_localhost=counters[LOCALHOST_COUNTER],
        )

    def backend(self, config: IptablesConfig) -> IptablesBackend:
        """Build the backend of one family; the nft rulesets of both families share one change counter."""
        xtables = self.tables[config.family]
        ruleset = xtables.variant if xtables.variant is Variant.NFT else config.family
        watch = self._watches.setdefault(ruleset, ChangeWatch(xtables.stamp))
        return IptablesBackend(StandardLayout(config), xtables, watch)


def probe(config: ProxyConfig) -> Kernel:
    """Find the iptables programs of each family. Raises NoFamilyUsable."""
    tables: dict[Family, Xtables] = {}
    reasons: dict[Family, str] = {}
    for family in Family:
        try:
            tools = find_tools(family, config.iptables_variant)
        except XtablesUnavailable as error:
            reasons[family] = error.reason
            continue
        version = ".".join(map(str, tools.version))
        log.info("iptables_found", family=family.value, variant=tools.variant.value, version=version)
        tables[family] = SubprocessXtables(family, tools)
    if not tables:
        raise NoFamilyUsable(reasons)
    for family, reason in reasons.items():
        log.warning("family_unusable", family=family.value, reason=reason)
    return Kernel(tables)


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
