"""All desired objects of one family's IPVS mode as text, a line each, in the format of the kernel's tools.

The sections are input for `ipvsadm-restore`, `ip -batch`, `ipset restore` and `iptables-restore`, whose
counterparts print the same format, so that the desired state can be compared with that of a node.
"""

from collections.abc import Iterable

from kproxy.addresses import Family, host_cidr, join_host_port
from kproxy.backends.iptables.text import render_text as render_rules
from kproxy.backends.ipvs.config import IpvsConfig
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.names import DEVICE, OWN_MARK, sets
from kproxy.backends.ipvs.render import render_service
from kproxy.kernel.ipset.types import MAX_ELEMENTS
from kproxy.kernel.ipvs.types import PERSISTENT, SCHED1, SCHED2, ServerId, VirtualServer
from kproxy.modes.ipvs.rules import layout_of
from kproxy.plan.model import ServicePlan

_PROTOCOL_OPTION = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service"}


def render_text(plans: Iterable[ServicePlan], config: IpvsConfig) -> str:
    """Return sections of virtual servers, addresses, sets and rules; `plans` are settled, in any order."""
    wanted = sorted((plan for plan in plans if plan.ports), key=lambda plan: plan.key)
    desired = Desired()
    for plan in wanted:
        desired.put(plan.key, render_service(plan, config))
    sections = {
        "ipvsadm-restore": [*_server_of_mark(config), *_servers(desired)],
        "ip -batch": [f"address add {host_cidr(ip)} dev {DEVICE}" for ip in sorted(desired.addresses)],
        "ipset restore": _sets(desired, config.family),
    }
    lines: list[str] = []
    for program, section in sections.items():
        lines += [f"# {program}", *section]
    program = "iptables-restore" if config.family is Family.IPV4 else "ip6tables-restore"
    rules = render_rules(wanted, layout_of(config.rules))
    return "".join(f"{line}\n" for line in lines) + f"# {program}\n{rules}"


def server_line(server: ServerId, settings: VirtualServer) -> str:
    """Return a virtual server as `ipvsadm --save --numeric` prints it."""
    flags = ""
    named = [
        f"{settings.scheduler}-{n}"
        for bit, n in ((SCHED1, "fallback"), (SCHED2, "port"))
        if settings.flags & bit
    ]
    if settings.flags & PERSISTENT:
        flags += f" -p {settings.timeout}"
    if named:
        flags += f" -b {','.join(named)}"
    return f"-A {_service(server)} -s {settings.scheduler}{flags}"


def _service(server: ServerId) -> str:
    return f"{_PROTOCOL_OPTION[server.protocol]} {join_host_port(server.ip, server.port)}"


def _server_of_mark(config: IpvsConfig) -> list[str]:
    """Return the virtual server that passes replies to the node's own connections to the node itself."""
    key, node = (
        (f"{OWN_MARK}", "127.0.0.1:0") if config.family is Family.IPV4 else (f"{OWN_MARK} -6", "[::1]:0")
    )
    return [f"-A -f {key} -s {config.scheduler.name}", f"-a -f {key} -r {node} -g -w 1"]


def _servers(desired: Desired) -> list[str]:
    lines: list[str] = []
    for server in sorted(desired.servers):
        frontend = desired.frontend(server)
        if frontend is None or frontend.server is None:
            continue
        lines.append(server_line(server, frontend.server))
        lines += [
            f"-a {_service(server)} -r {join_host_port(destination.ip, destination.port)} -m -w {weight}"
            for destination, weight in frontend.destinations
        ]
    return lines


def _sets(desired: Desired, family: Family) -> list[str]:
    inet = "inet" if family is Family.IPV4 else "inet6"
    lines = [f"create {s.name} {s.kind} family {inet} maxelem {MAX_ELEMENTS}" for s in sets(family).all]
    return lines + [f"add {spec.name} {entry}" for spec, entry in sorted(desired.members)]
