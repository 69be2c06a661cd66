"""The iptables mode on this kernel: find the programs, probe their capabilities, build the backends."""

import functools
from collections.abc import Mapping

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, Drift, MeasureError, Measurement, PortTraffic
from kproxy.backends.core.foreign_writes import RulesetWatches
from kproxy.backends.iptables import names
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.hairpin import hairpin_match
from kproxy.backends.iptables.layout_selection import layouts
from kproxy.backends.iptables.names import INVALID_COUNTER, LOCALHOST_COUNTER
from kproxy.backends.iptables.traffic import Chains, port_traffic, rule_traffic
from kproxy.config.model import ProxyConfig
from kproxy.kernel import nfacct, sysctl
from kproxy.kernel.links import AddressNews
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.legacy_counters import LegacyCounters
from kproxy.kernel.xtables.python_iptables import PythonIptablesError
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant, Xtables
from kproxy.modes.iptables.cleanup import remove_other_rules
from kproxy.modes.iptables_rules import rules_backend
from kproxy.node import route_localnet
from kproxy.node.facts import FamilyFacts

log = structlog.stdlib.get_logger(__name__)

COUNTERS = (INVALID_COUNTER, LOCALHOST_COUNTER)
TCP_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"


class Capabilities(msgspec.Struct, frozen=True):
    """The capabilities of the kernel and its iptables for one family that the rules depend on.

    `layout` is the requested one, if the kernel supports it. `counters` maps names of nfacct counters to
    whether rules may use them. `be_liberal`: conntrack does not mark out-of-window packets as invalid.
    """

    layout: str
    counters: Mapping[str, bool] = {}
    random_fully: bool = True
    be_liberal: bool = False


class IptablesMode:
    """The iptables mode; the kernel's capabilities are probed once at start."""

    def __init__(
        self,
        config: ProxyConfig,
        tables: Mapping[Family, Xtables],
        runner: Runner | None = None,
    ) -> None:
        self._config = config
        self._runner = runner
        self.tables = tables
        self._backends: dict[Family, IptablesBackend] = {}
        self._watches: RulesetWatches = {}
        self._route_localnet: dict[Family, bool] = {}
        self._be_liberal = conntrack_is_liberal()
        self._counters_of = _legacy_counters(tables, runner)
        self._layouts = {family: usable_layout(config, xtables) for family, xtables in tables.items()}
        self._counters = {
            family: {name: countable(xtables, name) for name in COUNTERS}
            for family, xtables in tables.items()
        }

    @property
    def families(self) -> tuple[Family, ...]:
        """The families whose programs were found."""
        return tuple(self.tables)

    @property
    def variants(self) -> Mapping[Family, Variant]:
        """The variants of the programs that were found."""
        return {family: xtables.variant for family, xtables in self.tables.items()}

    def share_writes(self, watches: RulesetWatches) -> None:
        """See SharesWrites."""
        self._watches = watches

    def configure(self, family: Family, facts: FamilyFacts) -> Backend:
        """Return the backend of a family."""
        config = self._settings(family, facts)
        # Where the parameter is read-only, one warning is enough.
        self._route_localnet[family] = config.localhost and route_localnet.allow()
        layout, larger = layouts(config, self._layouts[family])
        backend = self._backends.get(family)
        if backend is None:
            prepare = functools.partial(self._prepare, family)
            backend = rules_backend(layout, self.tables[family], self._watches, larger, prepare)
            self._backends[family] = backend
        else:
            backend.reconfigure(layout, larger)
        return backend

    def reconfigure(self, config: ProxyConfig) -> None:
        """Apply new settings."""
        if config.iptables_layout != self._config.iptables_layout:
            self._layouts = {f: usable_layout(config, xtables) for f, xtables in self.tables.items()}
        self._config = config

    def on_first_sync(self) -> None:
        """Remove the mode's rules in the variant that is not in use."""
        remove_other_rules(self.variants, self._runner)

    def run_timers(self) -> float | None:
        """Do nothing; the rules do not depend on time."""
        return None

    def compare_addresses(self, news: AddressNews) -> Mapping[Family, tuple[Drift, ...]]:  # noqa: ARG002
        """Return nothing: this mode adds no address to the node."""
        return {}

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        """Count rules from the backend's state, and traffic from the kernel."""
        backend = self._backends.get(family)
        rules = backend.rules() if backend is not None else {}
        if not traffic:
            return Measurement(rules=rules)
        try:
            return Measurement(self._traffic(family), rules)
        except RestoreError as error:
            raise MeasureError(error.message) from error

    def _traffic(self, family: Family) -> tuple[PortTraffic, ...]:
        """Read the rules' counters: of legacy tables without a process where that works, else from a dump."""
        counters = self._counters_of.get(family)
        if counters is not None:
            try:
                return rule_traffic(counters.read("nat", Chains.roots, Chains.leads_on))
            except PythonIptablesError as error:
                log.info("counters_by_process", family=family.value, reason=str(error))
                self._counters_of.pop(family)
        return port_traffic(self.tables[family].counters("nat"))

    def _prepare(self, family: Family, writing: bool) -> None:
        """Create the objects that the rules need, if others have removed them."""
        if self._route_localnet.get(family):
            self._route_localnet[family] = route_localnet.allow()
        if not writing:
            return
        for name, usable in self._counters[family].items():
            if usable:
                try:
                    nfacct.ensure(name)
                except nfacct.NfacctError as error:
                    log.warning("nfacct_unavailable", counter=name, reason=str(error))

    def _settings(self, family: Family, facts: FamilyFacts) -> IptablesConfig:
        capabilities = Capabilities(
            layout=self._layouts[family],
            counters=self._counters[family],
            random_fully=self.tables[family].random_fully,
            be_liberal=self._be_liberal,
        )
        return iptables_config(self._config, family, facts, capabilities)


def _legacy_counters(tables: Mapping[Family, Xtables], runner: Runner | None) -> dict[Family, LegacyCounters]:
    found = {}
    for family, xtables in tables.items():
        if xtables.variant is Variant.LEGACY:
            try:
                found[family] = LegacyCounters(family, runner)
            except PythonIptablesError as error:
                log.debug("counters_by_process", family=family.value, reason=str(error))
    return found


def iptables_config(
    config: ProxyConfig, family: Family, facts: FamilyFacts, capabilities: Capabilities
) -> IptablesConfig:
    """The settings of one family's rules, for these facts and capabilities of the node."""
    return IptablesConfig(
        family=family,
        masquerade_bit=config.masquerade_bit,
        masquerade_all=config.masquerade_all,
        local_traffic=facts.local_traffic,
        localhost_node_ports=facts.localhost_node_ports,
        node_port_addresses=facts.node_port_addresses,
        random_fully=capabilities.random_fully,
        drop_invalid=not capabilities.be_liberal,
        count_invalid=capabilities.counters.get(INVALID_COUNTER, False),
        count_localhost=capabilities.counters.get(LOCALHOST_COUNTER, False),
    )


def conntrack_is_liberal() -> bool:
    """Whether conntrack treats out-of-window packets as valid, so that no rule needs to drop them."""
    try:
        return sysctl.read(TCP_BE_LIBERAL) != "0"
    except sysctl.SysctlError:
        return False


def countable(xtables: Xtables, name: str) -> bool:
    """Whether the kernel has nfacct counters, and iptables the match for them."""
    try:
        if not nfacct.ensure(name):
            return False
    except nfacct.NfacctError as error:
        log.info("nfacct_unavailable", counter=name, reason=str(error))
        return False
    return _takes(xtables, f"-m nfacct --nfacct-name {name}", "nfacct_unavailable", counter=name)


def usable_layout(config: ProxyConfig, xtables: Xtables) -> str:
    """The requested layout, or "standard" if this kernel does not support it."""
    wanted = config.iptables_layout
    if wanted == "standard" or _takes(
        xtables, hairpin_match(xtables.family), "layout_unavailable", layout="scalable"
    ):
        return wanted
    return "standard"


def _takes(xtables: Xtables, match: str, event: str, **fields: str) -> bool:
    """Whether the kernel accepts a rule with this match: write one into a chain that no rule jumps to.

    The probe is repeated if others write at the same time, as a process of an earlier kproxy may, or if the
    program did not complete.
    """
    chain = names.PROBE
    tries = 5
    while True:
        tries -= 1
        try:
            xtables.restore(f"*filter\n:{chain} - [0:0]\n-A {chain} {match}\nCOMMIT\n".encode())
            xtables.restore(f"*filter\n:{chain} - [0:0]\n-X {chain}\nCOMMIT\n".encode())
        except RestoreError as error:
            if error.kind in {FailureKind.LOCKED, FailureKind.INTERRUPTED, FailureKind.OTHER} and tries:
                continue
            log.warning(event, family=xtables.family.value, reason=error.message, **fields)
            return False
        return True
