"""Plan all services of a family, with restrictions and address conflicts resolved.

The planner keeps the plans, so that a change of one service is resolved against the claims of the others
without planning them again.
"""

from collections.abc import Iterable

from kproxy.addresses import Family
from kproxy.plan.address_conflicts import AddressConflicts
from kproxy.plan.claims import Frontend
from kproxy.plan.model import NodeView, OutsideLimits, ServicePlan
from kproxy.plan.outside import API_SERVICE, ApiEndpoints, concerns_api_servers, restrict
from kproxy.plan.services import known_endpoints, plan_service
from kproxy.plan.weights import WeightsCache
from kproxy.state.tables import ServiceInput


class Planner:
    """Turns changed services into plans without conflicts, for one family.

    When the node changed, call `update` with all services.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._claims = AddressConflicts()
        self._weights = WeightsCache()
        self._plans: dict[str, ServicePlan] = {}
        self._unrestricted: dict[str, ServicePlan] = {}
        """Plans from which restrictions removed something, before that removal."""
        self._api_endpoints: ApiEndpoints = frozenset()

    def update(self, inputs: Iterable[ServiceInput], node: NodeView) -> dict[str, ServicePlan]:
        """Plan the services of `inputs`; return their plans and those of affected services, by key."""
        planned = {each.key: each for each in inputs}
        limits = node.outside
        changed = {key: plan_service(each, self.family, node, self._weights) for key, each in planned.items()}
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

    def rivals(self, keys: Iterable[str]) -> set[str]:
        """The services that claim a frontend which one of these planned services claims too."""
        return self._claims.rivals(keys)

    def known(self, key: str) -> ServicePlan | None:
        """The plan of a service as it was made last, with the frontends that others may have won."""
        return self._plans.get(key)

    def preview(self, inputs: ServiceInput, node: NodeView) -> ServicePlan:
        """The plan of one service beside the others as they were planned last; nothing is changed.

        This and the two methods below only read; they may be called from any thread.
        """
        limits = node.outside
        plan = restrict(plan_service(inputs, self.family, node), limits, self._api_endpoints)
        return self._claims.settle(plan, limits.local)

    def owner(self, frontend: Frontend) -> str | None:
        """The service that has a frontend."""
        return self._claims.owner(frontend)

    def frontends_at(self, address: str) -> list[Frontend]:
        """The frontends at an address that some service has, in order; "" for node ports."""
        return self._claims.frontends_at(address)

    def _at_api_servers(self, limits: OutsideLimits, endpoints: ApiEndpoints) -> dict[str, ServicePlan]:
        """Plans that the former or the new endpoints of API servers may restrict, before restriction."""
        either = self._api_endpoints | endpoints
        known = self._plans | self._unrestricted
        return {key: plan for key, plan in known.items() if concerns_api_servers(plan, limits, either)}
