"""The paths of port 10249: /metrics, /metrics/slis, /healthz, /proxyMode and /configz as in kube-proxy.

There are also /status, and with enableProfiling /debug/threads and /debug/profile.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from kproxy import __version__
from kproxy.addresses import Family
from kproxy.config.codec import replace
from kproxy.config.documents import Settings
from kproxy.config.loading import document
from kproxy.config.model import PRIMARY, ProxyConfig
from kproxy.config.modes import traits_of
from kproxy.config.reload import Reloader
from kproxy.config.schema import KUBE_PROXY
from kproxy.modes.base import HasSocketTable, Mode
from kproxy.state.kinds import Kind
from kproxy.state.problems import Problem
from kproxy.state.store import ObjectStore
from kproxy.telemetry.exposition import CONTENT_TYPE, Exposition, slis
from kproxy.telemetry.http import profiling
from kproxy.telemetry.http.health import Health, HealthState
from kproxy.telemetry.http.server import Answer, Routes
from kproxy.telemetry.metrics import Metrics, observe_check
from kproxy.telemetry.observer import SyncObserver
from kproxy.telemetry.status import (
    Condition,
    FamilyStatus,
    Pending,
    PolicyFamilyStatus,
    PolicyStatus,
    Status,
    Watch,
    encode,
)
from kproxy.telemetry.verdict import Facts, FamilyFacts, Outage, State, Verdict, WatchFacts, evaluate

Watches = Callable[[], Sequence[Watch]]


class StatusBuilder:
    """Builds the status of this process from its components.

    Its methods may be called from any thread.
    """

    def __init__(
        self,
        config: Callable[[], ProxyConfig],
        reloader: Reloader,
        store: ObjectStore,
        health: HealthState,
        observer: SyncObserver,
        watches: Watches,
        clock: Callable[[], float],
        unopened_ports: Callable[[], list[Problem]] = list,
        policies: Callable[[], PolicyStatus | None] = lambda: None,
        mode: Callable[[], Mode | None] = lambda: None,
    ) -> None:
        """`mode` returns the mode in force."""
        self._mode = mode
        self._unopened_ports = unopened_ports
        self._config = config
        self._reloader = reloader
        self._store = store
        self._health = health
        self._observer = observer
        self._watches = watches
        self._policies = policies
        self._clock = clock
        self._since = datetime.now(UTC)

    def verdict(self) -> Verdict:
        """The current health of the agent."""
        now = datetime.now(UTC)
        families = self._observer.family_status()
        return evaluate(self._facts(self._health.report(), families, self._watches(), self._policies(), now))

    def status(self) -> Status:
        """The current status."""
        now = datetime.now(UTC)
        config = self._config()
        health = self._health.report()
        families = self._observer.family_status()
        watches = self._watches()
        policies = self._policies()
        verdict = evaluate(self._facts(health, families, watches, policies, now))
        changes = self._store.changes()
        oldest = self._store.pending_since
        return Status(
            version=__version__,
            node=config.node_name,
            mode=config.proxy_mode,
            since=self._since,
            healthy=verdict.state is State.HEALTHY,
            node_eligible=health.node_eligible,
            node_reason=health.node_reason,
            pending=Pending(
                changes[Kind.SERVICE].pending,
                changes[Kind.ENDPOINT_SLICE].pending,
                None if oldest is None else round(self._clock() - oldest, 3),
            ),
            families=families,
            problems=[*self._observer.known_problems(), *self._unopened_ports()],
            rejected=self._store.rejected(),
            watches=list(watches),
            refused_mode=self._reloader.refused_mode(),
            state=verdict.state,
            live=verdict.live,
            conditions=[
                Condition(each.cause.value, each.message, now - timedelta(seconds=each.seconds))
                for each in verdict.conditions
            ],
            rejected_configuration=self._reloader.rejected(),
            network_policy=policies,
            refused_setting=self._reloader.refused_setting(),
        )

    def _facts(
        self,
        health: Health,
        families: Mapping[Family, FamilyStatus],
        watches: Sequence[Watch],
        policies: PolicyStatus | None,
        now: datetime,
    ) -> Facts:
        mode, file = self._reloader.refused_mode(), self._reloader.rejected()
        setting = self._reloader.refused_setting()
        return Facts(
            age=_seconds(self._since, now),
            longest_wait=health.longest_wait,
            families=(
                *(
                    _family_facts(family, of.synced, of.behind, families[family], now)
                    for family, of in health.families.items()
                    if family in families
                ),
                *_policy_facts(health, policies, now),
            ),
            missing_lists=tuple(kind.name for kind in self._store.missing_lists),
            waits_for=health.waits_for,
            watches=tuple(
                WatchFacts(each.kind, Outage(_seconds(each.down_since, now), each.last_error or ""))
                for each in watches
                if each.down_since is not None
            ),
            mode_refused=None
            if mode is None
            else Outage(
                _seconds(mode.at, now), f"mode {mode.mode} is refused, {mode.kept} stays: {mode.reason}"
            ),
            setting_refused=None
            if setting is None
            else Outage(_seconds(setting.at, now), f"{setting.setting} is refused: {setting.reason}"),
            policy_gaps=tuple(policies.gaps) if policies is not None else (),
            configuration_rejected=None
            if file is None
            else Outage(_seconds(file.at, now), "; ".join(file.problems)),
            socket_table=_without_sockets(self._mode(), now),
        )

    def routes(self, exposition: Exposition, metrics: Metrics) -> Routes:
        """The handler of each path."""
        return {
            "/metrics": lambda: Answer(exposition.text(), CONTENT_TYPE),
            "/metrics/slis": lambda: Answer(slis(metrics), CONTENT_TYPE),
            "/healthz": lambda: _ping(metrics),
            "/proxyMode": lambda: Answer(self._config().proxy_mode.encode()),
            "/configz": lambda: Answer(configz(self._reloader.running()), "application/json"),
            "/status": lambda: Answer(encode(self.status()), "application/json"),
            "/debug/threads": lambda: self._debug(profiling.threads),
            "/debug/profile": lambda: self._debug(profiling.profile),
        }

    def _debug(self, look: Callable[[], str]) -> Answer:
        if not self._config().profiling:
            return Answer(b"enableProfiling is false\n", status=404)
        return Answer(look().encode())


def _family_facts(
    family: Family, synced: bool, behind: float | None, status: FamilyStatus, now: datetime
) -> FamilyFacts:
    return FamilyFacts(
        name=family.value,
        synced=synced,
        behind=behind,
        failing=_failing(status, now),
        services=status.services,
        refused=sum(not each.service.startswith("(") for each in status.quarantined),
        drifted=status.drift.outstanding,
        returning=status.drift.returning,
        uncompared=_uncompared(status, now),
    )


def _policy_facts(health: Health, policies: PolicyStatus | None, now: datetime) -> Iterator[FamilyFacts]:
    """The facts of each family of policies. Refused policies are findings, as their pods are closed."""
    for family, of in health.policies.items():
        status = None if policies is None else policies.families.get(family)
        if policies is not None and status is not None:
            yield FamilyFacts(
                name=f"NetworkPolicy {family}",
                synced=of.synced,
                behind=of.behind,
                failing=_failing(status, now),
                drifted=status.drift.outstanding,
                returning=status.drift.returning,
                uncompared=_uncompared(status, now),
                waits_for=policies.waits_for,
            )


def _failing(status: FamilyStatus | PolicyFamilyStatus, now: datetime) -> Outage | None:
    since, failure = status.failing_since, status.last_failure
    return None if since is None or failure is None else Outage(_seconds(since, now), failure.reason)


def _uncompared(status: FamilyStatus | PolicyFamilyStatus, now: datetime) -> Outage | None:
    found = status.comparison_failure
    return None if found is None else Outage(_seconds(found.at, now), found.reason)


def _seconds(since: datetime, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds())


def _without_sockets(mode: object, now: datetime) -> Outage | None:
    if not isinstance(mode, HasSocketTable) or not mode.socket_table.reason:
        return None
    table = mode.socket_table
    since = 0.0 if table.since is None else _seconds(table.since, now)
    return Outage(since, f"the socket table is not used, packets are translated one by one: {table.reason}")


def _ping(metrics: Metrics) -> Answer:
    observe_check(metrics, "ping", "healthz", passed=True)
    return Answer(b"ok")


def configz(settings: Settings) -> bytes:
    """The KubeProxyConfiguration in force, in the form of a file.

    In a mode such as nftables, an empty nodePortAddresses means `primary` (platformApplyDefaults of
    kube-proxy).
    """
    kube = settings.kube
    if traits_of(settings.mode).primary_by_default and not kube.node_port_addresses:
        kube = replace(kube, "nodePortAddresses", (PRIMARY,))
    body = {"kubeproxy.config.k8s.io": document(KUBE_PROXY, kube)}
    return msgspec.json.format(msgspec.json.encode(body), indent=2)
