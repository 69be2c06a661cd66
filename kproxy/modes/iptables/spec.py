"""The iptables mode as the registry lists it."""

from collections.abc import Iterator, Mapping

from kproxy.addresses import Family
from kproxy.backends.iptables.hairpin import hairpin_match
from kproxy.config import loopback
from kproxy.config.model import ProxyConfig
from kproxy.config.modes import traits_of
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import Mode, ModeSpec, RequiredSysctl
from kproxy.modes.findings import Finding
from kproxy.modes.iptables.cleanup import RuleLeftovers
from kproxy.modes.iptables.explain import IptablesReader, facts
from kproxy.modes.iptables.mode import IptablesMode
from kproxy.modes.iptables.preview import preview, preview_dump, preview_leftovers, render
from kproxy.modes.iptables_rules import find_tables
from kproxy.modes.rule_features import Feature, common_features
from kproxy.node import route_localnet


def features(family: Family, layout: str) -> tuple[Feature, ...]:
    """The matches and targets of the rules in a layout."""
    if layout == "standard":
        return common_features(family)
    bpf = Feature(
        "match bpf",
        "filter",
        hairpin_match(family).strip(),
        "xt_bpf",
        essential=False,
        without="the scalable layout is not used",
    )
    return (*common_features(family), bpf)


def _make(config: ProxyConfig, runner: Runner) -> Mode:
    return IptablesMode(config, find_tables(config, runner), runner)


def _set_sysctls(config: ProxyConfig) -> None:
    if loopback.is_wanted(config):
        route_localnet.allow()


def _sysctls(_config: ProxyConfig, localhost: bool) -> Iterator[RequiredSysctl]:
    if localhost:
        yield RequiredSysctl(route_localnet.ROUTE_LOCALNET, "1", "node ports answer on 127.0.0.1")


def _check(_config: ProxyConfig, _variants: Mapping[Family, Variant]) -> Iterator[Finding]:
    """Yield nothing: the mode needs only the features of its rules."""
    return iter(())


SPEC = ModeSpec(
    traits=traits_of("iptables"),
    written="iptables rules of every service",
    taken_away="the iptables rules that the new mode does not use",
    metrics=frozenset(
        {
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            "kubeproxy_sync_proxy_rules_iptables_total",
            "kubeproxy_sync_proxy_rules_iptables_last",
            "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
            "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
        }
    ),
    make=_make,
    set_sysctls=_set_sysctls,
    sysctls=_sysctls,
    render=render,
    preview=preview,
    preview_dump=preview_dump,
    leftovers=RuleLeftovers,
    preview_leftovers=preview_leftovers,
    features=features,
    check=_check,
    rule_reader=IptablesReader,
    explain_facts=facts,
)
