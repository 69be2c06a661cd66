"""What the next sync would change on this node: the real backends, run against a dry run of its kernel.

Everything is read as `kproxy run` reads it, objects from their source once, rules, sets and virtual servers
from the kernel or from a saved dump; then the first sync of a new kproxy takes place in memory. What it would
take to find out what the kernel can do is tried in a network namespace that ends with the trial.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend
from kproxy.backends.core.change import Change, Sign
from kproxy.backends.iptables.dryrun import DryRunXtables
from kproxy.backends.iptables.layout_selection import layouts
from kproxy.backends.ipvs.backend import IpvsBackend
from kproxy.backends.ipvs.dryrun import DryRunDevice, DryRunIpset, DryRunIpvs
from kproxy.backends.ipvs.handles import KERNEL_ERRORS, KernelHandles
from kproxy.backends.ipvs.layout import IpvsLayout
from kproxy.backends.ipvs.names import DEVICE
from kproxy.config.model import ConfigError, ProxyConfig, validate
from kproxy.inspect.nftables_diff import compare_tables, former_rules, former_tables
from kproxy.inspect.render import addresses_of
from kproxy.inspect.sysctls import look
from kproxy.kernel import links, nfacct
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import IpvsError
from kproxy.kernel.nft.types import NftError
from kproxy.kernel.nft_tables import NftablesError
from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables, XtablesTools
from kproxy.kernel.xtables.types import RestoreError, Variant, XtablesUnavailable
from kproxy.modes.iptables import (
    COUNTERS,
    Capabilities,
    countable,
    iptables_config,
    is_liberal,
    rules_backend,
    usable_layout,
)
from kproxy.modes.ipvs import ipvs_config, rules_config
from kproxy.modes.ipvs_teardown import IpvsTeardown
from kproxy.modes.kinds import needed_kinds
from kproxy.modes.registry import ipvs_handles
from kproxy.node.facts import NodeFacts, node_facts
from kproxy.plan.planner import Planner
from kproxy.sources.manifests import LoadedManifests, load_manifests
from kproxy.state.tables import Tables
from kproxy.text import clean


class DifferenceError(Exception):
    """The difference cannot be told; the message says why."""


_LONGEST_LINE = 1 << 16
"""Characters of a line; the longest rule is that of an affinity over many endpoints."""


class Difference(msgspec.Struct, frozen=True):
    """All that the next sync would change.

    `rules` are chains and rules of built-in chains by family; `others` all other objects. `failed` says of
    services that could not be programmed why not, `problems` what is wrong with objects.
    """

    rules: Mapping[Family, tuple[Change, ...]]
    others: tuple[Change, ...] = ()
    failed: Mapping[str, str] = {}
    problems: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not self.others and not any(self.rules.values())

    def lines(self) -> Iterator[str]:
        """A line for each object."""
        for family, changes in self.rules.items():
            for change in changes:
                line = f"{change.sign} {family} {str(change).removeprefix(change.sign + ' ')}"
                yield clean(line, _LONGEST_LINE)
        yield from (clean(str(change), _LONGEST_LINE) for change in self.others)

    def json(self) -> bytes:
        """The same for programs: `changes` with family (of rules), sign, object, detail; failed; problems."""
        changes = [
            {"family": family, **msgspec.structs.asdict(change)}
            for family, found in self.rules.items()
            for change in found
        ]
        changes += [msgspec.structs.asdict(change) for change in self.others]
        found = {"changes": changes, "failed": self.failed, "problems": self.problems}
        return msgspec.json.format(msgspec.json.encode(found), indent=2)


def of_this_node(config: ProxyConfig) -> Difference:
    """Compare with this node's kernel.

    Raises ConfigError, DifferenceError, and what the source raises: OSError, ClusterAccessError, ApiError.
    """
    validate(config)
    tables, problems, servers = _load(config)
    interfaces = links.local_addresses(exclude={DEVICE})
    facts = _facts(config, tables, interfaces, servers)
    if config.proxy_mode == "nftables":
        try:
            found = _rehearse_nftables(config, tables, facts)
        except (NftError, ScratchUnavailable, RestoreError, ValueError, *KERNEL_ERRORS) as error:
            raise DifferenceError(f"--proxy-mode nftables: {error}") from error
        found = msgspec.structs.replace(found, problems=(*problems, *found.problems))
        return _with_sysctls(config, facts, found)
    tools = _tools(config)
    try:
        dumps = {
            family: DryRunXtables(family, found.variant, xtables.save(), random_fully=xtables.random_fully)
            for family, found in tools.items()
            for xtables in (SubprocessXtables(family, found),)
        }
        found = _dry_run(config, tables, facts, dumps, _capabilities(config, tools))
        rules = {
            family: (*changes, *former_rules(family, used=tools[family].variant))
            for family, changes in found.rules.items()
        }
        others = (*found.others, *former_tables())
    except (RestoreError, NftablesError, ValueError, *KERNEL_ERRORS) as error:
        raise DifferenceError(f"the kernel cannot be read: {error}") from error
    found = msgspec.structs.replace(found, rules=rules, others=others, problems=(*problems, *found.problems))
    return _with_sysctls(config, facts, found)


def of_dump(config: ProxyConfig, file: Path, family: Family) -> Difference:
    """Compare with the rules in a file that iptables-save or ip6tables-save printed.

    What the dump does not tell of the kernel is taken to be as its rules suggest, node addresses as the Node
    has them. Raises as of_this_node does.
    """
    validate(config)
    if config.proxy_mode != "iptables":
        raise ConfigError([f"--against: only for --proxy-mode iptables, not {config.proxy_mode}"])
    tables, problems, servers = _load(config)
    facts = _facts(config, tables, addresses_of(tables.node), servers)
    dump = file.read_bytes()
    try:
        dry_run = DryRunXtables(family, config.iptables_variant or Variant.NFT, dump)
    except ValueError as error:
        raise DifferenceError(f"{file}: {error}") from error
    capabilities = {family: _capabilities_in(dump, config)}
    found = _dry_run(config, tables, facts, {family: dry_run}, capabilities, departing=False)
    return msgspec.structs.replace(found, problems=(*problems, *found.problems))


def _load(config: ProxyConfig) -> tuple[Tables, tuple[str, ...], frozenset[tuple[str, int]]]:
    """The objects, what is wrong with them, and the addresses and ports of API servers."""
    loaded = _objects(config)
    tables = Tables()
    for kind, objects in loaded.objects.items():
        tables.replace(kind, [obj for obj in objects if kind.wants(obj.key, config.node_name)])
    return tables, tuple(str(problem) for problem in loaded.problems), loaded.api_servers


def _objects(config: ProxyConfig) -> LoadedManifests:
    if config.manifests is not None:
        return load_manifests(config.manifests)
    from kproxy.sources.cluster import ClusterAccess
    from kproxy.sources.list_once import list_once

    access = ClusterAccess(config.kubeconfig, master=config.master or None)
    return list_once(access, config.node_name, kinds=needed_kinds(config))


def _facts(
    config: ProxyConfig, tables: Tables, interfaces: Sequence[str], servers: Collection[tuple[str, int]]
) -> NodeFacts:
    facts = node_facts(config, tables.node, interfaces, tables.service_ranges, servers)
    if facts is None:
        raise ConfigError([f"--detect-local-mode NodeCIDR: no Node {config.node_name} with podCIDRs found"])
    return facts


def _tools(config: ProxyConfig) -> dict[Family, XtablesTools]:
    found: dict[Family, XtablesTools] = {}
    reasons: list[str] = []
    for family in Family:
        try:
            found[family] = find_tools(family, config.iptables_variant, probe=False)
        except XtablesUnavailable as error:
            reasons.append(f"{family}: {error.reason}")
    if not found:
        raise DifferenceError("; ".join(reasons))
    return found


def _dry_run(
    config: ProxyConfig,
    tables: Tables,
    facts: NodeFacts,
    dumps: Mapping[Family, DryRunXtables],
    capabilities: Mapping[Family, Capabilities],
    *,
    departing: bool = True,
) -> Difference:
    """Let a new kproxy sync once, in memory; `departing` says whether another mode's remains count."""
    real = ipvs_handles()
    ipvs = DryRunIpvs(real.ipvs, _offers)
    ipset = DryRunIpset(real.ipset)
    device = DryRunDevice(real.device, exists=departing and links.exists(DEVICE))
    handles = KernelHandles(ipvs, ipset, device)
    inputs = tables.dirty()
    problems: dict[str, None] = {}
    failed: dict[str, str] = {}
    for family, dry_run in dumps.items():
        backend = _backend(config, facts, dry_run, capabilities[family], handles)
        plans = Planner(family).update(inputs, facts.view)
        problems |= dict.fromkeys(str(problem) for plan in plans.values() for problem in plan.problems)
        backend.update(plans.values())
        report = backend.sync()
        if report.error is not None:
            raise DifferenceError(f"{family}: {report.error}")
        failed |= report.failed
    if departing and config.proxy_mode != "ipvs":
        _leave(config, handles)
    rules = {family: tuple(sorted(dry_run.changes())) for family, dry_run in dumps.items()}
    others = (*sorted(device.changes()), *sorted(ipset.changes()), *sorted(ipvs.changes()))
    return Difference(rules, others, failed, tuple(problems))


def _rehearse_nftables(config: ProxyConfig, tables: Tables, facts: NodeFacts) -> Difference:
    """The same for the nftables mode, after which the rules and virtual servers of other modes go."""
    found = compare_tables(config, tables.dirty(), facts)
    real = ipvs_handles()
    ipvs = DryRunIpvs(real.ipvs, _offers)
    ipset = DryRunIpset(real.ipset)
    device = DryRunDevice(real.device, exists=links.exists(DEVICE))
    _leave(config, KernelHandles(ipvs, ipset, device))
    rules = {family: (*changes, *former_rules(family)) for family, changes in found.tables.items()}
    others = (*sorted(device.changes()), *sorted(ipset.changes()), *sorted(ipvs.changes()))
    return Difference(rules, others, found.failed, found.problems)


def _leave(config: ProxyConfig, handles: KernelHandles) -> None:
    """Take away what an IPVS mode left, as another mode would."""
    leaving = IpvsTeardown(handles, config.ipvs_graceful_period, config.ipvs_exclude_cidrs, time.monotonic)
    leaving.begin()
    leaving.run_timers()


def _backend(
    config: ProxyConfig,
    facts: NodeFacts,
    xtables: DryRunXtables,
    capabilities: Capabilities,
    handles: KernelHandles,
) -> Backend:
    family = xtables.family
    of_family = facts.families[family]
    if config.proxy_mode == "ipvs":
        rules = rules_config(config, family, of_family, random_fully=capabilities.random_fully)
        settings = ipvs_config(config, rules, of_family)
        return IpvsBackend(settings, handles, rules_backend(IpvsLayout(rules), xtables, {}), time.monotonic)
    usual, larger = layouts(iptables_config(config, family, of_family, capabilities), capabilities.layout)
    return rules_backend(usual, xtables, {}, larger)


def _capabilities(config: ProxyConfig, tools: Mapping[Family, XtablesTools]) -> dict[Family, Capabilities]:
    """What this kernel can do, tried where it changes nothing; else what stands in it suggests."""
    liberal = is_liberal()

    def tried() -> dict[Family, Capabilities]:
        found = {}
        for family, programs in tools.items():
            xtables = SubprocessXtables(family, programs)
            counters = {name: countable(xtables, name) for name in COUNTERS}
            layout = usable_layout(config, xtables)
            found[family] = Capabilities(layout, counters, xtables.random_fully, liberal)
        return found

    try:
        return in_scratch_network(tried)
    except ScratchUnavailable:
        standing = _standing_counters()
        return {
            family: Capabilities(
                config.iptables_layout, standing, SubprocessXtables(family, programs).random_fully, liberal
            )
            for family, programs in tools.items()
        }


def _standing_counters() -> dict[str, bool]:
    """The counters that an earlier kproxy or kube-proxy could make here."""
    try:
        return {name: name in nfacct.read() for name in COUNTERS}
    except nfacct.NfacctError:
        return {}


def _capabilities_in(dump: bytes, config: ProxyConfig) -> Capabilities:
    counters = {name: name.encode() in dump for name in COUNTERS}
    liberal = b":KUBE-FORWARD " in dump and b"--ctstate INVALID" not in dump
    plain = b"-j MASQUERADE\n" in dump and b"--random-fully" not in dump
    return Capabilities(config.iptables_layout, counters, not plain, liberal)


def _offers(scheduler: str) -> bool:
    try:
        return in_scratch_network(lambda: NetlinkIpvs().has_scheduler(scheduler))
    except (ScratchUnavailable, IpvsError):
        return True


def _with_sysctls(config: ProxyConfig, facts: NodeFacts, found: Difference) -> Difference:
    """The same with the kernel parameters that a start sets, and a problem for each that it cannot set."""
    localhost = facts.families[Family.IPV4].localhost_node_ports
    wrong = [
        each for each in look(config, tuple(Family), localhost=localhost) if each.sets and not each.right
    ]
    changes = [
        Change(f"sysctl {each.name}", Sign.CHANGE, f"{each.now} -> {each.wanted}")
        for each in wrong
        if each.writable
    ]
    problems = [
        f"sysctl {each.name}: {each.deviation} and cannot be set here; {each.command}"
        for each in wrong
        if not each.writable and each.now is not None
    ]
    return msgspec.structs.replace(
        found, others=(*found.others, *changes), problems=(*found.problems, *problems)
    )
