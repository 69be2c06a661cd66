"""What an explanation knows: objects, the node, and the plans of all services.

The running agent and the command without one answer from different places; both give this.
"""

from collections.abc import Iterable
from typing import Protocol

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.inspect.explain.policies import Enforcement
from kproxy.inspect.explain.report import Since
from kproxy.node.facts import NodeFacts
from kproxy.plan.outcomes import ModeFacts, Routing
from kproxy.plan.planner import Planner
from kproxy.state.tables import ServiceInput
from kproxy.state.wire import EndpointSlice, Node


class Cluster(Protocol):
    """The objects in force and what is derived from them; it is only read."""

    @property
    def config(self) -> ProxyConfig:
        """The settings."""

    @property
    def facts(self) -> NodeFacts:
        """The facts of the node."""

    @property
    def node(self) -> Node | None:
        """The object of the node."""

    def planner(self, family: Family) -> Planner | None:
        """The plans of a family; None if it is not served."""

    @property
    def routing(self) -> Routing:
        """The node's routes and addresses."""

    def mode_facts(self, family: Family) -> ModeFacts:
        """The behaviour of the mode in a family."""

    @property
    def policies(self) -> Enforcement | None:
        """NetworkPolicies as they are enforced; None if they are not."""

    def service(self, key: str) -> ServiceInput:
        """A service and its slices."""

    def slices(self) -> Iterable[EndpointSlice]:
        """Every EndpointSlice."""

    def since(self, key: str, family: Family) -> Since | None:
        """When the last change of a service arrived and was applied, if that is known."""
