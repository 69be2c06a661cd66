"""A node in memory: objects, planner and backend, driven as the agent does; what its kernel is, modes say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Self, TypeVar

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, SyncReport
from kproxy.plan.model import ServicePlan
from kproxy.plan.planner import Planner
from kproxy.state.kinds import Kind
from kproxy.state.tables import ServiceInput, Tables
from tests.builders import NODE, as_service, as_slice

AnyBackend = TypeVar("AnyBackend", bound=Backend)
State = TypeVar("State")


class Node(ABC, Generic[AnyBackend, State]):
    """One node of one family; the kernel has to be there when this is constructed."""

    backend: AnyBackend

    def __init__(self, family: Family) -> None:
        self._family = family
        self.tables = Tables()
        self.start()

    def start(self) -> None:
        """Start, or start again over the same kernel and the same objects."""
        self.planner = Planner(self._family)
        self.plans: dict[str, ServicePlan] = {}
        self.backend = self.make_backend()
        self.tables.touch_all()

    @abstractmethod
    def make_backend(self) -> AnyBackend:
        """A backend that knows nothing of the kernel yet."""

    @abstractmethod
    def another(self) -> Self:
        """A node with the same settings and an empty kernel."""

    @abstractmethod
    def state(self) -> State:
        """Everything in the kernel."""

    def put(self, service: dict[str, Any] | None, *slices: dict[str, Any]) -> None:
        """Write objects to the API."""
        if service is not None:
            self.tables.upsert(as_service(service))
        for each in slices:
            self.tables.upsert(as_slice(each))

    def drop(self, key: str) -> None:
        """Delete a service; its slices stay as they do for a moment in a real cluster."""
        self.tables.delete(Kind.SERVICE, key)

    def plan(self) -> list[ServiceInput]:
        """Hand what changed to the backend, without a sync."""
        read = self.tables.dirty()
        changed = self.planner.update(read, NODE)
        self.plans |= changed
        self.backend.update(changed.values())
        return read

    def sync(self) -> SyncReport:
        """Plan and write what changed; nothing is taken for done that was not."""
        read = self.plan()
        report = self.backend.sync()
        if report.error is None:
            self.tables.commit(given for given in read if given.key not in report.failed)
        return report

    def done(self) -> SyncReport:
        """Sync, with nothing going wrong."""
        report = self.sync()
        assert (report.error, report.failed) == (None, {})
        return report

    def beside(self) -> Self:
        """A new node that was given the objects of now at once."""
        other = self.another()
        changed = (given.key for given in self.tables.dirty())
        inputs = [self.tables.read(key) for key in sorted({*self.plans, *changed})]
        other.backend.update(Planner(self._family).update(inputs, NODE).values())
        report = other.backend.sync()
        assert (report.error, report.failed) == (None, {})
        return other

    def fresh(self) -> State:
        """What a new node would have for the same objects."""
        return self.beside().state()
