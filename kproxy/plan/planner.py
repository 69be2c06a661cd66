"""Plans of a whole family: every service planned, every contested address settled.

Planning one service is pure; this keeps the plans so that a change of one service can be settled against
the claims of the others without planning them again.
"""

from collections.abc import Iterable

from kproxy.addresses import Family
from kproxy.plan.claims import Claims
from kproxy.plan.model import NodeView, ServicePlan
from kproxy.plan.outside import API_SERVICE, concerns_api_server, restrict
from kproxy.plan.services import known_endpoints, plan_service
from kproxy.state.tables import ServiceInput


class Planner:
    """Turns changed services into settled plans for one family.

    `update` is to be given all services again when the node changed.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._claims = Claims()
        self._plans: dict[str, ServicePlan] = {}
        self._at_api_server: dict[str, ServicePlan] = {}
        """Plans as they are before it is known which endpoints API servers have."""
        self._api_endpoints: frozenset[str] = frozenset()

    def update(self, inputs: Iterable[ServiceInput], node: NodeView) -> dict[str, ServicePlan]:
        """Plan the given services; return their settled plans and those of services they affect."""
        planned = {given.key: given for given in inputs}
        limits = node.outside
        changed = {key: plan_service(given, self.family, node) for key, given in planned.items()}
        if API_SERVICE in planned:
            endpoints = known_endpoints(planned[API_SERVICE], self.family, node)
            if endpoints != self._api_endpoints:
                self._api_endpoints = endpoints
                changed = self._at_api_server | changed
        affected: set[str] = set()
        for key, plan in changed.items():
            if concerns_api_server(plan, limits):
                self._at_api_server[key] = plan
            else:
                self._at_api_server.pop(key, None)
            restricted = changed[key] = restrict(plan, limits, self._api_endpoints)
            affected |= self._claims.update(restricted, limits.local)
            if restricted.ports or restricted.problems:
                self._plans[key] = restricted
            else:
                self._plans.pop(key, None)
        for key in affected:
            if key in self._plans:
                changed.setdefault(key, self._plans[key])
        return {key: self._claims.settle(plan, limits.local) for key, plan in changed.items()}
