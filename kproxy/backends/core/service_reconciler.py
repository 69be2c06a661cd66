"""The reconciler of services: what every proxy mode is, over the operations of the mode."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from kproxy.addresses import Family
from kproxy.backends.core.reconciler import Reconciler
from kproxy.backends.core.shapes import Shape, Shapes, shape_of
from kproxy.backends.core.work import Operations
from kproxy.plan.model import ServicePlan

ServiceOperations = TypeVar("ServiceOperations", bound=Operations)


class ServiceReconciler(Reconciler[ServiceOperations], Generic[ServiceOperations]):
    """A Backend over the operations of a mode.

    `assumes`: an error that was proven for services is assumed for others with rules of the same kind,
    because finding each by itself takes many writes.
    """

    def __init__(
        self,
        family: Family,
        operations: ServiceOperations,
        clock: Callable[[], float] = time.monotonic,
        *,
        assumes: bool = True,
    ) -> None:
        super().__init__(family, operations, clock)
        self._plans: dict[str, ServicePlan] = {}
        self._assumed = PlanShapes(self._plans) if assumes else None

    @property
    def plans(self) -> Mapping[str, ServicePlan]:
        """The plans of all services with ports. May be read from any thread."""
        return self._plans

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Replace the desired state of the plans' services; a plan without ports removes its service."""
        changes = []
        for plan in plans:
            changes.append((self._plans.get(plan.key), plan))
            if plan.ports:
                self._plans[plan.key] = plan
            else:
                self._plans.pop(plan.key, None)
        self._adopt(self.operations.set_desired(changes, self._plans))
        for _, plan in changes:
            if not plan.ports:
                self._quarantine.discard(plan.key)

    def replan(self) -> None:
        """Render all services again, with other settings."""
        self._quarantine.clear()
        self._adopt(self.operations.set_desired([(plan, plan) for plan in self._plans.values()], self._plans))

    def _refresh(self) -> None:
        super()._refresh()
        degraded = [self._plans[key] for key in self.operations.degraded if key in self._plans]
        if degraded:
            self._adopt(self.operations.set_desired([(plan, plan) for plan in degraded], self._plans))

    def _shapes(self) -> Shapes | None:
        return self._assumed


class PlanShapes:
    """The shapes of services, from their plans; see Shapes."""

    def __init__(self, plans: Mapping[str, ServicePlan]) -> None:
        self._plans = plans

    def shape(self, key: str) -> Shape | None:
        """The kind of a service's rules; None for an unknown service."""
        plan = self._plans.get(key)
        return None if plan is None else shape_of(plan)

    def having(self, shape: Shape) -> Iterator[str]:
        """The services with rules of a kind."""
        return (key for key, plan in self._plans.items() if shape_of(plan) == shape)
