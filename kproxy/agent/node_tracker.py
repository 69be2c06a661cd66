"""Facts of the node, derived again when the Node or another input of theirs changed."""

from collections.abc import Callable, Sequence

import structlog

from kproxy.config.model import ProxyConfig
from kproxy.node.facts import NodeFacts, node_facts, pod_cidrs, remembered
from kproxy.state.store import ObjectStore
from kproxy.state.wire import Node
from kproxy.telemetry.http.health import HealthState

log = structlog.stdlib.get_logger(__name__)


class NodeTracker:
    """Holds the Node, the service ranges and the API servers as last seen.

    `interfaces` returns the addresses of all network interfaces, `api_servers` the current (address, port) of
    each API server. Used by the run loop's thread only, except `invalidate`.
    """

    def __init__(
        self,
        store: ObjectStore,
        health: HealthState,
        interfaces: Callable[[], Sequence[str]],
        api_servers: Callable[[], frozenset[tuple[str, int]]],
    ) -> None:
        self._store = store
        self._health = health
        self._interfaces = interfaces
        self._api_servers = api_servers
        self._seen: tuple[Node | None, tuple[str, ...], frozenset[tuple[str, int]]] = (None, (), frozenset())
        self._node: Node | None = None
        self._missing = False
        self._stale = True

    def invalidate(self) -> None:
        """Make the next `refresh` report a change; may be called from any thread."""
        self._stale = True

    def refresh(self, config: ProxyConfig) -> bool:
        """Read the current inputs; return whether the facts may differ from those derived last."""
        seen = self._store.node(), self._store.service_ranges, self._api_servers()
        if not self._stale and seen == self._seen:
            return False
        self._stale = False
        self._seen = seen
        node = seen[0]
        self._node = remembered(node, self._node)
        self._health.see_node(node, known=True)
        missing = node is None and config.manifests is None and config.replay is None
        if missing and not self._missing:
            effect = (
                "/healthz answers 503; --hostname-override names the Node if it is not named after the host"
            )
            log.warning("node_missing", node=config.node_name, effect=effect)
        self._missing = missing
        return True

    def facts(self, config: ProxyConfig) -> NodeFacts | None:
        """The facts for these settings; None while the Node has no pod CIDRs and they are needed."""
        _, ranges, servers = self._seen
        return node_facts(config, self._node, self._interfaces(), ranges, servers)

    def facts_or_wait(self, config: ProxyConfig) -> NodeFacts | None:
        """As `facts`; where there are none, log that and report it to the health state."""
        facts = self.facts(config)
        self._health.wait_for(None if facts is not None else "the pod CIDRs of the node")
        if facts is None:
            log.info("waiting_for_pod_cidrs", node=config.node_name, podCIDRs=pod_cidrs(self._seen[0]))
        return facts
