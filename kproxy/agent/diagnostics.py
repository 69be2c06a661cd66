"""What :10249 answers: /metrics, /metrics/slis, /healthz, /proxyMode and /configz as kube-proxy does.

Besides, /status, and with enableProfiling /debug/threads and /debug/profile.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from kproxy import __version__
from kproxy.agent import profiling
from kproxy.agent.config import PRIMARY, ProxyConfig
from kproxy.agent.exposition import CONTENT_TYPE, Exposition, slis
from kproxy.agent.health import HealthState
from kproxy.agent.http_server import Answer, Routes
from kproxy.agent.inbox import Inbox
from kproxy.agent.metrics import Metrics, observe_check
from kproxy.agent.reporter import Reporter
from kproxy.agent.settings.codec import replace
from kproxy.agent.settings.documents import Settings
from kproxy.agent.settings.loading import document
from kproxy.agent.settings.reload import Reloader
from kproxy.agent.settings.schema import KUBE_PROXY
from kproxy.agent.status import Pending, Status, Watch, encode
from kproxy.state.decode import Kind

Watches = Callable[[], Sequence[Watch]]


class Inspector:
    """Puts together how this process is doing, from those who know parts of it."""

    def __init__(
        self,
        config: Callable[[], ProxyConfig],
        reloader: Reloader,
        inbox: Inbox,
        health: HealthState,
        reporter: Reporter,
        watches: Watches,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._reloader = reloader
        self._inbox = inbox
        self._health = health
        self._reporter = reporter
        self._watches = watches
        self._clock = clock
        self._since = datetime.now(UTC)

    def status(self) -> Status:
        """The state now; may be called from any thread."""
        config = self._config()
        health = self._health.report()
        changes = self._inbox.changes()
        oldest = self._inbox.pending_since
        return Status(
            version=__version__,
            node=config.node_name,
            mode=config.proxy_mode,
            since=self._since,
            healthy=all(family.healthy for family in health.families.values()),
            node_eligible=health.node_eligible,
            pending=Pending(
                changes[Kind.SERVICE].pending,
                changes[Kind.ENDPOINT_SLICE].pending,
                None if oldest is None else round(self._clock() - oldest, 3),
            ),
            families=self._reporter.family_status(),
            problems=self._reporter.known_problems(),
            rejected=self._inbox.rejected(),
            watches=list(self._watches()),
            refused_mode=self._reloader.refused_mode(),
        )

    def routes(self, exposition: Exposition, metrics: Metrics) -> Routes:
        """What answers for each path."""
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


def _ping(metrics: Metrics) -> Answer:
    observe_check(metrics, "ping", "healthz", passed=True)
    return Answer(b"ok")


def configz(settings: Settings) -> bytes:
    """The KubeProxyConfiguration in force, as a file would have it.

    In nftables mode no range for node ports means `primary` (platformApplyDefaults of kube-proxy).
    """
    kube = settings.kube
    if kube.mode == "nftables" and not kube.node_port_addresses:
        kube = replace(kube, "nodePortAddresses", (PRIMARY,))
    told = {"kubeproxy.config.k8s.io": document(KUBE_PROXY, kube)}
    return msgspec.json.format(msgspec.json.encode(told), indent=2)
