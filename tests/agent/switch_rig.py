"""A run loop over modes in memory, for tests of what happens when another mode is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

import msgspec
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.agent.conntrack_cleaner import ConntrackCleaner
from kproxy.agent.loop import Agent
from kproxy.backends.core.base import Drift, Measurement, SyncReport, quarantined
from kproxy.config.model import ProxyConfig, mode_name
from kproxy.kernel.links import AddressNews
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import Leftovers, Mode, ModeRegistry
from kproxy.modes.registry import MODES
from kproxy.node.facts import FamilyFacts
from kproxy.plan.model import ServicePlan
from kproxy.plan.stale_conntrack import StaleConntrack
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.store import ObjectStore
from kproxy.telemetry.events import Notice
from kproxy.telemetry.http.health import HealthState
from kproxy.telemetry.http.health_check_node_ports import ServiceHealth
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.observer import SyncObserver
from kproxy.telemetry.series import MODE_SWITCHES
from tests.builders import as_service, as_slice, endpoint, endpoint_slice, port, service

CONFIG = ProxyConfig(node_name="node1", min_sync_period=0.0, ipvs_graceful_period=10.0)
BOTH = (Family.IPV4, Family.IPV6)


class Kernel:
    """What each mode has in the kernel, by family; `history` is every change in its order.

    A mode in `shares` takes away what others have when it writes, as iptables and IPVS do with each other.
    `during` is called in each write.
    """

    def __init__(self) -> None:
        self.rules: dict[tuple[str, Family], set[str]] = {}
        self.history: list[str] = []
        self.errors: dict[tuple[str, Family], str] = {}
        self.refused: set[tuple[str, str]] = set()
        self.shares: set[str] = set()
        self.during: Callable[[], None] = lambda: None

    def write(self, mode: str, family: Family, keys: set[str]) -> None:
        self.during()
        self.history.append(f"{mode} {family.value}: {' '.join(sorted(keys))}")
        self.rules[mode, family] = keys
        if mode in self.shares:
            self.clear(other_than=mode, families=[family])

    def clear(self, other_than: str, families: Iterable[Family] = BOTH) -> None:
        for mode, family in list(self.rules):
            if mode != other_than and family in families:
                self.history.append(f"{mode} {family.value} gone")
                del self.rules[mode, family]

    def of(self, mode: str) -> dict[Family, set[str]]:
        return {family: keys for (name, family), keys in self.rules.items() if name == mode}


class FakeBackend:
    """Writes when something changed or nothing is known, like the real ones."""

    def __init__(self, kernel: Kernel, mode: str, family: Family) -> None:
        self.family = family
        self._kernel = kernel
        self._mode = mode
        self._wanted: set[str] = set()
        self._pending = True
        self.on_progress: Callable[[], None] = lambda: None
        self.on_timed_sync: Callable[[SyncReport, float], None] = lambda _, __: None
        self.gives_way: Callable[[], bool] = lambda: False

    def update(self, plans: Iterable[ServicePlan]) -> None:
        for plan in plans:
            (self._wanted.add if plan.ports else self._wanted.discard)(plan.key)
            self._pending = True

    def sync(self, budget: float | None = None) -> SyncReport:
        failed = {key: "no such rule" for key in self._wanted if (self._mode, key) in self._kernel.refused}
        error = self._kernel.errors.get((self._mode, self.family))
        if self._pending:
            self._kernel.write(self._mode, self.family, set() if error else self._wanted - failed.keys())
        self._pending = error is not None
        return SyncReport(quarantined(failed), error)

    def invalidate(self) -> None:
        self._pending = True

    def retry(self) -> None:
        pass

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        return ()

    def run_timers(self) -> float | None:
        return None


class FakeMode:
    """A mode of FakeBackends."""

    variants: Mapping[Family, Variant] = {}

    def __init__(self, kernel: Kernel, config: ProxyConfig, families: tuple[Family, ...] = BOTH) -> None:
        self.families = families
        self.name = config.proxy_mode
        self._kernel = kernel
        self._backends: dict[Family, FakeBackend] = {}

    def configure(self, family: Family, facts: FamilyFacts) -> FakeBackend:
        return self._backends.setdefault(family, FakeBackend(self._kernel, self.name, family))

    def reconfigure(self, config: ProxyConfig) -> None:
        pass

    def on_first_sync(self) -> None:
        self._kernel.clear(other_than=self.name)

    def run_timers(self) -> float | None:
        return None

    def compare_addresses(self, news: AddressNews) -> Mapping[Family, tuple[Drift, ...]]:
        return {}

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        return Measurement()


class NoLeftovers:
    """A FakeMode clears what others left by itself."""

    def begin(self, used: Mapping[Family, Variant]) -> None:
        pass

    def run_timers(self) -> float | None:
        return None

    def clear(self, *, kube_proxy: bool) -> bool:
        return True

    def dissolve(self) -> bool:
        return True


def modes_of(
    make: Callable[[ProxyConfig], Mode], leftovers: Mapping[str, Callable[[], Leftovers]] | None = None
) -> ModeRegistry:
    """The modes of the product with other makers, and with the `leftovers` of some by name."""
    given = leftovers or {}
    return ModeRegistry(
        [
            msgspec.structs.replace(
                spec,
                make=lambda config, _: make(config),
                leftovers=lambda _, __, name=spec.name: given.get(name, NoLeftovers)(),
            )
            for spec in MODES
        ]
    )


class Flows(ConntrackCleaner):
    """Keeps what it is asked to look for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Family, StaleConntrack]] = []

    def submit(self, family: Family, stale: StaleConntrack, changes: Mapping[str, int] | None = None) -> None:
        if stale.kept or stale.gone:
            self.asked.append((family, stale))


class NoChecks(ServiceHealth):
    """Opens no ports."""

    def update(
        self, plans: Iterable[ServicePlan], addresses: Mapping[Family, tuple[str, ...] | None]
    ) -> None:
        pass


class Rig:
    """A run loop with two dual-stack services, in any modes."""

    def __init__(
        self,
        make: Callable[[ProxyConfig], Mode],
        config: ProxyConfig = CONFIG,
        modes: ModeRegistry | None = None,
    ) -> None:
        self.store = ObjectStore(frozenset(KINDS) - {Kind.SERVICE_CIDR})
        self.flows = Flows()
        self.api_servers: frozenset[tuple[str, int]] = frozenset()
        self.notices: list[Notice] = []
        self.metrics = Metrics()
        self.observer = SyncObserver(self.metrics, self.notices.append)
        self.health = HealthState(30.0, lambda: 0.0, lambda: None)
        self.agent = Agent(
            config,
            self.store,
            make(config),
            self.health,
            lambda: ("192.168.0.2", "fd00:168::2"),
            self.flows,
            NoChecks(lambda: True),
            self.observer,
            modes or modes_of(make),
            lambda: self.api_servers,
        )
        self.store.replace(Kind.NODE, [], [])
        self.store.replace(Kind.SERVICE, [], [])
        self.store.replace(Kind.ENDPOINT_SLICE, [], [])
        self.add("a", 1)
        self.add("b", 2)

    def add(self, name: str, number: int, *pods: str) -> None:
        """Write a service and its endpoints."""
        ips = [f"10.96.0.{number}", f"fd00:96::{number}"]
        obj = service(name, ips, ports=[port(protocol="UDP")], ipFamilyPolicy="RequireDualStack")
        self.store.upsert(Kind.SERVICE, as_service(obj))
        ready = [endpoint(pod) for pod in pods or ("10.1.0.1",)]
        self.store.upsert(
            Kind.ENDPOINT_SLICE, as_slice(endpoint_slice(*ready, service=name, ports=[port(protocol="UDP")]))
        )

    @property
    def refusal(self) -> tuple[int, str, str] | None:
        """The revision of the refused settings, the mode that stays, and the reason."""
        found = self.agent.reported.refusal
        return None if found is None else (found.revision, mode_name(found.kept), found.reason)

    def work(self, config: ProxyConfig | None = None) -> list[str]:
        """One sync, with other settings if any; the events that were logged, but for those of the machine."""
        if config is not None:
            self.agent.reconfigure(msgspec.structs.replace(config))
        with capture_logs() as logs:
            self.agent.run_once(threading.Event())
        self.logs = logs
        return [line["event"] for line in logs if line["event"] != "tables_not_listed"]

    def said(self, event: str) -> dict[str, object]:
        """The only line of an event in the last work."""
        (line,) = [line for line in self.logs if line["event"] == event]
        return dict(line)

    def switches(self) -> dict[str, object]:
        """How many switches came to which end, as /metrics tells it."""
        return {each.labels[0]: each.value for each in self.metrics.samples() if each.series is MODE_SWITCHES}
