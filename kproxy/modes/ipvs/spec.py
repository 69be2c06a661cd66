"""The IPVS mode as the registry lists it."""

import time
from collections.abc import Iterator

from kproxy.config.model import ProxyConfig
from kproxy.config.modes import traits_of
from kproxy.kernel.processes import Runner
from kproxy.modes.base import Leftovers, Mode, ModeSpec, RequiredSysctl
from kproxy.modes.iptables_rules import find_tables
from kproxy.modes.ipvs.explain import IpvsReader, facts
from kproxy.modes.ipvs.kernel import ipvs_handles
from kproxy.modes.ipvs.mode import CONNTRACK, IpvsMode, set_sysctls, wanted_sysctls
from kproxy.modes.ipvs.preflight import check, features
from kproxy.modes.ipvs.preview import preview, preview_leftovers, render
from kproxy.modes.ipvs.teardown import IpvsTeardown
from kproxy.node.host_firewall import warn_of_firewalls


def _make(config: ProxyConfig, runner: Runner) -> Mode:
    tables = find_tables(config, runner)
    for variant in {xtables.variant for xtables in tables.values()}:
        warn_of_firewalls(variant, runner)
    return IpvsMode(config, tables, ipvs_handles())


def _set_sysctls(config: ProxyConfig) -> None:
    set_sysctls(strict_arp=config.ipvs_strict_arp)


def _sysctls(config: ProxyConfig, _localhost: bool) -> Iterator[RequiredSysctl]:
    yield RequiredSysctl(CONNTRACK, "1", "connections can be masqueraded", essential=True)
    for name, (value, effect) in wanted_sysctls(strict_arp=config.ipvs_strict_arp).items():
        yield RequiredSysctl(name, str(value), effect)


def _leftovers(config: ProxyConfig | None, _runner: Runner) -> Leftovers:
    if config is None:
        return IpvsTeardown(ipvs_handles(), 0.0, (), time.monotonic)
    return IpvsTeardown(
        ipvs_handles(), config.ipvs_graceful_period, config.ipvs_exclude_cidrs, time.monotonic
    )


SPEC = ModeSpec(
    traits=traits_of("ipvs"),
    written="sets, iptables rules around them, virtual servers of every service, addresses on kube-ipvs0",
    taken_away="the iptables rules that the new mode does not use; virtual servers, sets and kube-ipvs0 "
    "after their last connection",
    metrics=frozenset({"kubeproxy_sync_proxy_rules_iptables_restore_failures_total"}),
    make=_make,
    set_sysctls=_set_sysctls,
    sysctls=_sysctls,
    render=render,
    preview=preview,
    leftovers=_leftovers,
    preview_leftovers=preview_leftovers,
    features=features,
    check=check,
    rule_reader=IpvsReader,
    explain_facts=facts,
)
