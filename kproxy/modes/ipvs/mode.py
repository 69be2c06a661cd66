"""The IPVS mode on this kernel: fail early with a reason where it cannot work, set the kernel parameters."""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec
import structlog

from kproxy.addresses import Family, is_link_local, is_loopback, parse_ip
from kproxy.backends.core.base import Backend, Drift, MeasureError, Measurement
from kproxy.backends.core.foreign_writes import RulesetWatches
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.ipvs.backend import IpvsBackend
from kproxy.backends.ipvs.config import IpvsConfig
from kproxy.backends.ipvs.handles import KERNEL_ERRORS, KernelHandles
from kproxy.config.model import ProxyConfig
from kproxy.kernel import sysctl
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import Ipvs, IpvsError, Timeouts
from kproxy.kernel.links import AddressNews
from kproxy.kernel.xtables.types import Variant, Xtables
from kproxy.modes.base import ModeUnavailable
from kproxy.modes.iptables_rules import watch_of
from kproxy.modes.ipvs.rules import IpvsRules
from kproxy.node.facts import FamilyFacts
from kproxy.plan.schedulers import SCHEDULERS, parse_scheduler

log = structlog.stdlib.get_logger(__name__)

CONNTRACK = "net/ipv4/vs/conntrack"
"""IPVS must keep conntrack entries of its connections, or nothing can be masqueraded (ip_vs_nfct.c)."""

SYSCTLS: Mapping[str, tuple[int, str]] = {
    "net/ipv4/vs/expire_nodest_conn": (1, "packets to a destination that is gone go to another one"),
    "net/ipv4/vs/expire_quiescent_template": (1, "affinity to a destination that drains ends"),
    "net/ipv4/ip_forward": (1, "packets are forwarded"),
}
STRICT_ARP: Mapping[str, tuple[int, str]] = {
    "net/ipv4/conf/all/arp_ignore": (1, "ARP is answered for addresses of the asked interface only"),
    "net/ipv4/conf/all/arp_announce": (2, "ARP requests name an address of the asking interface"),
}
"""A load balancer such as MetalLB answers ARP itself; the device's addresses must not answer too."""
CONN_REUSE = "net/ipv4/vs/conn_reuse_mode"
"""Before Linux 5.9, a reused port delays a connection by 1 s unless this is 0; since then 1 is right."""

_RELEASE = re.compile(r"(\d+)\.(\d+)")


class IpvsMode:
    """The IPVS mode. Raises ModeUnavailable when made where it cannot work.

    `statistics` opens a second IPVS socket, because counters are read beside the run loop.
    """

    def __init__(
        self,
        config: ProxyConfig,
        tables: Mapping[Family, Xtables],
        handles: KernelHandles,
        statistics: Callable[[], Ipvs] = NetlinkIpvs,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._tables = tables
        self._handles = handles
        self._open_statistics = statistics
        self._statistics: Ipvs | None = None
        self._scheduler = parse_scheduler(config.ipvs_scheduler)
        self._backends: dict[Family, IpvsBackend] = {}
        self._watches: RulesetWatches = {}
        self._lenient_arp: dict[str, str] = {}
        self._clock = clock
        self._next_check = 0.0
        self._unsettable: set[str] = set()
        self._probe()
        self._set_sysctls()

    @property
    def families(self) -> tuple[Family, ...]:
        """The families whose iptables programs were found."""
        return tuple(self._tables)

    @property
    def variants(self) -> Mapping[Family, Variant]:
        """The variants of the programs that were found."""
        return {family: xtables.variant for family, xtables in self._tables.items()}

    def share_writes(self, watches: RulesetWatches) -> None:
        """See SharesWrites."""
        self._watches = watches

    def configure(self, family: Family, facts: FamilyFacts) -> Backend:
        """Return the backend of a family."""
        config = self._settings(family, facts)
        backend = self._backends.get(family)
        if backend is None:
            xtables = self._tables[family]
            rules = IpvsRules(self._rules(family, facts), xtables, watch_of(xtables, self._watches))
            backend = IpvsBackend(config, self._handles, rules, self._clock)
            self._backends[family] = backend
        else:
            backend.reconfigure(config)
        return backend

    def reconfigure(self, config: ProxyConfig) -> None:
        """Apply new settings, except a scheduler that this kernel does not have."""
        scheduler = parse_scheduler(config.ipvs_scheduler).name
        try:
            if not self._handles.ipvs.has_scheduler(scheduler):
                log.warning("scheduler_missing", scheduler=scheduler, effect="the old one stays")
                config = msgspec.structs.replace(config, ipvs_scheduler=self._config.ipvs_scheduler)
            self._config = config
            self._set_timeouts()
            self._set_sysctls()
        except (*KERNEL_ERRORS, ModeUnavailable) as error:
            log.warning("settings_failed", reason=str(error))

    def on_first_sync(self) -> None:
        """Do nothing; the leftovers of the iptables mode cover the rules in the other variant."""

    def run_timers(self) -> float | None:
        """Check that the kernel parameters still have their values; the backends run their own timers."""
        now = self._clock()
        if now >= self._next_check:
            self._repair_sysctls()
            self._next_check = now + self._config.sync_period
        return self._next_check - now

    def compare_addresses(self, news: AddressNews) -> Mapping[Family, tuple[Drift, ...]]:
        """Compare the addresses of the device, in each family that the news concern."""
        found: dict[Family, tuple[Drift, ...]] = {}
        for family, backend in self._backends.items():
            changed = {ip: there for ip, there in news.device.items() if parse_ip(ip)[0] is family}
            if (changed or news.lost) and (
                drifts := backend.compare_addresses(None if news.lost else changed)
            ):
                found[family] = drifts
        return found

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        """Count rules from the backend's state, and traffic from the virtual servers."""
        backend = self._backends.get(family)
        if backend is None:
            return Measurement()
        if not traffic:
            return Measurement(rules=backend.rules())
        if self._statistics is None:
            self._statistics = self._open_statistics()
        try:
            return Measurement(backend.traffic(self._statistics.statistics(family)), backend.rules())
        except IpvsError as error:
            raise MeasureError(str(error)) from error

    def _settings(self, family: Family, facts: FamilyFacts) -> IpvsConfig:
        return ipvs_config(self._config, self._rules(family, facts), facts)

    def _rules(self, family: Family, facts: FamilyFacts) -> IptablesConfig:
        random_fully = self._tables[family].random_fully
        return rules_config(self._config, family, facts, random_fully=random_fully)

    def _probe(self) -> None:
        ipvs = self._handles.ipvs
        wanted = self._scheduler.name
        try:
            self._handles.ipset.headers()
            for family in self._tables:
                ipvs.servers(family)
            if ipvs.has_scheduler(wanted):
                self._handles.device.ensure()
                self._set_timeouts()
                return
            offered = [name for name in SCHEDULERS if ipvs.has_scheduler(name)]
        except KERNEL_ERRORS as error:
            raise ModeUnavailable(f"--proxy-mode ipvs: {error}") from error
        raise ModeUnavailable(
            f"--ipvs-scheduler {wanted}: this kernel does not have it; it has {', '.join(offered) or 'none'}"
        )

    def _set_sysctls(self) -> None:
        """Set the mode's parameters; without strict ARP, restore those that this process changed for it."""
        strict = self._config.ipvs_strict_arp
        if strict:
            self._lenient_arp = _values(STRICT_ARP) | self._lenient_arp
        set_sysctls(strict_arp=strict)
        if not strict:
            restore_arp(self._lenient_arp)
            self._lenient_arp = {}

    def _repair_sysctls(self) -> None:
        """Set parameters again that others have changed; a failure is logged once."""
        wanted = {CONNTRACK: (1, "connections can be masqueraded")}
        wanted |= wanted_sysctls(strict_arp=self._config.ipvs_strict_arp)
        for name, (value, effect) in wanted.items():
            try:
                if sysctl.ensure(name, value):
                    log.warning("sysctl_restored", name=name, value=value, reason="others changed it")
                self._unsettable.discard(name)
            except sysctl.SysctlError as error:
                if name not in self._unsettable:
                    lost = f"not ensured: {effect}"
                    log.warning("sysctl_failed", name=error.name, reason=error.reason, effect=lost)
                self._unsettable.add(name)

    def _set_timeouts(self) -> None:
        timeouts = Timeouts(
            round(self._config.ipvs_tcp_timeout),
            round(self._config.ipvs_tcpfin_timeout),
            round(self._config.ipvs_udp_timeout),
        )
        if timeouts != Timeouts():
            self._handles.ipvs.set_timeouts(timeouts)


def rules_config(
    config: ProxyConfig, family: Family, facts: FamilyFacts, *, random_fully: bool
) -> IptablesConfig:
    """The settings of the rules around IPVS, for one family on a node with these facts."""
    return IptablesConfig(
        family=family,
        masquerade_bit=config.masquerade_bit,
        masquerade_all=config.masquerade_all,
        local_traffic=facts.local_traffic,
        random_fully=random_fully,
    )


def ipvs_config(config: ProxyConfig, rules: IptablesConfig, facts: FamilyFacts) -> IpvsConfig:
    """The settings of one family, on a node with these facts."""
    local = facts.local_addresses
    accepting = facts.node_port_addresses if facts.node_port_addresses is not None else local
    return IpvsConfig(
        rules=rules,
        scheduler=parse_scheduler(config.ipvs_scheduler),
        node_addresses=tuple(ip for ip in accepting if not is_loopback(ip) and not is_link_local(ip)),
        local_addresses=frozenset(local),
        graceful_period=config.ipvs_graceful_period,
        exclude_cidrs=config.ipvs_exclude_cidrs,
        drift_check_interval=config.sync_period,
    )


def wanted_sysctls(*, strict_arp: bool, release: str | None = None) -> dict[str, tuple[int, str]]:
    """The parameters besides conntrack to set on a kernel of this release: name -> (value, effect)."""
    wanted = dict(SYSCTLS)
    if strict_arp:
        wanted |= STRICT_ARP
    match = _RELEASE.match(release or os.uname().release)
    if match is not None and (4, 1) <= (int(match[1]), int(match[2])) < (5, 9):
        wanted[CONN_REUSE] = (0, "a reused client port costs no second")
    return wanted


def restore_arp(former: Mapping[str, str]) -> None:
    """Restore the former values of the strict ARP parameters, unless others have changed them since."""
    for name, value in former.items():
        try:
            if sysctl.read(name) == str(STRICT_ARP[name][0]) and sysctl.ensure(name, value):
                log.info("sysctl_set", name=name, value=value, reason="strictARP is false again")
        except sysctl.SysctlError as error:
            log.warning("sysctl_failed", name=error.name, reason=error.reason, effect="ARP stays strict")


def _values(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = sysctl.read(name)
        except sysctl.SysctlError as error:
            log.debug("sysctl_unreadable", name=error.name, reason=error.reason)
    return found


def set_sysctls(*, strict_arp: bool, release: str | None = None) -> None:
    """Set the mode's parameters. Raises ModeUnavailable if conntrack cannot be enabled.

    A failure to set any other, as in a container where they are read-only, is a warning.
    """
    try:
        if sysctl.ensure(CONNTRACK, 1):
            log.info("sysctl_set", name=CONNTRACK, value=1, reason="connections can be masqueraded")
    except sysctl.SysctlError as error:
        raise ModeUnavailable(f"--proxy-mode ipvs: {error}; without it nothing can be masqueraded") from error
    for name, (value, effect) in wanted_sysctls(strict_arp=strict_arp, release=release).items():
        try:
            if sysctl.ensure(name, value):
                log.info("sysctl_set", name=name, value=value, reason=effect)
        except sysctl.SysctlError as error:
            log.warning(
                "sysctl_failed", name=error.name, reason=error.reason, effect=f"not ensured: {effect}"
            )
