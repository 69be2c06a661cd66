"""Find firewalls of the host that block services in IPVS mode and that kproxy's rules cannot override.

Packets to virtual servers enter through hook input and leave through hook output. kproxy accepts them in one
table only: a chain of another table, or of the other iptables variant, can still drop them.
"""

import re
from collections.abc import Iterable, Iterator

import structlog

from kproxy.addresses import Family
from kproxy.backends.iptables import names
from kproxy.backends.iptables.dump import parse_save
from kproxy.kernel import generations, nft_tables
from kproxy.kernel.nft_tables import BaseChain, NftablesError
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import RestoreError, Variant, XtablesUnavailable

log = structlog.stdlib.get_logger(__name__)

REMEDY = (
    "let it accept what is for service addresses and node ports, or use --proxy-mode iptables or nftables, "
    "whose packets pass hook forward"
)
_HOOKS = {"INPUT": 1, "OUTPUT": 3}
"""NF_INET_LOCAL_IN and NF_INET_LOCAL_OUT of include/uapi/linux/netfilter.h."""
_IPVS_PRIORITY = 98
"""Priority of IPVS in hook input (net/netfilter/ipvs/ip_vs_core.c): later chains see none of its packets."""
_POLICY = re.compile(rb"^:(INPUT|OUTPUT) DROP ", re.MULTILINE)
_UNCONDITIONAL = re.compile(
    r'-A \S+ (?:-m comment --comment (?:"[^"]*"|\S+) )?-j (?:DROP|REJECT(?: --reject-with \S+)?)'
)
_ENTRY_CHAINS = (("INPUT", names.KUBE_IPVS_FILTER), ("OUTPUT", names.KUBE_IPVS_FORWARD))


def warn_of_firewalls(variant: Variant, runner: Runner | None = None) -> None:
    """Log the chains that block services in IPVS mode, with rules written in this variant."""
    found = list(shutting(variant, runner))
    if found:
        log.warning("services_shut_by_firewall", chains=found, remedy=REMEDY)


def shutting(variant: Variant, runner: Runner | None = None) -> Iterator[str]:
    """Every chain whose policy drops packets that kproxy's rules in this variant accept. Never raises."""
    for family in (*Family, None):
        try:
            yield from _dropping(family, nft_tables.base_chains(family), variant)
        except NftablesError as error:
            log.info("chains_not_listed", reason=str(error))
    if variant is Variant.NFT:
        for family in filter(generations.legacy_tables, Family):
            for hook in _POLICY.findall(_filter_table(_dump(family, Variant.LEGACY, runner))):
                yield f"chain {hook.decode()} of iptables-legacy {family}"


def shadowing(variant: Variant) -> Iterator[str]:
    """Rules of this variant that drop everything before kproxy's own accept anything. Never raises."""
    for family in Family:
        dump = _dump(family, variant)
        try:
            chains = parse_save(dump, ["filter"]).get("filter", {})
        except ValueError:
            continue
        for hook, entry in _ENTRY_CHAINS:
            place = shadowed_by(chains.get(hook, ()), entry)
            if place is not None:
                yield f"rule {place} of chain {hook} ({family})"


def shadowed_by(rules: Iterable[str], entry: str) -> int | None:
    """The position, from 1, of a rule that drops everything before the jump to chain `entry`."""
    place = None
    for number, rule in enumerate(rules, 1):
        if rule.endswith(f"-j {entry}"):
            return place
        if place is None and _UNCONDITIONAL.fullmatch(rule.strip()):
            place = number
    return None


def _dropping(family: Family | None, chains: Iterable[BaseChain], variant: Variant) -> Iterator[str]:
    of = "inet" if family is None else "ip" if family is Family.IPV4 else "ip6"
    for chain in chains:
        if not chain.drops or chain.hook not in _HOOKS.values():
            continue
        if chain.hook == _HOOKS["INPUT"] and chain.priority > _IPVS_PRIORITY:
            continue
        own = variant is Variant.NFT and family is not None and (chain.table, chain.name) in _OWN_CHAINS
        if not own:
            yield f"chain {chain.name} of nftables table {of} {chain.table}"


_OWN_CHAINS = {("filter", hook) for hook in _HOOKS}
"""The chains in which kproxy accepts packets to services, with iptables-nft."""


def _filter_table(dump: bytes) -> bytes:
    """The filter table of a dump; asking the program for one legacy table would make the kernel create it."""
    return dump.partition(b"*filter\n")[2].partition(b"\nCOMMIT")[0]


def _dump(family: Family, variant: Variant, runner: Runner | None = None) -> bytes:
    try:
        tools = find_tools(family, variant, probe=False, runner=runner)
        return SubprocessXtables(family, tools, runner=runner).save()
    except (XtablesUnavailable, RestoreError):
        return b""
