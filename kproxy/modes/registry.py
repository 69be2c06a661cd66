"""Find out what this node's kernel offers, and make the mode that was asked for."""

import functools
import time
from collections.abc import Mapping

import structlog

from kproxy.addresses import Family
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.names import DEVICE
from kproxy.config import loopback
from kproxy.config.model import ProxyConfig
from kproxy.kernel.dummy import DummyDevice
from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.detect import detect_variant, find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Xtables, XtablesStalled, XtablesUnavailable
from kproxy.modes import ipvs
from kproxy.modes.base import Mode, ModeUnavailable, NoFamilyUsable
from kproxy.modes.foreign_tables import warn_of_peer_tables
from kproxy.modes.iptables import IptablesMode
from kproxy.modes.ipvs import IpvsMode
from kproxy.modes.ipvs_teardown import IpvsTeardown
from kproxy.modes.nftables import NftablesMode
from kproxy.node import route_localnet
from kproxy.node.host_firewall import warn_of_firewalls

log = structlog.stdlib.get_logger(__name__)


def make_mode(config: ProxyConfig, runner: Runner | None = None) -> Mode:
    """Probe the kernel for the mode that is set; `runner` runs all programs of it. Raises ModeUnavailable."""
    runner = runner or Runner()
    warn_of_peer_tables()
    handles = ipvs_handles()
    departing = IpvsTeardown(handles, config.ipvs_graceful_period, config.ipvs_exclude_cidrs, time.monotonic)
    if config.proxy_mode == "nftables":
        return NftablesMode(config, NetlinkNft(), departing, runner)
    tables = _find_tables(config, runner)
    if config.proxy_mode == "ipvs":
        for variant in {xtables.variant for xtables in tables.values()}:
            warn_of_firewalls(variant, runner)
        return IpvsMode(config, tables, handles, was_guarded=route_localnet.is_guarded(runner), runner=runner)
    return IptablesMode(config, tables, departing, runner)


def set_sysctls(config: ProxyConfig) -> None:
    """Set the kernel parameters that the mode depends on. Raises ModeUnavailable."""
    if config.proxy_mode == "ipvs":
        ipvs.set_sysctls(strict_arp=config.ipvs_strict_arp)
    elif loopback.is_wanted(config):
        route_localnet.allow()


def ipvs_handles() -> KernelHandles:
    """What the IPVS mode works on; nothing is opened before it is used."""
    return KernelHandles(NetlinkIpvs(), NetlinkIpset(), DummyDevice(DEVICE))


def _find_tables(config: ProxyConfig, runner: Runner) -> Mapping[Family, Xtables]:
    tables: dict[Family, Xtables] = {}
    reasons: dict[Family, str] = {}
    detect = functools.cache(detect_variant)
    for family in Family:
        try:
            tools = find_tools(family, config.iptables_variant, detect=detect, runner=runner)
        except XtablesStalled as error:
            # Without this family, its services would be served by nobody until the next start.
            raise ModeUnavailable(f"{family}: {error.reason}") from error
        except XtablesUnavailable as error:
            reasons[family] = error.reason
            continue
        version = ".".join(map(str, tools.version))
        told = {"family": family.value, "variant": tools.variant.value, "version": version}
        log.info("iptables_found", **told, **({"reason": tools.instead_of} if tools.instead_of else {}))
        tables[family] = SubprocessXtables(family, tools, runner=runner)
    if not tables:
        raise NoFamilyUsable(reasons)
    for family, reason in reasons.items():
        log.warning("family_unusable", family=family.value, reason=reason)
    return tables
