"""Plans of a whole family: every service planned, every contested address settled.

Planning one service is pure; this keeps the plans so that a change of one service can be settled against
the claims of the others without planning them again.
"""

from collections.abc import Iterable

from kproxy.addresses import Family
from kproxy.plan.address_conflicts import AddressConflicts
from kproxy.plan.model import NodeView, OutsideLimits, ServicePlan
from kproxy.plan.outside import API_SERVICE, ApiEndpoints, concerns_api_servers, restrict
from kproxy.plan.services import known_endpoints, plan_service
from kproxy.state.tables import ServiceInput


class Planner:
    """Turns changed services into settled plans for one family.

    `update` is to be given all services again when the node changed.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._claims = AddressConflicts()
        self._plans: dict[str, ServicePlan] = {}
        self._unrestricted: dict[str, ServicePlan] = {}
        """Those plans that lost something, as they were before."""
        self._api_endpoints: ApiEndpoints = frozenset()

    def update(self, inputs: Iterable[ServiceInput], node: NodeView) -> dict[str, ServicePlan]:
        """Plan the given services; return their settled plans and those of services they affect."""
        planned = {given.key: given for given in inputs}
        limits = node.outside
        changed = {key: plan_service(given, self.family, node) for key, given in planned.items()}
        if API_SERVICE in planned:
            endpoints = known_endpoints(planned[API_SERVICE], self.family, node)
            if endpoints != self._api_endpoints:
                changed = self._at_api_servers(limits, endpoints) | changed
                self._api_endpoints = endpoints
        affected: set[str] = set()
        for key, plan in changed.items():
            restricted = changed[key] = restrict(plan, limits, self._api_endpoints)
            affected |= self._claims.update(restricted, limits.local)
            if restricted.ports or restricted.problems:
                self._plans[key] = restricted
            else:
                self._plans.pop(key, None)
            if restricted is plan:
                self._unrestricted.pop(key, None)
            else:
                self._unrestricted[key] = plan
        for key in affected:
            if key in self._plans:
                changed.setdefault(key, self._plans[key])
        return {key: self._claims.settle(plan, limits.local) for key, plan in changed.items()}

    def _at_api_servers(self, limits: OutsideLimits, endpoints: ApiEndpoints) -> dict[str, ServicePlan]:
        """Plans that the endpoints of API servers, former or new ones, may restrict."""
        either = self._api_endpoints | endpoints
        known = self._plans | self._unrestricted
        return {key: plan for key, plan in known.items() if concerns_api_servers(plan, limits, either)}
