"""Checks, by trying, whether a machine can run a lab."""

import os
import secrets
import shutil
import socket
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kproxy_lab.lab.namespaces import Namespace, NamespaceThread
from kproxy_lab.lab.owners import owned_prefix


def missing() -> list[str]:
    """The reasons why no lab can run here; empty when one can.

    Tries a namespace, with a veth pair, a bridge and a kernel parameter in it, and removes it again.
    """
    if os.geteuid() != 0:
        return ["not root"]
    reasons = []
    if shutil.which("nsenter") is None:
        reasons.append("no nsenter (util-linux), which runs programs inside namespaces")
    if not Path("/proc/sys/net/ipv6").is_dir():
        reasons.append("no IPv6 in this kernel")
    thread = NamespaceThread()
    try:
        namespace = Namespace(owned_prefix(secrets.token_hex(3)) + "probe", thread)
    except OSError as error:
        reasons.append(f"no network namespaces: {error}")
    else:
        try:
            reasons += namespace.call(_missing_links)
            reasons += namespace.call(_missing_sysctls)
        finally:
            namespace.close()
    finally:
        thread.close()
    return reasons


def supports_sctp_sockets() -> bool:
    """Whether this kernel has SCTP sockets (net/sctp), which conntrack and NAT of SCTP do not need."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


def _missing_sysctls() -> list[str]:
    """Containers often have /proc/sys mounted read-only."""
    try:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    except OSError as error:
        return [f"kernel parameters cannot be set: {error}"]
    return []


def _missing_links() -> list[str]:
    reasons = []
    with IPRoute() as rtnl:
        for kind, more in (("veth", {"peer": "probe1"}), ("bridge", {})):
            try:
                rtnl.link("add", ifname=f"{kind}0", kind=kind, **more)
            except NetlinkError as error:
                reasons.append(f"no {kind} devices: {error}")
    return reasons
