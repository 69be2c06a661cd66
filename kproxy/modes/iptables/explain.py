"""What `explain` needs of the iptables mode: how rules are read, and its intended peculiarities."""

import errno
import functools
from collections.abc import Callable, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.core.packets import Flow, SharedRules
from kproxy.backends.iptables.interpreter import built_in_chains
from kproxy.backends.iptables.matching import Surroundings
from kproxy.backends.iptables.parsed import Tables, TablesByChain
from kproxy.config.model import ProxyConfig
from kproxy.kernel import generations, recent
from kproxy.kernel.ipset.lookup import Members, Side
from kproxy.kernel.ipset.lookup import read as read_sets
from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables import native
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant, XtablesUnavailable
from kproxy.modes.base import ExplainError, KernelRules, exact_shares
from kproxy.modes.iptables.mode import Capabilities, iptables_config
from kproxy.node.facts import FamilyFacts
from kproxy.plan.outcomes import ModeFacts

_FEW_CHAINS = 256
"""Up to this number, one process that prints all is faster than some that print a few chains each."""


class IptablesReader:
    """Reads the tables of both variants of iptables: packets pass both. See RuleReader."""

    def __init__(self, _config: ProxyConfig, runner: Runner) -> None:
        self._runner = runner

    dump = "iptables-save"

    def read_kernel(self, family: Family, shared: SharedRules) -> KernelRules:
        """Read the tables that exist; without the programs of a variant its tables are left out.

        Those of iptables-nft are then read as tables of nftables.
        """
        seen = recent.clients()
        members = functools.cache(lambda name: read_sets(NetlinkIpset(), {name}))
        before = generations.ruleset_generation(family, Variant.NFT)
        parts = []
        unread = []
        for variant in Variant:
            if not _exists(family, variant):
                continue
            try:
                tools = find_tools(family, variant, probe=False, runner=self._runner)
                tables = _tables(SubprocessXtables(family, tools, runner=self._runner))
            except XtablesUnavailable as error:
                unread.append(f"iptables rules ({variant}): {error.reason}")
                continue
            except RestoreError as error:
                raise _unreadable(variant, error) from error
            is_nft = variant is Variant.NFT
            others = shared if is_nft else SharedRules()
            parts.append(_rules(tables, family, seen, members, others, covers=is_nft))
        return KernelRules(
            tuple(chain for rules in parts for chain in rules.chains),
            frozenset[str]().union(*(rules.covered for rules in parts)),
            tuple(unread),
            lambda: generations.ruleset_generation(family, Variant.NFT) == before,
        )

    @staticmethod
    def load_dump(text: str, family: Family) -> KernelRules | None:
        """The tables in what iptables-save printed; what sets and `recent` lists hold is not known."""
        if not text.lstrip().startswith(("#", "*")):
            return None
        try:
            tables = Tables(text.encode("utf-8", "surrogateescape"), edited=True)
        except ValueError as error:
            raise ExplainError(f"not the output of iptables-save: {error}") from error
        return _rules(tables, family, {}, lambda _: Members({}), SharedRules(), covers=True)


def _exists(family: Family, variant: Variant) -> bool:
    if variant is Variant.LEGACY:
        return bool(generations.legacy_tables(family))
    try:
        return bool(native.tables(family))
    except OSError as error:
        hint = " (root is needed)" if error.errno in {errno.EPERM, errno.EACCES} else ""
        raise ExplainError(f"cannot list tables: {error.strerror or error}{hint}") from error


def _tables(xtables: SubprocessXtables) -> Tables:
    """The tables of a variant; those of a large one are read chain by chain. Raises RestoreError."""

    def load(table: str, chains: Sequence[str]) -> Mapping[str, str]:
        try:
            return xtables.print_chains(table, chains)
        except RestoreError as error:
            raise _unreadable(xtables.variant, error) from error

    if xtables.variant is Variant.NFT:
        try:
            held = {name: native.chains(xtables.family, name) for name in native.tables(xtables.family)}
        except OSError as error:
            raise RestoreError(FailureKind.OTHER, f"chains: {error.strerror or error}") from error
        if sum(map(len, held.values())) > _FEW_CHAINS:
            return TablesByChain(held, load)
    return Tables(xtables.save())


def _unreadable(variant: Variant, error: RestoreError) -> ExplainError:
    return ExplainError(f"cannot read iptables rules ({variant}): {error.message}")


def _rules(
    tables: Tables,
    family: Family,
    seen: Mapping[str, Mapping[str, float]],
    members: Callable[[str], Members],
    shared: SharedRules,
    *,
    covers: bool,
) -> KernelRules:
    def contains(flow: Flow, name: str, sides: Sequence[str]) -> bool | None:
        ends = {"src": Side(flow.source, flow.source_port), "dst": Side(flow.destination, flow.port)}
        return members(name).has(name, flow.protocol.value, ends, sides)

    ip = "ip" if family is Family.IPV4 else "ip6"
    covered = frozenset(f"{ip} {name}" for name in tables.names()) if covers else frozenset[str]()
    return KernelRules(built_in_chains(tables, Surroundings(family, seen, contains, shared)), covered)


def facts(config: ProxyConfig, family: Family, node: FamilyFacts) -> ModeFacts:
    """The intended peculiarities of the mode for a family."""
    settings = iptables_config(config, family, node, Capabilities(config.iptables_layout))
    return ModeFacts(
        shares=exact_shares,
        node_port_addresses=settings.node_port_addresses,
        loopback_node_ports=settings.localhost,
        node_port_refusals_everywhere=True,
        refuses_node_itself=False,
        admits_external_ips=True,
        hairpin_anywhere=True,
    )
