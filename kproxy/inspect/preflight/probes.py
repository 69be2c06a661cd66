"""Try on this kernel what a mode needs: rules in a chain that nothing leads to, a set, a device, a scheduler.

Run in a network namespace of its own where one can be made. Where not, on the node's own tables, under names
that are kproxy's, and everything is taken away again.
"""

from collections.abc import Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.iptables.restore import restore_text
from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight.evaluate import Trial
from kproxy.inspect.preflight.features import SET_MODULES, TRIAL, TRIAL_DEVICE, Feature, rule_features
from kproxy.kernel.addresses import DeviceError
from kproxy.kernel.conntrack.netlink import NetlinkConntrack
from kproxy.kernel.conntrack.types import ConntrackError
from kproxy.kernel.dummy import DummyDevice
from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipset.types import IpsetError, SetKind, SetSpec
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import IpvsError
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import RestoreError, Variant, Xtables, XtablesUnavailable
from kproxy.plan.schedulers import SCHEDULERS, parse_scheduler


class Trials(msgspec.Struct, frozen=True):
    """What came of everything that was tried; texts are refusals, "" where it worked.

    `unusable` says why a family's tables cannot be used at all; `rules` are the others' matches and targets.
    `sets`, `device`, `ipvs` and `schedulers` are those of the IPVS mode, and None or empty in another.
    """

    unusable: Mapping[Family, str]
    rules: Mapping[Family, tuple[tuple[Feature, Trial], ...]]
    conntrack: str
    sets: Mapping[tuple[SetKind, Family], str] = {}
    device: Trial | None = None
    ipvs: str = ""
    schedulers: Mapping[str, bool] = {}


def run_trials(config: ProxyConfig, variants: Mapping[Family, Variant]) -> Trials:
    """Try all that the mode of `config` needs, with the programs of these variants."""
    unusable: dict[Family, str] = {}
    rules: dict[Family, tuple[tuple[Feature, Trial], ...]] = {}
    sets: dict[tuple[SetKind, Family], str] = {}
    is_ipvs = config.proxy_mode == "ipvs"
    for family, variant in variants.items():
        try:
            xtables = SubprocessXtables(family, find_tools(family, variant))
        except XtablesUnavailable as error:
            unusable[family] = error.reason
            continue
        features = rule_features(config.proxy_mode, family, config.iptables_layout)
        if is_ipvs:
            sets |= {(kind, family): _set_refusal(kind, family) for kind in SET_MODULES}
        rules[family] = try_rules(xtables, features)
    found = Trials(unusable, rules, _conntrack_refusal(), sets)
    if not is_ipvs:
        return found
    ipvs, schedulers = _try_schedulers(parse_scheduler(config.ipvs_scheduler).name)
    return msgspec.structs.replace(found, device=_try_device(), ipvs=ipvs, schedulers=schedulers)


def try_rules(xtables: Xtables, features: Sequence[Feature]) -> tuple[tuple[Feature, Trial], ...]:
    """Write each rule into a chain that nothing leads to, and take the chain away at the end."""
    found = []
    spec = SetSpec(TRIAL, SetKind.IP, xtables.family)
    needs_set = any("--match-set" in feature.rule for feature in features)
    refused = _create(spec) if needs_set else ""
    try:
        for feature in features:
            refusal = refused if "--match-set" in feature.rule else ""
            found.append((feature, Trial(feature.name, refusal or _rule_refusal(xtables, feature))))
    finally:
        for table in sorted({feature.table for feature in features}):
            _delete_chain(xtables, table)
        if needs_set and not refused:
            _destroy()
    return tuple(found)


def _rule_refusal(xtables: Xtables, feature: Feature) -> str:
    rule = f"-A {TRIAL} {feature.rule}\n"
    try:
        xtables.restore(restore_text(feature.table, declare=[TRIAL], rules=[rule]))
    except RestoreError as error:
        return error.message
    return ""


def _delete_chain(xtables: Xtables, table: str) -> None:
    try:
        xtables.restore(restore_text(table, declare=[], rules=[], delete=[TRIAL]))
    except RestoreError:
        return  # nothing could be made in this table, so nothing is left in it


def _create(spec: SetSpec) -> str:
    try:
        NetlinkIpset().create(spec)
    except IpsetError as error:
        return str(error)
    return ""


def _destroy() -> str:
    try:
        NetlinkIpset().destroy(TRIAL)
    except IpsetError as error:
        return str(error)
    return ""


def _set_refusal(kind: SetKind, family: Family) -> str:
    refusal = _create(SetSpec(TRIAL, kind, family))
    return refusal or _destroy()


def _conntrack_refusal() -> str:
    try:
        NetlinkConntrack().udp_flows(Family.IPV4, ())
    except (ConntrackError, OSError) as error:
        return str(error)
    return ""


def _try_device() -> Trial:
    device = DummyDevice(TRIAL_DEVICE)
    try:
        device.ensure()
        device.delete()
    except DeviceError as error:
        return Trial("dummy device", str(error))
    return Trial("dummy device")


def _try_schedulers(wanted: str) -> tuple[str, dict[str, bool]]:
    ipvs = NetlinkIpvs()
    try:
        return "", {name: ipvs.has_scheduler(name) for name in sorted({*SCHEDULERS, wanted})}
    except IpvsError as error:
        return str(error), {}
