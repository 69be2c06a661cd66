"""Node ports on 127.0.0.1: the kernel parameter that they need, which never stays without its guard.

With route_localnet the kernel takes packets to 127.0.0.0/8 from the network too, and every program that
trusts localhost would answer to neighbours (CVE-2020-8558); KUBE-FIREWALL drops those. kube-proxy leaves that
chain for ever; kproxy takes it away where no kubelet is, and then the parameter goes back as well.
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
    """Let packets from 127.0.0.0/8 be routed after translation; KUBE-FIREWALL guards what that opens.

    False if the kernel refuses, which is logged.
    """
    return _set(1, reason="node ports on localhost", otherwise="no node ports on localhost")


def is_guarded(runner: Runner | None = None) -> bool:
    """Whether KUBE-FIREWALL stands, in either variant; False where nothing needs it."""
    try:
        if sysctl.read(ROUTE_LOCALNET) != "1":
            return False
    except sysctl.SysctlError:
        return False
    return any(_has_guard(variant, runner) for variant in Variant)


def close() -> None:
    """Let nothing from the network reach 127.0.0.0/8."""
    _set(0, reason="KUBE-FIREWALL is gone", otherwise="neighbours can reach 127.0.0.0/8")


def _set(value: int, *, reason: str, otherwise: str) -> bool:
    try:
        if sysctl.ensure(ROUTE_LOCALNET, value):
            log.info("sysctl_set", name=ROUTE_LOCALNET, value=value, reason=reason)
    except sysctl.SysctlError as error:
        log.warning("sysctl_failed", name=error.name, reason=error.reason, effect=otherwise)
        return False
    return True


def _has_guard(variant: Variant, runner: Runner | None) -> bool:
    try:
        tools = find_tools(Family.IPV4, variant, probe=False, runner=runner)
        tables = SubprocessXtables(Family.IPV4, tools, runner=runner)
        return f":{names.KUBE_FIREWALL} ".encode() in tables.save()
    except (XtablesUnavailable, RestoreError):
        return False
