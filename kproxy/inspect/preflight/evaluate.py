"""Turn probe results into findings, for the needs common to all modes. Pure functions."""

from collections.abc import Iterator, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.inspect.sysctls import Sysctl
from kproxy.kernel.xtables.extensions import Revisions
from kproxy.kernel.xtables.legacy_rules import Counts
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.findings import Finding, ProbeResult, failed, ok, warning
from kproxy.modes.rule_features import LEAST_REVISIONS, Feature

NET_ADMIN, NET_RAW = 12, 13
"""Bits of /proc/PID/status CapEff (include/uapi/linux/capability.h)."""

_NOT_IN_PROGRAM = ("Couldn't load", "unknown option", "Can't find library", "Chain '")
"""Parts of iptables' errors about an extension that the program does not know (both variants of 1.8.9)."""


def capability_findings(effective: int, variant: Variant | None) -> Iterator[Finding]:
    """Findings about the capabilities of the process; `effective` is CapEff as a number."""
    lacking = [
        name
        for name, bit in (("NET_ADMIN", NET_ADMIN), ("NET_RAW", NET_RAW))
        if not effective >> bit & 1 and (bit == NET_ADMIN or variant is Variant.LEGACY)
    ]
    if lacking:
        names = " and ".join(f"CAP_{name}" for name in lacking)
        yield failed(
            "permissions",
            f"the process does not have {names}",
            f"run as root, or add {', '.join(lacking)} to securityContext.capabilities.add of the container",
        )
    else:
        yield ok("permissions", "the capabilities that are needed are there")


def program_findings(found: Mapping[Family, str], missing: Mapping[Family, str]) -> Iterator[Finding]:
    """Findings about the iptables programs: `found` describes them, `missing` has the reasons for none."""
    for family, programs in found.items():
        yield ok(f"iptables {family}", programs)
    for family, reason in missing.items():
        if found:
            effect = f"{reason}; services of this family are not served"
            yield warning(f"iptables {family}", effect, _family_remedy(reason))
        else:
            yield failed(f"iptables {family}", reason, _family_remedy(reason))


def feature_findings(family: Family, results: Sequence[tuple[Feature, ProbeResult]]) -> Iterator[Finding]:
    """Findings about matches and targets of one family; all working ones share one finding."""
    working = [feature.name for feature, result in results if not result.refusal]
    if working:
        yield ok(f"rules {family}", f"{len(working)} matches and targets work: {_short(working)}")
    for feature, result in results:
        if not result.refusal:
            continue
        subject, reason = f"{feature.name} {family}", _one_line(result.refusal)
        remedy = _feature_remedy(feature, result.refusal)
        if feature.essential:
            yield failed(subject, f"refused: {reason}", remedy)
        else:
            yield warning(subject, f"refused: {reason}; {feature.without}", remedy)


def extension_findings(family: Family, found: Revisions) -> Iterator[Finding]:
    """Findings about the revisions in libxtables of the matches and targets that rules of one family use."""
    missing = [name for name, revision in found.items() if revision is None]
    old = {
        name: revision
        for name, revision in found.items()
        if revision is not None and revision < LEAST_REVISIONS.get(name, 0)
    }
    if not missing and not old:
        listed = ", ".join(f"{name.partition(' ')[2]} {revision}" for name, revision in found.items())
        yield ok(f"extensions {family}", f"libxtables has all {len(found)}, in these revisions: {listed}")
    for name in missing:
        reason = "libxtables cannot load its shared object"
        yield warning(f"extension {name} {family}", reason, _extension_remedy(name))
    for name, revision in old.items():
        least = LEAST_REVISIONS[name]
        reason = f"revision {revision} is the newest that libxtables and kernel share; {least} is needed"
        yield warning(f"extension {name} {family}", reason, "use a newer iptables or kernel")


def conntrack_findings(refusal: str) -> Iterator[Finding]:
    """Findings about the access to connection tracking over netlink."""
    if refusal:
        effect = f"{refusal}; UDP flows to endpoints that left are not forgotten"
        yield warning("conntrack", effect, "load the kernel module nf_conntrack_netlink")
    else:
        yield ok("conntrack", "flows can be read over netlink")


def sysctl_findings(sysctls: Sequence[Sysctl]) -> Iterator[Finding]:
    """Findings about kernel parameters; all correct ones share one finding."""
    right = [sysctl.name for sysctl in sysctls if sysctl.right]
    if right:
        yield ok("sysctls", f"as needed: {', '.join(right)}")
    for sysctl in sysctls:
        if sysctl.right:
            continue
        subject, deviation = f"sysctl {sysctl.name}", sysctl.deviation
        if sysctl.sets and sysctl.writable:
            yield ok(subject, f"{deviation}; kproxy sets it")
        elif sysctl.essential:
            found = f"{deviation} and cannot be set; needed so that {sysctl.effect}"
            yield failed(subject, found, sysctl.command)
        else:
            cannot = " and cannot be set" if sysctl.sets else ""
            yield warning(subject, f"{deviation}{cannot}; needed so that {sysctl.effect}", sysctl.command)


def variant_findings(
    chosen: Variant | None,
    legacy: Mapping[Family, Counts],
    nft: Mapping[Family, Counts],
    unreadable: Mapping[Family, str],
) -> Iterator[Finding]:
    """Warn of rules in both variants' tables: packets pass both, and each program sees only its own."""
    for family, reason in unreadable.items():
        remedy = f"install iptables-legacy or python-iptables, then look at its {family} tables"
        yield warning(
            f"iptables variants {family}", f"legacy tables exist and cannot be read: {reason}", remedy
        )
    both = [
        f"{family}: legacy {_counts(legacy[family])}, nft {_counts(nft[family])}"
        for family in Family
        if legacy.get(family) and nft.get(family)
    ]
    if both:
        which, other = (Variant.LEGACY, legacy) if chosen is Variant.NFT else (Variant.NFT, nft)
        chains = {chain for found in other.values() for table in found.values() for chain in table}
        remedy = (
            f"iptables-{which}-save shows the rules that {chosen} does not: let what wrote them use {chosen}"
        )
        if any(chain.startswith("KUBE-") for chain in chains):
            remedy = "`kproxy cleanup --peer kube-proxy` removes service rules of both; then start kproxy"
        yield warning("iptables variants", f"both are in use at once ({'; '.join(both)})", remedy)
    elif not unreadable:
        yield ok("iptables variants", f"one is in use: {chosen}" if chosen else "none is in use")


def _counts(found: Counts) -> str:
    return ", ".join(f"{sum(chains.values())} in {table}" for table, chains in sorted(found.items()))


def _short(names: Sequence[str]) -> str:
    return ", ".join(name.partition(" ")[2] for name in names)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _feature_remedy(feature: Feature, refusal: str) -> str:
    if any(text in refusal for text in _NOT_IN_PROGRAM):
        return _extension_remedy(feature.name)
    return f"load the kernel module {feature.module} (modprobe {feature.module}), or use a kernel that has it"


def _extension_remedy(name: str) -> str:
    return f"install an iptables with the extension {name.partition(' ')[2]} (package iptables 1.8 has it)"


def _family_remedy(reason: str) -> str:
    if "installed" in reason:
        return "install the package iptables"
    if "has no IPv6" in reason or "IPv6 is disabled" in reason:
        return "none is needed in a cluster without IPv6; else enable IPv6 in the kernel"
    if "lock file" in reason:
        return "run as root with the node's own xtables lock (/run/xtables.lock mounted into the container)"
    modules = "modprobe iptable_nat ip6table_nat, or nft_chain_nat"
    return f"load the kernel's address translation ({modules}), or try the other --iptables-variant"
