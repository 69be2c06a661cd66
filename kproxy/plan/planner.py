"""Plans of a whole family: every service planned, every contested address settled.

Planning one service is pure; this keeps the plans so that a change of one service can be settled against
the claims of the others without planning them again.
"""

from collections.abc import Iterable

from kproxy.addresses import Family
from kproxy.plan.claims import Claims
from kproxy.plan.model import NodeView, ServicePlan
from kproxy.plan.services import plan_service
from kproxy.state.tables import ServiceInput


class Planner:
    """Turns changed services into settled plans for one family."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._claims = Claims()
        self._plans: dict[str, ServicePlan] = {}

    def update(self, inputs: Iterable[ServiceInput], node: NodeView) -> dict[str, ServicePlan]:
        """Plan the given services; return their settled plans and those of services they affect."""
        changed: dict[str, ServicePlan] = {}
        affected: set[str] = set()
        for given in inputs:
            plan = plan_service(given, self.family, node)
            affected |= self._claims.update(plan)
            changed[plan.key] = plan
            if plan.ports or plan.problems:
                self._plans[plan.key] = plan
            else:
                self._plans.pop(plan.key, None)
        for key in affected:
            if key in self._plans:
                changed.setdefault(key, self._plans[key])
        return {key: self._claims.settle(plan) for key, plan in changed.items()}
