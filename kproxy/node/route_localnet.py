"""Node ports on 127.0.0.1: the kernel parameter they need, which is only set while a firewall chain exists.

With route_localnet the kernel accepts packets to 127.0.0.0/8 from the network too, and programs that trust
localhost would answer to neighbours (CVE-2020-8558); KUBE-FIREWALL drops such packets. kube-proxy never
removes that chain; kproxy removes it where no kubelet uses it, and then resets the parameter as well.
"""

import structlog

from kproxy.addresses import Family
from kproxy.backends.iptables import names
from kproxy.kernel import sysctl
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import RestoreError, Variant, XtablesUnavailable

log = structlog.stdlib.get_logger(__name__)

ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"


def allow() -> bool:
    """Set route_localnet, so that translated packets from 127.0.0.0/8 are routed; KUBE-FIREWALL must exist.

    Return False if the kernel refuses, which is logged.
    """
    return _set(1, reason="node ports on localhost", otherwise="no node ports on localhost")


def is_firewall_present(runner: Runner | None = None) -> bool:
    """Whether KUBE-FIREWALL exists in either variant; False if route_localnet is not set."""
    try:
        if sysctl.read(ROUTE_LOCALNET) != "1":
            return False
    except sysctl.SysctlError:
        return False
    return any(_has_firewall_chain(variant, runner) for variant in Variant)


def close() -> None:
    """Reset route_localnet, so that no packet from the network reaches 127.0.0.0/8."""
    _set(0, reason="KUBE-FIREWALL is gone", otherwise="neighbours can reach 127.0.0.0/8")


def _set(value: int, *, reason: str, otherwise: str) -> bool:
    try:
        if sysctl.ensure(ROUTE_LOCALNET, value):
            log.info("sysctl_set", name=ROUTE_LOCALNET, value=value, reason=reason)
    except sysctl.SysctlError as error:
        log.warning("sysctl_failed", name=error.name, reason=error.reason, effect=otherwise)
        return False
    return True


def _has_firewall_chain(variant: Variant, runner: Runner | None) -> bool:
    try:
        tools = find_tools(Family.IPV4, variant, probe=False, runner=runner)
        tables = SubprocessXtables(Family.IPV4, tools, runner=runner)
        return f":{names.KUBE_FIREWALL} ".encode() in tables.save()
    except (XtablesUnavailable, RestoreError):
        return False
