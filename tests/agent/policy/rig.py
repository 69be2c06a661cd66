"""The enforcement of policies over a kernel in memory; store and planner are real, tests move the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from kproxy.addresses import Family
from kproxy.agent.policy.agent import PolicyAgent
from kproxy.agent.policy.kernel import Enforcer, PolicyUnavailable
from kproxy.backends.core.base import Drift, SyncReport, quarantined
from kproxy.backends.policy.config import PolicyConfig
from kproxy.config.model import ProxyConfig
from kproxy.kernel.conntrack.connections import Connection
from kproxy.plan.policy.model import Direction, PolicyTable, Touched
from kproxy.state.decode import decode
from kproxy.state.kinds import POLICY_KINDS, Kind
from kproxy.state.store import ObjectStore
from kproxy.state.wire import WireObject
from kproxy.telemetry.events import Notice
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.policy_observer import PolicyObserver
from kproxy.telemetry.series import Series
from tests.state.policy_objects import namespace, pod, policy

V4, V6 = Family.IPV4, Family.IPV6
DENY_ALL = {"podSelector": {}, "policyTypes": ["Ingress"]}
ON = ProxyConfig(node_name="n1", network_policy=True)


class FakeEnforcer:
    """Copies the isolated addresses of the desired table when it syncs."""

    def __init__(self, kernel: FakeKernel, config: PolicyConfig) -> None:
        self.config = config
        self.on_progress: Callable[[], None] = lambda: None
        self.gives_way: Callable[[], bool] = lambda: False
        self.drifts: tuple[Drift, ...] = ()
        self.retried = 0
        self._kernel = kernel
        self._wanted: dict[str, str] = {}

    def update(self, table: PolicyTable, touched: Touched) -> None:
        self._kernel.touched.append((self.config.family, touched))
        self._wanted = dict(table.isolated[Direction.INGRESS])

    def reconfigure(self, config: PolicyConfig) -> None:
        self.config = config

    def sync(self, budget: float | None = None) -> SyncReport:
        kernel, family = self._kernel, self.config.family
        kernel.syncs.append(family)
        kernel.during()
        kernel.clock += kernel.seconds
        if (error := kernel.errors.get(family)) is not None:
            return SyncReport(error=error)
        changed = kernel.tables.get(family) != self._wanted
        kernel.tables[family] = dict(self._wanted)
        return SyncReport(
            services=quarantined(kernel.refused),
            changes={"transactions": 1} if changed else {},
            retry_in=5.0 if kernel.refused else None,
        )

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        drifts, self.drifts = self.drifts, ()
        if drifts:
            self._kernel.tables.pop(self.config.family, None)
        return drifts

    def invalidate(self) -> None:
        self._kernel.syncs.clear()

    def retry(self) -> None:
        self.retried += 1

    def run_timers(self) -> float | None:
        return None


class FakeKernel:
    """`tables`: the isolated addresses and their groups by family. `errors` and `refused` make syncs fail."""

    def __init__(self) -> None:
        self.clock = time.monotonic()
        self.seconds = 0.001
        self.tables: dict[Family, Mapping[str, str]] = {}
        self.syncs: list[Family] = []
        self.touched: list[tuple[Family, Touched]] = []
        self.errors: dict[Family, str] = {}
        self.refused: dict[str, str] = {}
        self.lacks = ""
        self.answers: list[tuple[Family, Connection]] = []
        self.removable = True
        self.enforcers: dict[Family, FakeEnforcer] = {}
        self.during: Callable[[], None] = lambda: None

    def usable(self) -> tuple[Family, ...]:
        if self.lacks:
            raise PolicyUnavailable(self.lacks)
        return (V4, V6)

    def able(self, config: PolicyConfig) -> PolicyConfig:
        return config

    def enforcer(self, config: PolicyConfig) -> Enforcer:
        made = self.enforcers[config.family] = FakeEnforcer(self, config)
        return made

    def writing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def refuse_answers(self, family: Family, connections: Sequence[Connection]) -> None:
        self.answers += [(family, each) for each in connections]

    def remove(self) -> bool:
        if self.removable:
            self.tables.clear()
        return self.removable


class Rig:
    """An agent that tests step; `lists` completes the first lists."""

    def __init__(self, config: ProxyConfig = ON) -> None:
        self.kernel = FakeKernel()
        self.store = ObjectStore((Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE))
        self.metrics = Metrics()
        self.notices: list[Notice] = []
        self.observer = PolicyObserver(self.metrics, self.notices.append)
        self.agent = PolicyAgent(
            config, (V4, V6), self.store, self.kernel, self.observer, lambda: self.kernel.clock
        )

    def lists(self, *objects: WireObject, node: WireObject | None = None) -> None:
        self.store.replace(Kind.NODE, [] if node is None else [node], ())
        for kind in POLICY_KINDS:
            self.store.replace(kind, [each for each in objects if isinstance(each, kind.wire)], ())

    def put(self, *objects: WireObject) -> None:
        for each in objects:
            (kind,) = (kind for kind in POLICY_KINDS if isinstance(each, kind.wire))
            self.store.upsert(kind, each)

    def settle(self, seconds: float = 0.0) -> float | None:
        """Let time pass and the agent work until nothing is due; return when it is due next."""
        self.kernel.clock += seconds
        for _ in range(100):
            now = self.kernel.clock
            due = self.agent.step(now)
            if due is None or due > self.kernel.clock:
                return due
        raise AssertionError("the agent does not come to rest")

    def isolated(self) -> dict[Family, set[str]]:
        return {family: set(table) for family, table in self.kernel.tables.items()}

    def value(self, series: Series, *labels: str) -> Any:
        return next(
            (each.value for each in self.metrics.samples() if (each.series, each.labels) == (series, labels)),
            None,
        )


def node(*ranges: str) -> WireObject:
    """The own node, with pod ranges."""
    found = {"metadata": {"name": "n1"}, "spec": {"podCIDRs": list(ranges)}}
    return decode(Kind.NODE, msgspec.json.encode(found))


def cluster() -> tuple[WireObject, ...]:
    """A namespace, two pods of this node, and a policy that isolates both."""
    return (
        namespace("shop"),
        pod("web", "10.1.0.1"),
        pod("db", "10.1.0.2"),
        policy("deny", DENY_ALL),
    )
