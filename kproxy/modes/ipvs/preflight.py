"""Probes of `kproxy check` for IPVS mode: sets, schedulers, the device, the host's firewall."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.ipvs.names import DEVICE
from kproxy.config.model import ProxyConfig
from kproxy.kernel.addresses import DeviceError
from kproxy.kernel.dummy import DummyDevice
from kproxy.kernel.ipset.types import SetKind, SetSpec
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import IpvsError
from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.findings import Finding, ProbeResult, failed, ok, warning
from kproxy.modes.probe_set import create_set, destroy_set
from kproxy.modes.rule_features import PROBE_NAME, Feature, common_features
from kproxy.node import host_firewall
from kproxy.plan.schedulers import SCHEDULERS, parse_scheduler

PROBE_DEVICE = "kproxy-probe0"

SET_MODULES: Mapping[SetKind, str] = {
    SetKind.IP: "ip_set_hash_ip",
    SetKind.IP_PORT: "ip_set_hash_ipport",
    SetKind.IP_PORT_IP: "ip_set_hash_ipportip",
    SetKind.IP_PORT_NET: "ip_set_hash_ipportnet",
}
"""The kernel module of each set type that the mode uses."""


class ProbeResults(msgspec.Struct, frozen=True):
    """The kernel's answer to each probe; texts are refusals, "" where it worked."""

    sets: Mapping[tuple[SetKind, Family], str]
    device: ProbeResult
    ipvs: str
    schedulers: Mapping[str, bool]


def features(family: Family, _layout: str) -> tuple[Feature, ...]:
    """The matches and targets of the rules around virtual servers."""
    return (
        *common_features(family),
        Feature("match set", "nat", f"-m set --match-set {PROBE_NAME} dst", "xt_set"),
    )


def check(config: ProxyConfig, variants: Mapping[Family, Variant]) -> Iterator[Finding]:
    """Probe the mode's other needs besides iptables rules, in a temporary network namespace if possible."""
    wanted = parse_scheduler(config.ipvs_scheduler).name
    try:
        results = in_scratch_network(lambda: _run_probes(wanted, variants))
    except ScratchUnavailable:
        results = _run_probes(wanted, variants)
    yield from set_findings(results.sets)
    yield from ipvs_findings(wanted, results.ipvs, results.schedulers)
    yield from device_findings(results.device)
    yield from _check_device_name()
    for variant in tuple(variants.values())[:1]:
        yield from firewall_findings(
            tuple(host_firewall.shutting(variant)),
            tuple(host_firewall.shadowing(variant)),
            host_firewall.REMEDY,
        )


def set_findings(results: Mapping[tuple[SetKind, Family], str]) -> Iterator[Finding]:
    """Findings about set types by family from the kernel's refusals ("": none)."""
    working = sorted({str(kind) for (kind, _), refusal in results.items() if not refusal})
    if working:
        yield ok("sets", f"types work: {', '.join(working)}")
    for (kind, family), refusal in results.items():
        if refusal:
            module = SET_MODULES[kind]
            remedy = f"load the kernel module {module} (modprobe {module}), or use a kernel that has it"
            yield failed(f"set type {kind} {family}", refusal, remedy)


def ipvs_findings(wanted: str, unavailable: str, offered: Mapping[str, bool]) -> Iterator[Finding]:
    """Findings about IPVS and its schedulers; `wanted` is that of --ipvs-scheduler."""
    if unavailable:
        yield failed("IPVS", unavailable, "load the kernel module ip_vs, or use --proxy-mode iptables")
        return
    have = [name for name, there in offered.items() if there]
    lack = [name for name, there in offered.items() if not there]
    missing = f"; not {', '.join(lack)}" if lack else ""
    yield ok("IPVS", f"schedulers: {', '.join(have) or 'none'}{missing}")
    if not offered.get(wanted, False):
        yield failed(
            f"scheduler {wanted}",
            "--ipvs-scheduler names it and this kernel does not have it",
            f"load the kernel module ip_vs_{wanted}, or choose one of {', '.join(have) or 'none'}",
        )


def device_findings(result: ProbeResult) -> Iterator[Finding]:
    """Findings about dummy devices, which hold service addresses in the IPVS mode."""
    if result.refusal:
        yield failed(
            result.subject, result.refusal, "load the kernel module dummy, or remove the interface in its way"
        )
    else:
        yield ok(result.subject, "can be made")


def firewall_findings(shutting: Sequence[str], shadowing: Sequence[str], remedy: str) -> Iterator[Finding]:
    """Findings about host rules that drop packets to services, which pass hooks input and output."""
    for chain in shutting:
        reason = "its policy is drop, and rules of another table do not change that: services are shut"
        yield warning(f"firewall, {chain}", reason, remedy)
    for rule in shadowing:
        reason = "it drops all packets to services before kproxy's rules accept them"
        yield warning(f"firewall, {rule}", reason, "move it behind kproxy's rule, or to the end of its chain")
    if not shutting and not shadowing:
        yield ok("firewall", "packets to services are not dropped by the policy of any other chain")


def _run_probes(scheduler: str, families: Collection[Family]) -> ProbeResults:
    sets = {(kind, family): _set_refusal(kind, family) for family in families for kind in SET_MODULES}
    ipvs, schedulers = _probe_schedulers(scheduler)
    return ProbeResults(sets, _probe_device(), ipvs, schedulers)


def _set_refusal(kind: SetKind, family: Family) -> str:
    refusal = create_set(SetSpec(PROBE_NAME, kind, family))
    return refusal or destroy_set()


def _probe_device() -> ProbeResult:
    device = DummyDevice(PROBE_DEVICE)
    try:
        device.ensure()
        device.delete()
    except DeviceError as error:
        return ProbeResult("dummy device", str(error))
    return ProbeResult("dummy device")


def _probe_schedulers(wanted: str) -> tuple[str, dict[str, bool]]:
    ipvs = NetlinkIpvs()
    try:
        return "", {name: ipvs.has_scheduler(name) for name in sorted({*SCHEDULERS, wanted})}
    except IpvsError as error:
        return str(error), {}


def _check_device_name() -> Iterator[Finding]:
    """Check that no device of another type has the device's name; the device itself is not created."""
    try:
        kind = DummyDevice(DEVICE).kind()
    except DeviceError as error:
        yield warning(f"interface {DEVICE}", "cannot be looked at", str(error))
        return
    if kind not in (None, "dummy"):
        reason = f"it exists and is of type {kind or 'unknown'}, not dummy"
        yield failed(f"interface {DEVICE}", reason, f"remove it: ip link delete {DEVICE}")
