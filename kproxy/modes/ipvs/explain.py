"""What `explain` needs of the IPVS mode: how virtual servers are read, and its intended peculiarities."""

import functools
from pathlib import Path

from kproxy.addresses import Family
from kproxy.backends.core.packets import SharedRules
from kproxy.backends.ipvs.interpreter import EVEN, Destinations, Servers, servers_at_hooks
from kproxy.backends.ipvs.names import OWN_MARK
from kproxy.config.model import ProxyConfig
from kproxy.kernel import sysctl
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.templates import templates
from kproxy.kernel.ipvs.types import PERSISTENT, IpvsError, IpvsUnavailable, ServerId
from kproxy.kernel.processes import Runner
from kproxy.modes.base import ExplainError, KernelRules, exact_shares
from kproxy.modes.ipvs.mode import ipvs_config, rules_config
from kproxy.node.facts import FamilyFacts
from kproxy.plan.model import EndpointPlan, PortPlan
from kproxy.plan.outcomes import FrontendKind, ModeFacts

_QUIESCENT = "net/ipv4/vs/expire_quiescent_template"


class IpvsReader:
    """Reads the virtual servers of a family. See RuleReader.

    Their destinations are read when a packet comes to them: the kernel lists those of one server at a time.
    """

    def __init__(self, _config: ProxyConfig, _runner: Runner) -> None:
        self._handle = NetlinkIpvs

    dump = ""

    def read_kernel(self, family: Family, shared: SharedRules) -> KernelRules:  # noqa: ARG002 - of RuleReader
        """Read the virtual servers; a kernel without IPVS has none."""
        if not _has_ipvs():
            return KernelRules()
        ipvs = self._handle()
        try:
            held = ipvs.servers(family)
            marks = ipvs.marks(family)
        except IpvsUnavailable:
            return KernelRules()
        except IpvsError as error:
            raise ExplainError(str(error)) from error

        @functools.cache
        def destinations(server: ServerId) -> Destinations:
            try:
                return ipvs.destinations(server)
            except IpvsError as error:
                raise ExplainError(str(error)) from error

        persistent = any(server.flags & PERSISTENT for server in held.values())
        servers = Servers(
            held,
            destinations,
            templates() if persistent else {},
            _is_quiescent(),
            marks & {OWN_MARK},
            marks - {OWN_MARK},
        )
        return KernelRules(servers_at_hooks(servers)) if held or marks else KernelRules()

    @staticmethod
    def load_dump(_text: str, _family: Family) -> KernelRules | None:
        """Return None: dumps of rules have no virtual servers."""
        return None


def _has_ipvs() -> bool:
    """Whether IPVS is loaded; asking it would load it."""
    return Path("/proc/thread-self/net/ip_vs").exists()


def _is_quiescent() -> bool:
    try:
        return sysctl.read(_QUIESCENT) != "0"
    except sysctl.SysctlError:
        return False


def facts(config: ProxyConfig, family: Family, node: FamilyFacts) -> ModeFacts:
    """The intended peculiarities of the mode for a family."""
    settings = ipvs_config(config, rules_config(config, family, node, random_fully=True), node)

    def scheduler(port: PortPlan) -> str:
        return (port.scheduler or settings.scheduler).name

    def shares(port: PortPlan, endpoints: tuple[EndpointPlan, ...], ports: int) -> tuple[float, ...]:
        if scheduler(port) not in EVEN:
            return exact_shares(port, endpoints, ports)
        usable = [bool(endpoint.weight) for endpoint in endpoints]
        if not any(usable):
            usable = [True] * len(endpoints)
        return tuple(each / sum(usable) for each in usable)

    return ModeFacts(
        shares=shares,
        node_port_addresses=settings.node_addresses,
        refuses_unallocated=frozenset(
            {FrontendKind.CLUSTER_IP, FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER}
        ),
        masquerades_own=True,
        services_on_node=True,
        rules_for_local_policy=True,
        scheduler=scheduler,
    )
