"""The thread that enforces NetworkPolicies while they are turned on; services have the run loop.

It belongs to no proxy mode: a change of the mode never touches the tables of policies.
"""

import threading
import time
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.agent.policy.companions import FindsGaps, Prepares, companions
from kproxy.agent.policy.early import EarlyAddresses
from kproxy.agent.policy.kernel import PolicyKernel
from kproxy.agent.policy.refused import ServiceOf, no_service
from kproxy.agent.policy.refused_flows import RefusedFlows
from kproxy.agent.policy.session import PolicySession
from kproxy.config.model import ProxyConfig
from kproxy.plan.policy.model import PolicyTable, Touched
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.sources.cni_cache import CniCache
from kproxy.state.store import ObjectStore
from kproxy.telemetry.http.health import FamilyHealth
from kproxy.telemetry.policy_observer import PolicyObserver
from kproxy.telemetry.status import PolicyStatus

log = structlog.stdlib.get_logger(__name__)

REMOVAL_AGAIN = 30.0
"""Seconds until tables that could not be removed are tried again."""

T = TypeVar("T")


class _Wanted(msgspec.Struct, frozen=True):
    config: ProxyConfig
    families: tuple[Family, ...]


class PolicyAgent:
    """`families` are those that the kernel can enforce. All methods except `run` may be called anywhere."""

    def __init__(
        self,
        config: ProxyConfig,
        families: Collection[Family],
        store: ObjectStore,
        kernel: PolicyKernel,
        observer: PolicyObserver,
        clock: Callable[[], float] = time.monotonic,
        service_of: ServiceOf = no_service,
    ) -> None:
        self.store = store
        self.kernel = kernel
        self.observer = observer
        self.cni = CniCache(store.policy_wake)
        self._wanted = _Wanted(config, tuple(families))
        self._seen: _Wanted | None = None
        self._clock = clock
        self._session: PolicySession | None = None
        self._remove_at: float | None = None
        self._stepped = threading.Condition()
        self._ended = False
        self.refused = RefusedFlows(self, config, service_of=service_of)
        self.companions = (self.refused, *companions(self))

    @property
    def config(self) -> ProxyConfig:
        """The settings that it works towards."""
        return self._wanted.config

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that are enforced."""
        return self._wanted.families

    @property
    def pod_ranges(self) -> tuple[str, ...]:
        """The pod ranges of this node, of both families."""
        session = self._session
        return () if session is None else session.pod_ranges

    def reconfigure(self, config: ProxyConfig, families: Collection[Family] | None = None) -> None:
        """Use other settings; with `network_policy` off, remove the tables at once."""
        known = self._wanted
        self._wanted = _Wanted(config, known.families if families is None else tuple(families))
        for each in self.companions:
            each.follow(config)
        self.store.policy_wake()

    def look(self) -> None:
        """Compare the kernel with what was applied, now."""
        session = self._session
        if session is not None:
            session.look()
            self.store.policy_wake()

    def ask(self, question: Callable[[PolicyPlanner], T]) -> T | None:
        """The planner's answer to a question, while its plan does not change; None if nothing is enforced."""
        session = self._session
        if session is None:
            return None
        with session.lock:
            return question(session.planner)

    @property
    def errors(self) -> dict[Family, str]:
        """The families whose last sync failed as a whole, and the reasons."""
        session = self._session
        return {} if session is None else session.errors

    def waits_for(self) -> str | None:
        """What the first sync waits for, in words; None if it waits for nothing."""
        session = self._session
        return None if session is None else session.waits_for()

    def health(self) -> dict[Family, FamilyHealth]:
        """Whether each family applies its changes in time."""
        session = self._session
        return {} if session is None else session.health.report().families

    def status(self) -> PolicyStatus:
        """The status of the enforcement."""
        unknown_pods = self.config.network_policy_unknown_pods
        return self.observer.status(unknown_pods, self.waits_for(), self.gaps())

    def gaps(self) -> tuple[str, ...]:
        """Packets that no policy judges although the settings demand it, and why, in words."""
        session = self._session
        found = [] if session is None or session.gap is None else [session.gap]
        found += [gap for each in self.companions if isinstance(each, FindsGaps) for gap in each.gaps]
        return tuple(found)

    def wait_applied(self, timeout: float | None) -> bool:
        """Block until everything known is applied, `run` has ended, or the time in seconds is over.

        Return whether every policy is in the kernel.
        """
        with self._stepped:
            self._stepped.wait_for(lambda: self._ended or self._is_applied(), timeout)
        session = self._session
        return session is not None and self._is_applied() and not session.refused

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set and the store woken; the tables stay."""
        try:
            while not stop.is_set():
                deadline = self.step(self._clock())
                left = None if deadline is None else deadline - self._clock()
                if left is None or left > 0:
                    self.store.policy_wait(left)
        finally:
            with self._stepped:
                self._ended = True
                self._stepped.notify_all()

    def step(self, now: float) -> float | None:
        """Take new settings, and do the most urgent work; see PolicySession.step."""
        if self._wanted is not self._seen:
            self._follow(self._wanted)
        if self._session is None:
            return self._remove_again(now)
        due = self._session.step(now)
        with self._stepped:
            self._stepped.notify_all()
        return due

    def _follow(self, wanted: _Wanted) -> None:
        self._seen = wanted
        if not wanted.config.network_policy:
            if self._session is not None:
                self._session = None
                log.info("network_policy_off", effect="its tables are removed")
                self._remove()
            return
        self._remove_at = None
        if self._session is not None:
            self._session.reconfigure(wanted.config)
            return
        log.info("network_policy_on", families=[family.value for family in wanted.families])
        self._session = PolicySession(
            wanted.config,
            wanted.families,
            self.store,
            self.kernel,
            self.observer,
            self._note_applied,
            self._clock,
            self._note_planned,
            EarlyAddresses(wanted.config.node_name, lambda: self.cni.results),
        )

    def _note_planned(self, family: Family, table: PolicyTable, touched: Touched) -> None:
        for each in self.companions:
            if isinstance(each, Prepares):
                each.planned(family, table, touched)

    def _note_applied(self, family: Family, touched: Touched) -> None:
        for each in self.companions:
            each.applied(family, touched)

    def _remove(self) -> None:
        self._remove_at = None if self.kernel.remove() else self._clock() + REMOVAL_AGAIN

    def _remove_again(self, now: float) -> float | None:
        if self._remove_at is not None and self._remove_at <= now:
            self._remove()
        return self._remove_at

    def _is_applied(self) -> bool:
        session = self._session
        return session is not None and session.applied and session.pending_since is None
