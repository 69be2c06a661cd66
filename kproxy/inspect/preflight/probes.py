"""Probe the features that iptables rules of a mode need, in a chain that no rule jumps to.

The probes run in a temporary network namespace if one can be made, else on the node's own tables, under names
that only kproxy uses; they remove everything they create.
"""

from collections.abc import Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.iptables.restore import restore_text
from kproxy.config.model import ProxyConfig
from kproxy.kernel.conntrack.netlink import NetlinkConntrack
from kproxy.kernel.conntrack.types import ConntrackError
from kproxy.kernel.ipset.types import SetKind, SetSpec
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import RestoreError, Variant, Xtables, XtablesUnavailable
from kproxy.modes.base import ModeSpec
from kproxy.modes.findings import ProbeResult
from kproxy.modes.probe_set import create_set, destroy_set
from kproxy.modes.rule_features import PROBE_NAME, Feature


class ProbeResults(msgspec.Struct, frozen=True):
    """The results of all probes; texts are refusals, "" where a probe worked.

    `unusable` has the reason if a family's tables cannot be used at all; `rules` are the matches and targets
    of the other families.
    """

    unusable: Mapping[Family, str]
    rules: Mapping[Family, tuple[tuple[Feature, ProbeResult], ...]]
    conntrack: str


def run_probes(spec: ModeSpec, config: ProxyConfig, variants: Mapping[Family, Variant]) -> ProbeResults:
    """Probe all features that the rules of a mode need, with the programs of these variants."""
    unusable: dict[Family, str] = {}
    rules: dict[Family, tuple[tuple[Feature, ProbeResult], ...]] = {}
    for family, variant in variants.items():
        try:
            xtables = SubprocessXtables(family, find_tools(family, variant))
        except XtablesUnavailable as error:
            unusable[family] = error.reason
            continue
        rules[family] = probe_rules(xtables, spec.features(family, config.iptables_layout))
    return ProbeResults(unusable, rules, _conntrack_refusal())


def probe_rules(xtables: Xtables, features: Sequence[Feature]) -> tuple[tuple[Feature, ProbeResult], ...]:
    """Write each rule into a chain that no rule jumps to, and delete the chain at the end."""
    found = []
    spec = SetSpec(PROBE_NAME, SetKind.IP, xtables.family)
    needs_set = any("--match-set" in feature.rule for feature in features)
    refused = create_set(spec) if needs_set else ""
    try:
        for feature in features:
            refusal = refused if "--match-set" in feature.rule else ""
            found.append((feature, ProbeResult(feature.name, refusal or _rule_refusal(xtables, feature))))
    finally:
        for table in sorted({feature.table for feature in features}):
            _delete_chain(xtables, table)
        if needs_set and not refused:
            destroy_set()
    return tuple(found)


def _rule_refusal(xtables: Xtables, feature: Feature) -> str:
    rule = f"-A {PROBE_NAME} {feature.rule}\n"
    try:
        xtables.restore(restore_text(feature.table, declare=[PROBE_NAME], rules=[rule]))
    except RestoreError as error:
        return error.message
    return ""


def _delete_chain(xtables: Xtables, table: str) -> None:
    try:
        xtables.restore(restore_text(table, declare=[], rules=[], delete=[PROBE_NAME]))
    except RestoreError:
        return  # nothing could be created in this table, so nothing is left in it


def _conntrack_refusal() -> str:
    try:
        NetlinkConntrack().udp_flows(Family.IPV4, ())
    except (ConntrackError, OSError) as error:
        return str(error)
    return ""
