"""Explain without an agent: objects are read once, and the kernel of this node or a dump of another one."""

import functools
from collections.abc import Iterable, Mapping, Sequence

from kproxy.addresses import Family, is_loopback
from kproxy.config.model import ProxyConfig, validate
from kproxy.inspect.diff import addresses_here
from kproxy.inspect.explain.policies import Enforcement, enforcement
from kproxy.inspect.explain.report import Since
from kproxy.inspect.objects import facts_of, read_objects, recorded_addresses
from kproxy.inspect.render import addresses_of
from kproxy.modes.base import ModeSpec
from kproxy.modes.packet_walk import KernelRouting
from kproxy.node.facts import NodeFacts
from kproxy.plan.outcomes import ModeFacts, Route, Routing
from kproxy.plan.planner import Planner
from kproxy.state.kinds import Kind
from kproxy.state.tables import ServiceInput, Tables
from kproxy.state.wire import EndpointSlice, Node


class StaticRouting:
    """Routes of a machine that cannot be asked: its addresses are known, its interfaces are not."""

    def __init__(self, local: Iterable[str], primary: Mapping[Family, str]) -> None:
        self._local = frozenset(local)
        self._primary = primary

    def route(
        self, destination: str, source: str = "", mark: int = 0, interface: str | None = None
    ) -> Route | None:
        """See Routing.route; everything is assumed to have a route."""
        del source, mark, interface
        if self.is_local(destination):
            return Route("lo", local=True, source=destination)
        return Route(source=self._primary[Family.IPV6 if ":" in destination else Family.IPV4])

    def is_local(self, address: str) -> bool:
        """See Routing.is_local."""
        return address in self._local or is_loopback(address)


class ReadCluster:
    """The objects of one reading; see Cluster. Each family is planned when it is asked for."""

    def __init__(
        self, config: ProxyConfig, spec: ModeSpec, tables: Tables, facts: NodeFacts, routing: Routing
    ) -> None:
        self.config = config
        self.facts = facts
        self.routing = routing
        self._spec = spec
        self._tables = tables
        self._planners: dict[Family, Planner] = {}

    @functools.cached_property
    def policies(self) -> Enforcement | None:
        """NetworkPolicies as they are enforced."""
        config = self.config
        if not config.network_policy:
            return None
        from kproxy.inspect.policies import plan

        return enforcement(
            plan(config, self._tables),
            reject=config.network_policy_reject,
            unknown=config.network_policy_unknown_pods,
            node=self.node,
        )

    @property
    def node(self) -> Node | None:
        """The object of the node."""
        return self._tables.node

    def planner(self, family: Family) -> Planner:
        """The plans of a family."""
        planner = self._planners.get(family)
        if planner is None:
            planner = self._planners[family] = Planner(family)
            planner.update(self._tables.dirty(), self.facts.view)
        return planner

    def mode_facts(self, family: Family) -> ModeFacts:
        """The behaviour of the mode in a family."""
        return self._spec.explain_facts(self.config, family, self.facts.families[family])

    def service(self, key: str) -> ServiceInput:
        """A service and its slices."""
        return self._tables.read(key)

    def slices(self) -> Iterable[EndpointSlice]:
        """Every EndpointSlice."""
        return (
            each
            for each in self._tables.objects(Kind.ENDPOINT_SLICE).values()
            if isinstance(each, EndpointSlice)
        )

    @staticmethod
    def since(_key: str, _family: Family) -> Since | None:
        """Not known without an agent."""
        return None


def read_cluster(config: ProxyConfig, spec: ModeSpec, *, here: bool) -> ReadCluster:
    """Read all objects. `here`: the node is this machine, whose addresses and routes count.

    Otherwise the addresses are those of the Node, or of a recording. Raises ConfigError and the errors of
    the source: OSError, ClusterAccessError, ApiError.
    """
    validate(config)
    tables, _, servers = read_objects(config)
    recorded = recorded_addresses(config)
    here = here and config.replay is None
    if recorded is not None:
        addresses: Sequence[str] = recorded
    else:
        addresses = addresses_here() if here else addresses_of(tables.node)
    facts = facts_of(config, tables, addresses, servers)
    routing = KernelRouting() if here else StaticRouting(addresses, facts.view.addresses)
    return ReadCluster(config, spec, tables, facts, routing)
