"""The nftables mode as the registry lists it."""

from collections.abc import Iterator

from kproxy.config.model import ProxyConfig
from kproxy.config.modes import traits_of
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.processes import Runner
from kproxy.modes.base import Mode, ModeSpec, RequiredSysctl
from kproxy.modes.nftables.cleanup import TableLeftovers
from kproxy.modes.nftables.explain import NftablesReader, facts
from kproxy.modes.nftables.mode import NftablesMode
from kproxy.modes.nftables.preflight import check
from kproxy.modes.nftables.preview import preview, preview_leftovers, render


def _make(config: ProxyConfig, _runner: Runner) -> Mode:
    return NftablesMode(config, NetlinkNft())


def _set_sysctls(_config: ProxyConfig) -> None:
    """The mode depends on no kernel parameter of its own."""


def _sysctls(_config: ProxyConfig, _localhost: bool) -> Iterator[RequiredSysctl]:
    return iter(())


SPEC = ModeSpec(
    traits=traits_of("nftables"),
    written="tables ip kproxy and ip6 kproxy with every service",
    taken_away="tables ip kproxy and ip6 kproxy",
    taken_away_beside="nothing",
    metrics=frozenset(
        {
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
            "kproxy_nftables_objects",
        }
    ),
    make=_make,
    set_sysctls=_set_sysctls,
    sysctls=_sysctls,
    render=render,
    preview=preview,
    leftovers=TableLeftovers,
    preview_leftovers=preview_leftovers,
    check=check,
    rule_reader=NftablesReader,
    explain_facts=facts,
)
