"""Turns the enforcement of NetworkPolicies on and off: at the start, and by a reload.

Nothing of it is imported, watched or run before it is turned on.
"""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from kproxy.addresses import Family
from kproxy.agent.threads import Threads
from kproxy.backends.core.foreign_writes import RulesetWatches
from kproxy.config.model import ProxyConfig
from kproxy.config.refusals import SettingRefused
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import Leftovers, ModeUnavailable
from kproxy.node.policy_table import remove_policy_tables
from kproxy.state.store import ObjectStore
from kproxy.telemetry.events import Notice
from kproxy.telemetry.http.health import FamilyHealth
from kproxy.telemetry.metrics import Metrics, Sample
from kproxy.telemetry.series import OF_POLICIES
from kproxy.telemetry.status import PolicyStatus

if TYPE_CHECKING:
    from kproxy.agent.policy.agent import PolicyAgent
    from kproxy.agent.policy.kernel import PolicyKernel

ENABLED = "networkPolicy.enabled"
"""The path of the setting in kproxy's own document."""


class PolicyControl:
    """Methods may be called from any thread. `agent` is None until policies are first enforced."""

    def __init__(
        self,
        config: ProxyConfig,
        store: ObjectStore,
        metrics: Metrics,
        notify: Callable[[Notice], None],
        threads: Threads,
        stop: threading.Event,
        kernel: "Callable[[RulesetWatches], PolicyKernel] | None" = None,
    ) -> None:
        """`kernel` makes the kernel's part; None: that of this node."""
        self.agent: PolicyAgent | None = None
        self.service_of: Callable[[str, int, str], str | None] = lambda _ip, _port, _protocol: None
        """Names the Service that has an address and port of a protocol."""
        self._config = config
        self._store = store
        self._metrics = metrics
        self._notify = notify
        self._threads = threads
        self._stop = stop
        self._make_kernel = kernel or _kernel
        self._kernel: PolicyKernel | None = None
        self._watches: RulesetWatches = {}
        self._lock = threading.Lock()
        """Held while it is turned on, and while what a former process left is removed."""
        self._on = False

    def begin(self, watches: RulesetWatches) -> None:
        """Enforce if the settings say so; see ModeRegistry for `watches`. Raises PolicyUnavailable."""
        self._watches = watches
        if self._config.network_policy:
            self._turn_on(self._config)

    def follow(self, config: ProxyConfig) -> None:
        """Use other settings. Raises SettingRefused, with nothing changed, if the kernel cannot enforce."""
        if config.network_policy and not self._on:
            try:
                self._turn_on(config)
            except ModeUnavailable as error:
                raise SettingRefused(ENABLED, kept=False, reason=str(error)) from error
        elif self.agent is not None:
            self._on = config.network_policy
            self.agent.reconfigure(config)
        self._config = config

    @property
    def hidden(self) -> frozenset[str]:
        """The names of the series that do not exist while nothing is enforced."""
        return frozenset() if self._on else OF_POLICIES

    def status(self) -> PolicyStatus | None:
        """The status of the enforcement; None while it is off."""
        return self.agent.status() if self._on and self.agent is not None else None

    def health(self) -> dict[Family, FamilyHealth]:
        """Whether each family applies its changes in time; empty while it is off."""
        return self.agent.health() if self._on and self.agent is not None else {}

    def samples(self) -> list[Sample]:
        """What is read of the kernel at a scrape; nothing while it is off."""
        return self.agent.refused.samples() if self._on and self.agent is not None else []

    @property
    def errors(self) -> Mapping[Family, str]:
        """The families whose last sync failed as a whole, and the reasons."""
        return {} if self.agent is None else self.agent.errors

    def waits_for(self) -> str | None:
        """What the first sync waits for, in words; None if it waits for nothing."""
        return None if self.agent is None else self.agent.waits_for()

    def wait_applied(self, timeout: float | None) -> bool:
        """Whether everything is applied within `timeout` seconds; True if nothing is to be enforced."""
        return self.agent is None or self.agent.wait_applied(timeout)

    def leftovers(self) -> tuple[Leftovers, ...]:
        """The tables of a former process, which go after the first sync of services if it is off."""
        return (_Tables(self._remove_unwanted),)

    def _remove_unwanted(self) -> None:
        with self._lock:
            if not self._on:
                remove_policy_tables()

    def _service_at(self, ip: str, port: int, protocol: str) -> str | None:
        return self.service_of(ip, port, protocol)

    def _turn_on(self, config: ProxyConfig) -> None:
        if self._kernel is None:
            self._kernel = self._make_kernel(self._watches)
        families = self._kernel.usable()
        with self._lock:
            self._on = True
        if self.agent is not None:
            self.agent.reconfigure(config, families)
            return
        from kproxy.agent.policy.agent import PolicyAgent
        from kproxy.telemetry.policy_observer import PolicyObserver

        observer = PolicyObserver(self._metrics, self._notify)
        self.agent = PolicyAgent(
            config,
            families,
            self._store,
            self._kernel,
            observer,
            service_of=self._service_at,
        )
        self._threads.start("policy", partial(self.agent.run, self._stop), self._store.policy_wake)
        for each in self.agent.companions:
            self._threads.start(each.name, partial(each.run, self._stop), each.wake)


class _Tables:
    """The tables of policies as leftovers; `remove` removes them if they are not wanted. See Leftovers."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove = remove

    def begin(self, used: Mapping[Family, Variant]) -> None:  # noqa: ARG002
        """Remove the tables."""
        self._remove()

    def run_timers(self) -> float | None:
        """Do nothing; no removal is deferred."""
        return None

    def clear(self, *, kube_proxy: bool) -> bool:  # noqa: ARG002
        """Remove the tables; True if they are gone."""
        return remove_policy_tables()

    def dissolve(self) -> bool:
        """Do nothing; `clear` has removed everything."""
        return True


def _kernel(watches: RulesetWatches) -> "PolicyKernel":
    from kproxy.agent.policy.kernel import NftPolicyKernel

    return NftPolicyKernel(watches)
